"""`scopebase feature | match`: a feature's dossier in the terminal, and what two SAEs have in common."""

from __future__ import annotations

from typing import Annotated, Literal, Optional

import typer
from rich.padding import Padding
from rich.text import Text

from schema.wire.features import Dossier, Histogram, LogitEffect, MatchAnswer, MatchSide, Neighbour
from scopebase.cli.answers import library, snippet
from scopebase.cli.console import OUT, print_json, shown, table
from scopebase.cli.options import AsOfOption, Home, Json, PoolOption, wants_json

BAR = 40
"""Characters of the longest bar."""
MOST_BINS = 16
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of what is drawn at random.")]


def feature(
    feature: Annotated[str, typer.Argument(help="<model>/<layer>-<set>/<index>.")],
    dataset: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--dataset", help="Only this one. Repeat for more; all of the SAE unless given.", show_default=False
        ),
    ] = None,
    pool: PoolOption = "any",
    seed: Seed = 0,
    as_of: AsOfOption = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """A feature's dossier: where it fires, on what, what it does, what is near it."""
    from api.services.features.dossier import dossier as ask

    with library(home) as books:
        answer = ask(books, feature, pool, dataset or (), seed, as_of)
    if wants_json(json):
        print_json(answer)
    else:
        show_dossier(answer)


def match(
    a: Annotated[str, typer.Argument(metavar="A", help="An SAE.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one, of residuals of the same width.")],
    threshold: Annotated[
        float, typer.Option("--threshold", min=-1, max=1, help="Cosine from which a feature counts as matched.")
    ] = 0.7,
    features: Annotated[
        int,
        typer.Option("--features", min=1, help="Features compared a side; drawn with the seed where there are more."),
    ] = 2_048,
    sort: Annotated[
        Literal["cosine", "-cosine"], typer.Option("--sort", help="Nearest pairs first, or those without a match.")
    ] = "cosine",
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Pairs shown.")] = 10,
    cursor: Annotated[
        str | None, typer.Option("--cursor", help="Where the next page begins.", show_default=False)
    ] = None,
    seed: Seed = 0,
    home: Home = None,
    json: Json = False,
) -> None:
    """How much of one SAE another one has: each feature's nearest direction on the other side, beside what chance gives."""
    from api.services.features.match import match as ask

    with library(home) as books:
        answer = ask(books, a, b, threshold, features, sort, limit, cursor, seed)
    if wants_json(json):
        print_json(answer)
    else:
        show_match(answer)


def show_dossier(answer: Dossier) -> None:
    """From the whole to the single: counts, datasets, output, samples, neighbours."""
    OUT.print(Text.assemble((answer.feature, "bold cyan"), ("  " + shown(answer.label or "no label"), "italic")))
    if answer.description:
        OUT.print(shown(answer.description), style="italic")
    share = f" ({answer.rate:.1%})" if answer.rate is not None else ""
    density = f" · {answer.density:.2%} of tokens" if answer.density is not None else ""
    mean = f" · mean {answer.mean:.3g}" if answer.mean is not None else ""
    norm = f" · decoder norm {answer.norm:.3g}" if answer.norm is not None else ""
    OUT.print(
        f"fires in {answer.samples:,} of {answer.n_samples:,} samples{share}{density}{mean} · max {answer.max:.3g}{norm}"
    )
    for label in answer.labels[1:6]:
        OUT.print(Text(f"  also: {shown(label.text)}  ({shown(label.author)}, {label.source})", style="dim"))
    _heading("Activations")
    _bars(answer.histogram)
    _profiles(answer)
    if answer.logits is not None:
        _heading("Output")
        _effects("raises", answer.logits.positive)
        _effects("lowers", answer.logits.negative)
    for title, samples in (
        ("Strongest samples", answer.shown.top),
        ("From each fifth of the samples that fire it, strongest fifth first", answer.shown.quantiles),
        ("Random samples that fire it", answer.shown.random),
    ):
        if samples:
            _heading(title)
        if samples is answer.shown.top and answer.firing_tokens:
            OUT.print(Text("  fires on " + "  ".join(shown(t) for t in answer.firing_tokens), style="green"))
        for sample in samples:
            line = Text(f"{sample.activation:>7.3g}  ", style="dim").append_text(snippet(sample))
            OUT.print(Padding(line, (0, 0, 0, 1)))
    _neighbours(answer)
    left_out = f" · indexed otherwise and left out: {', '.join(answer.left_out)}" if answer.left_out else ""
    made = answer.provenance
    OUT.print(
        f"\npool: {made.pool} · mask: {made.mask} · seed {answer.shown.seed} · snapshot {made.snapshot}{left_out}",
        style="dim",
        markup=False,
    )


def _heading(text: str) -> None:
    OUT.print(Text(f"\n{text}", style="bold"))


