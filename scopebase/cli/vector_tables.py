"""What a person sees of steering vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.text import Text

from schema.wire.features import Neighbour
from schema.wire.vectors import FeatureVector, SavedVector, Suggestion, TypicalActivation, VectorItem
from scopebase.cli.console import OUT, shown, table

MOST_LAYERS = 12
"""Layers shown one by one."""
MADE = {
    "components": "sum of components",
    "decoded_means": "difference of means, decoded from the index",
    "residual_means": "difference of mean residuals",
    "import": "imported",
}


def show_feature(answer: FeatureVector) -> None:
    OUT.print(Text.assemble((answer.feature, "bold cyan"), ("  " + shown(answer.label or "no label"), "italic")))
    OUT.print(
        f"decoder column after block {answer.layer} of {answer.model} · {answer.d_model:,} numbers · norm {answer.norm:.4g} · "
        f"{answer.precision}, sha256 {answer.sha256[:12]}",
        markup=False,
    )
    for label in answer.labels[1:6]:
        OUT.print(Text(f"  also: {shown(label)}", style="dim"))
    if answer.typical is None:
        OUT.print("No dataset was indexed with its SAE, so nobody knows how large its activations are.")
    else:
        _typical(answer.typical)
    _suggested(answer.suggested)
    _neighbours(answer.neighbours)
    if answer.provenance is not None:
        made = answer.provenance
        left_out = f" · indexed otherwise and left out: {', '.join(answer.left_out)}" if answer.left_out else ""
        OUT.print(
            f"\n{len(made.runs)} datasets · mask: {made.mask} · snapshot {made.snapshot}{left_out}",
            style="dim",
            markup=False,
        )


def show_saved(saved: SavedVector) -> None:
    OUT.print(Text.assemble((saved.id, "bold cyan"), ("  " + shown(saved.description or ""), "italic")))
    if saved.deleted_at is not None:
        OUT.print(f"deleted on {saved.deleted_at:%Y-%m-%d %H:%M}", style="red")
    OUT.print(
        f"{MADE[saved.made]} · {saved.model} · {saved.d_model:,} numbers a layer · sha256 {saved.sha256[:12]} · "
        f"{shown(saved.author)}, {saved.created_at:%Y-%m-%d %H:%M}",
        markup=False,
    )
    more = _more(saved)
    made = table("layer", "norm", *more, right={"layer", "norm", *more})
    for place, layer in enumerate(saved.layers[:MOST_LAYERS]):
        made.add_row(str(layer), f"{saved.norms[place]:.4g}", *(column[place] for column in more.values()))
    OUT.print(made)
    if len(saved.layers) > MOST_LAYERS:
        OUT.print(f"and {len(saved.layers) - MOST_LAYERS} more layers", style="dim")
    _made_of(saved.provenance)
    _suggested(saved.suggested)


def show_list(vectors: Sequence[VectorItem]) -> None:
    if not vectors:
        OUT.print("There is no saved vector; 'scopebase vector save NAME --feature FEATURE' makes one.")
        return
    made = table("vector", "model", "layers", "norm", "made", "author", right={"norm"})
    for item in vectors:
        norm = f"{item.norms[0]:.3g}" if len(item.norms) == 1 else f"{min(item.norms):.3g}–{max(item.norms):.3g}"
        gone = " (deleted)" if item.deleted_at else ""
        made.add_row(
            item.id + gone, shown(item.model), _span(item.layers), norm, item.made.replace("_", " "), shown(item.author)
        )
    OUT.print(made)


def show_deleted(vectors: Sequence[VectorItem]) -> None:
    names = ", ".join(item.id for item in vectors)
    OUT.print(f"deleted {names}; what was made with it can still read it by that name", markup=False)


def _typical(typical: TypicalActivation) -> None:
    if typical.mean is None:
        OUT.print(f"fires on none of {typical.n_tokens:,} tokens")
        return
    quantiles = " · ".join(f"{float(share):.0%} below {value:.3g}" for share, value in typical.quantiles.items())
    OUT.print(
        f"fires on {typical.n_fired:,} of {typical.n_tokens:,} tokens ({typical.density or 0:.2%}), there at {typical.mean:.3g} in "
        f"the mean and {typical.max:.3g} at most",
        markup=False,
    )
    OUT.print(quantiles, style="dim", markup=False)


def _suggested(suggested: Sequence[Suggestion]) -> None:
    OUT.print(Text("\nStrengths to begin with", style="bold"))
    made = table("strength", "unit", "", "", right={"strength"})
    for each in suggested:
        made.add_row(f"{each.strength:.3g}", each.unit, each.name or "", each.rule)
    OUT.print(made)


def _neighbours(found: Sequence[Neighbour]) -> None:
    if not found:
        return
    OUT.print(Text("\nNearest directions", style="bold"))
    made = table("feature", "cosine", "label", right={"cosine"})
    for each in found:
        made.add_row(each.feature, f"{each.cosine or 0:.3f}", shown(each.label or ""))
    OUT.print(made)


def _more(saved: SavedVector) -> dict[str, list[str]]:
    """Columns that only some kinds have."""
    made = saved.provenance
    if saved.made == "residual_means":
        agreement = made.get("agreement") or {}
        halves = [f"{agreement[str(layer)]:.2f}" if str(layer) in agreement else "–" for layer in saved.layers]
        of_mean = [
            f"{norm / max(*made['mean_norms'][str(layer)], 1e-30):.1%}"
            for layer, norm in zip(saved.layers, saved.norms, strict=True)
        ]
        return {"of the mean norm": of_mean, "halves agree": halves}
    if saved.made == "decoded_means":
        counted = {each["layer"]: each for each in made["layers"]}
        return {"features": [f"{counted[layer]['n_features']:,}" for layer in saved.layers]}
    return {}


def _made_of(made: dict[str, Any]) -> None:
    for part in made.get("request", {}).get("components", ())[:20]:
        where = f" at layer {part['layer']}" if "layer" in part else ""
        OUT.print(f"  {part.get('weight', 1.0):+g} x {part.get('feature') or part.get('vector')}{where}", markup=False)
    for layer in made.get("layers", ())[:1]:
        OUT.print("  most in: " + ", ".join(f"{s['feature']} {s['difference']:+.3g}" for s in layer["strongest"][:4]))
    for name, side in zip("ab", made.get("sides", ()), strict=False):
        of = f" of {side['dataset']}" if "dataset" in side else ""
        OUT.print(f"  {name}: {side['n_texts']:,} texts{of}, {side['n_tokens']:,} tokens", markup=False)
    if made["made"] == "import":
        OUT.print(
            f"  from {made['format']} {shown(made.get('file') or 'file')}, sha256 {made['file_sha256'][:12]}",
            markup=False,
        )


def _span(layers: Sequence[int]) -> str:
    """0, 3-5"""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
