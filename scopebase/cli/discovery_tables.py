"""What a person sees of discoveries."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from schema.names import parse_sae
from schema.wire.discovery import Candidate, DiscoverAnswer, LayerDiscovery, Metrics, TransferAnswer
from scopebase.cli.console import OUT, heat, shown, table
from scopebase.cli.rule_tables import MEASURES, cells_of, footnote, number_of


def show_discovery(answer: DiscoverAnswer) -> None:
    """A table a question: which layer, which k, which features, and what else reaches the same."""
    split = answer.split
    OUT.print(
        Text(f"{answer.dataset}: {answer.label_field} = {shown(str(answer.positive))} against the rest", style="bold")
    )
    OUT.print(
        f"discovered on {split.discovery['positive']:,} positive and {split.discovery['negative']:,} negative samples, "
        f"measured on {split.held_out['positive']:,} and {split.held_out['negative']:,} held out (seed {split.seed})\n"
    )
    made = table("rule", *MEASURES, "logistic", "means", right={*MEASURES, "logistic", "means"})
    for layer in answer.layers:
        _layer_rows(made, layer, answer)
    for candidate in answer.multi_layer:
        made.add_row(
            f"best of {candidate.m} layer{'s' if (candidate.m or 0) > 1 else ''}", *cells_of(candidate.metrics)
        )
    made.add_row(f"length: {answer.length.rule}", *cells_of(answer.length.metrics), style="dim")
    made.add_row("always positive", *cells_of(answer.trivial), style="dim")
    OUT.print(made)
    OUT.print(
        f"oracle, chosen on the held-out samples: F1 {answer.oracle.f1:.3f} with {answer.oracle.sae}, k {answer.oracle.k}. "
        "logistic, means: F1 of trained heads on the same features. "
        "d: largest difference of firing rates; *: the layer where it is largest.",
        style="dim",
        markup=False,
    )
    _features(next(layer for layer in answer.layers if layer.sae == answer.top1_diff))
    _efficiency(answer)
    OUT.print(
        f"\nChosen (top1-diff layer, k by F1 on the discovery part): {answer.top1_diff}, k {answer.chosen.k}",
        style="bold",
        markup=False,
    )
    verdict = _against_trivial(answer.chosen, answer.trivial)
    if verdict:
        OUT.print(verdict, style="yellow")
    footnote(answer.provenance.pool, answer.provenance.mask, answer.provenance.snapshot)


def _layer_rows(made: Table, layer: LayerDiscovery, answer: DiscoverAnswer) -> None:
    star = "*" if layer.sae == answer.top1_diff else ""
    made.add_row(Text(f"layer {layer.layer}{star}, d {layer.top1_difference:.3f}", style="bold cyan"))
    for rule in layer.rules:
        heads = {head.name: f"{head.metrics.f1.value or 0:.3f}" for head in rule.baselines}
        cells = (*cells_of(rule.metrics), heads.get("logistic", ""), heads.get("difference_of_means", ""))
        made.add_row(f"  k {rule.k}", *cells)
    whole = {head.name: f"{head.metrics.f1.value or 0:.3f}" for head in layer.all_features}
    if whole:
        n = layer.all_features[0].n_features
        cells = (*[""] * len(MEASURES), whole.get("logistic", ""), whole.get("difference_of_means", ""))
        made.add_row(f"  all {n:,} features", *cells)


def _features(layer: LayerDiscovery) -> None:
    OUT.print(Text(f"\nFeatures of {layer.sae}", style="bold"))
    numbers = ("positive", "negative", "difference", "95 %", "q", "held out")
    made = table("feature", *numbers, "label", right={"feature", *numbers})
    for each in layer.features:
        made.add_row(
            str(each.index),
            f"{each.rates['positive']:.1%}",
            f"{each.rates['negative']:.1%}",
            f"{each.difference:+.3f}",
            f"{each.interval[0]:+.2f} to {each.interval[1]:+.2f}",
            f"{each.q_value:.1g}",
            f"{each.held_out_difference:+.3f}",
            shown(each.label or ""),
        )
    OUT.print(made)


def _efficiency(answer: DiscoverAnswer) -> None:
    if not answer.efficiency:
        return
    OUT.print(Text("\nWith less discovery data", style="bold"))
    numbers = ("share", "samples", "F1", "range", "of full", "oracle")
    made = table(*numbers, right=set(numbers))
    for point in answer.efficiency:
        made.add_row(
            f"{point.share:.0%}",
            f"{sum(point.n.values()):,}",
            f"{point.f1:.3f}",
            f"{point.f1_range[0]:.3f} to {point.f1_range[1]:.3f}",
            "–" if point.relative is None else f"{point.relative:.0%}",
            f"{point.f1_oracle:.3f}",
        )
    OUT.print(made)


def show_transfer(answer: TransferAnswer) -> None:
    OUT.print(Text("F1 of the row's rule on the held-out samples of the column", style="bold"))
    heads = [f"{place:>2}" for place in range(1, len(answer.names) + 1)]
    made = table("discovered on", *heads, "others", "rule", right={*heads, "others"})
    for place, (name, source, row) in enumerate(zip(answer.names, answer.discovered, answer.f1, strict=True), start=1):
        cells = [heat(cell.value if cell is not None else None) for cell in row]
        rule = f"layer {parse_sae(source.chosen.saes[0]).layer}, k {source.chosen.k}" if source.chosen else "none"
        made.add_row(f"{place:>2} {shown(name)}", *cells, number_of(source.macro_f1), rule)
    made.add_row("always positive", *(heat(value) for value in answer.trivial_f1), "", "", style="dim")
    OUT.print(made)
    OUT.print(
        "others: mean over the other columns. Layer by top1-diff and k by F1, both on the row's discovery part.",
        style="dim",
    )
    footnote(answer.provenance.pool, answer.provenance.mask, answer.provenance.snapshot)


def _against_trivial(chosen: Candidate, trivial: Metrics) -> str | None:
    """A warning where the rule's interval does not leave the trivial predictor behind."""
    low = chosen.metrics.f1.interval
    if low is None or trivial.f1.value is None or low[0] > trivial.f1.value:
        return None
    return f"Its F1 is not clearly above that of calling everything positive ({trivial.f1.value:.3f}): look at accuracy and precision."