def _bars(histogram: Histogram) -> None:
    """Tokens by activation; neighbouring bins are put together where there are many."""
    step = -(-len(histogram.counts) // MOST_BINS) or 1
    counts = [sum(histogram.counts[i : i + step]) for i in range(0, len(histogram.counts), step)]
    edges = histogram.edges[:-1:step]
    for edge, count in zip(edges, counts, strict=True):
        bar = "█" * max(1, round(BAR * count / max(counts))) if count else ""
        OUT.print(Text.assemble((f"{edge:>9.3g}+ ", "dim"), (bar, "cyan"), f" {count:,}"))
    if not counts:
        OUT.print("  fires on no token", style="dim")


def _profiles(answer: Dossier) -> None:
    _heading("Datasets")
    made = table(
        "dataset",
        "samples",
        "rate",
        "95 %",
        "of tokens",
        "mean",
        "max",
        right={"samples", "rate", "95 %", "of tokens", "mean", "max"},
    )
    for each in sorted(answer.profiles, key=lambda profile: -profile.rate):
        low, high = each.rate_interval
        made.add_row(
            each.dataset,
            f"{each.samples:,} / {each.n_samples:,}",
            f"{each.rate:.1%}",
            f"{low:.1%}–{high:.1%}",
            "–" if each.density is None else f"{each.density:.2%}",
            "–" if each.mean is None else f"{each.mean:.3g}",
            f"{each.max:.3g}",
        )
    OUT.print(made)


def _effects(verb: str, effects: list[LogitEffect]) -> None:
    line = Text(f"  {verb} ", style="dim")
    for effect in effects:
        line.append(shown(effect.token).replace(" ", "␣"), style="green" if effect.value > 0 else "red")
        line.append(f" {effect.value:+.2g}  ", style="dim")
    OUT.print(line)


def _neighbours(answer: Dossier) -> None:
    near = answer.neighbours
    if near.cosine:
        _heading("Nearest directions")
        _neighbour_table(near.cosine, "cosine")
    part = (
        f"{near.n_read:,} of the {near.n_fired:,} samples"
        if near.n_read < near.n_fired
        else f"all {near.n_fired:,} samples"
    )
    for title, found in (("Fire together with it", near.coactivation), ("Rivals: fire where it does not", near.rivals)):
        if found:
            _heading(f"{title} (counted in {part} that fire it)")
            _neighbour_table(found, "phi")


def _neighbour_table(found: list[Neighbour], kind: Literal["cosine", "phi"]) -> None:
    columns = ["cosine"] if kind == "cosine" else ["phi", "lift", "rate", "elsewhere", "q"]
    made = table("feature", *columns, "label", right={"feature", *columns})
    for each in found:
        if kind == "cosine":
            numbers = [f"{each.cosine:.3f}"]
        else:
            assert each.together is not None
            t = each.together
            numbers = [f"{t.phi:+.3f}", f"{t.lift:.2f}", f"{t.rate:.1%}", f"{t.base_rate:.1%}", f"{t.q_value:.1g}"]
        made.add_row(str(each.index), *numbers, shown(each.label or ""))
    OUT.print(made)


def show_match(answer: MatchAnswer) -> None:
    heads = ("features", "mean max cosine", "chance", f"≥ {answer.threshold:g}", "by chance", "mutual best")
    made = table("", *heads, right=set(heads))
    for name, side in (("A", answer.a), ("B", answer.b)):
        OUT.print(f"{name}  {side.sae}", markup=False)
        made.add_row(name, *_side(side))
    OUT.print(made)
    OUT.print(
        f"Chance: the nearest feature of the other SAE to each of {answer.n_null:,} random directions (seed {answer.seed}).",
        style="dim",
    )
    _heading("Pairs, " + ("nearest first" if answer.sort == "cosine" else "those without a match first"))
    pairs = table("feature of A", "its nearest in B", "cosine", "mutual", "labels", right={"cosine"})
    for pair in answer.data:
        labels = " / ".join(shown(label) for label in (pair.label_a, pair.label_b) if label)
        names = (name.rsplit("/", 1)[1] for name in (pair.a, pair.b))
        pairs.add_row(*names, f"{pair.cosine:.3f}", "yes" if pair.mutual else "", labels)
    OUT.print(pairs)
    if answer.next_cursor:
        OUT.print(f"\n{answer.total:,} in all; the next page: --cursor {answer.next_cursor}", style="dim", markup=False)


def _side(side: MatchSide) -> list[str]:
    half = side.mean_max_cosine - side.interval[0]
    return [
        f"{side.n:,}" if side.n == side.d_sae else f"{side.n:,} of {side.d_sae:,}",
        f"{side.mean_max_cosine:.3f}" + (f" ± {half:.3f}" if half else ""),
        f"{side.null_mean_max_cosine:.3f}",
        f"{side.matched_share:.1%}",
        f"{side.null_matched_share:.1%}",
        f"{side.mutual_share:.1%}",
    ]
