"""What the evaluation commands print."""

from __future__ import annotations

from rich.text import Text

from schema.wire.base import Page
from schema.wire.evaluations import (
    Estimate,
    EvaluationItem,
    EvaluationReport,
    FailuresAnswer,
    PerformanceAnswer,
    PreservationAnswer,
    SimilarityAnswer,
)
from scopebase.cli.answers import footnote
from scopebase.cli.console import OUT, shown, table

MODELS = 12
"""Models of a panel shown in the terminal."""
PAIRS = 15
NAMES = {
    "spearman": "Spearman (R, feature redundancy)",
    "pearson_log": "Pearson (R, log feature redundancy)",
    "spearman_n": "Spearman (R, N)",
    "spearman_n_over_f": "Spearman (R, N / |F|)",
    "partial_spearman": "Spearman given N",
    "partial_pearson": "Pearson given log N",
}


def show_report(report: EvaluationReport) -> None:
    """What an import did."""
    made = report.evaluation
    OUT.print(
        f"{report.state}: {shown(made.evaluated)} on {made.dataset}, {shown(made.metric)} {made.mean:.3f} over "
        f"{made.n_scores:,} of {made.n_samples:,} samples (evaluation {made.id})",
        markup=False,
    )
    OUT.print(f"{report.n_matched:,} of {report.n_rows:,} rows matched by {report.matched_by}", style="dim")
    if report.n_unmatched:
        OUT.print("left out: " + ", ".join(shown(key) for key in report.unmatched), style="dim", markup=False)


def show_evaluations(page: Page[EvaluationItem]) -> None:
    made = table("id", "dataset", "model", "metric", "mean", "scores", right={"id", "mean", "scores"})
    for item in page.data:
        counted = (
            f"{item.n_scores:,}" if item.n_scores == item.n_samples else f"{item.n_scores:,} of {item.n_samples:,}"
        )
        made.add_row(str(item.id), item.dataset, shown(item.evaluated), shown(item.metric), f"{item.mean:.3f}", counted)
    OUT.print(made)
    if page.next_cursor:
        OUT.print(f"the next page: --cursor {page.next_cursor}", style="dim", markup=False)


def show_preservation(answer: PreservationAnswer) -> None:
    OUT.print(
        Text(
            f"{len(answer.models)} models on {answer.dataset}, {shown(answer.metric)} over {answer.n_samples:,} samples "
            f"that all have scores of",
            style="bold",
        )
    )
    if answer.tau is not None and answer.random is not None:
        low, middle, high = answer.random.quantiles
        OUT.print(f"subset: {answer.subset_n:,} of them, {answer.subset}", markup=False)
        OUT.print(
            Text.assemble(
                "Kendall's tau  ", (_estimate(answer.tau), "bold"), f"  pairs in order {answer.pairs_kept:.1%}"
            )
        )
        OUT.print(
            f"{answer.random.draws} random subsets of {answer.subset_n:,}: mean {answer.random.mean:.3f}, median {middle:.3f}, "
            f"95 % from {low:.3f} to {high:.3f}; {answer.random.share_below:.0%} of them are below the subset",
            markup=False,
        )
    made = table("model", "mean", "on the subset", right={"mean", "on the subset"})
    for model in answer.models[:MODELS]:
        made.add_row(
            shown(model.evaluated), f"{model.mean:.3f}", "" if model.subset_mean is None else f"{model.subset_mean:.3f}"
        )
    OUT.print(made)
    if len(answer.models) > MODELS:
        OUT.print(f"and {len(answer.models) - MODELS} more", style="dim")
    points = [point for i, point in enumerate(answer.curve) if i % 4 == 0 or point is answer.curve[-1]]
    OUT.print("tau of n random samples: " + "  ".join(f"{p.n:,}: {p.tau:.2f}" for p in points), markup=False)
    OUT.print(
        f"performance redundancy R {answer.redundancy:.4f} (standard error {answer.redundancy_error:.4f} over "
        f"{answer.draws} draws, seed {answer.seed})"
    )
    OUT.print("tau: tau-b, 95 % interval by bootstrap over the models", style="dim")


def show_performance(answer: PerformanceAnswer) -> None:
    columns = ("samples N", "models", "R", "features |F|", "redundancy", "N / |F|")
    made = table("dataset", *columns, right=set(columns))
    for item in answer.data:
        made.add_row(
            item.dataset,
            f"{item.n_samples:,}",
            str(item.n_models),
            f"{item.performance_redundancy:.3f}",
            f"{item.n_features:,}",
            _number(item.feature_redundancy),
            _number(item.baseline_n_over_f),
        )
    OUT.print(made)
    _correlations(answer.correlations, {name: NAMES.get(name, name) for name in answer.correlations})
    OUT.print(f"interval: {answer.interval}", style="dim", markup=False)
    footnote(answer.provenance, f"{answer.metric}, {answer.draws} draws, seed {answer.seed}")


def show_similarity(answer: SimilarityAnswer) -> None:
    """The pairs that share most first."""
    given = () if answer.control is None else (f"given {answer.control}",)
    made = table("pair", "overlap_min", "similarity", *given, right={"overlap_min", "similarity", *given})
    pairs = sorted(answer.data, key=lambda pair: -(pair.overlap_min or 0.0))
    for pair in pairs[:PAIRS]:
        partial = () if pair.partial is None else (_number(pair.partial.value),)
        made.add_row(" · ".join(pair.datasets), _number(pair.overlap_min), _number(pair.similarity.value), *partial)
    OUT.print(made)
    if len(pairs) > PAIRS:
        OUT.print(f"and {len(pairs) - PAIRS} more pairs (--json has all)", style="dim")
    names = {
        name: f"{'Pearson' if 'pearson' in name else 'Spearman'} (overlap_min, similarity{' given' if 'partial' in name else ''})"
        for name in answer.correlations
    }
    _correlations(answer.correlations, names)
    OUT.print(f"interval: {answer.interval}; p: Mantel's permutation of the datasets", style="dim", markup=False)
    footnote(answer.provenance, f"{answer.metric}, {len(answer.models)} models, seed {answer.seed}")


def show_failures(answer: FailuresAnswer) -> None:
    OUT.print(
        Text(
            f"{shown(answer.evaluated)} on {next(iter(answer.provenance.runs))}: {shown(answer.metric)} {answer.mean:.3f} over "
            f"{answer.n_scored:,} samples ({answer.provenance.sae})",
            style="bold",
        )
    )
    columns = ("feature", "firing", "score", "others", "difference", "q")
    made = table(*columns, "label, samples", right=set(columns))
    for item in answer.data:
        low, high = item.interval
        made.add_row(
            str(item.index),
            f"{item.n_firing:,}",
            f"{item.mean_firing:.3f}",
            f"{item.mean_silent:.3f}",
            f"{item.difference:+.3f} ({low:+.2f} to {high:+.2f})",
            f"{item.q_value:.1g}",
            Text("  ".join(part for part in (shown(item.label or ""), *map(shown, item.samples)) if part)),
        )
    OUT.print(made)
    if answer.next_cursor:
        OUT.print(f"{answer.total:,} in all; the next page: --cursor {answer.next_cursor}", style="dim", markup=False)
    test = "Fisher's exact test" if answer.test == "fisher" else "Mann-Whitney"
    footnote(
        answer.provenance,
        f"q: {test}, Benjamini-Hochberg over the {answer.n_tested:,} features with {answer.min_support} firing and as many others",
    )


def _correlations(found: dict[str, Estimate], names: dict[str, str]) -> None:
    made = table("correlation", "value", "n", "p", right={"value", "n", "p"})
    for name, estimate in found.items():
        p = "–" if estimate.p_value is None else f"{estimate.p_value:.2g}"
        made.add_row(names[name], _estimate(estimate), str(estimate.n), p)
    OUT.print(made)


def _estimate(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return _number(estimate.value)
    return f"{_number(estimate.value)} ({estimate.low:.2f} to {estimate.high:.2f})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
