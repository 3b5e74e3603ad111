"""What `scopebase query` prints."""

from __future__ import annotations

from rich.padding import Padding
from rich.text import Text

from schema.wire.query import FeatureItem, FeatureQueryAnswer
from scopebase.cli.answers import label_text, snippet
from scopebase.cli.console import OUT, shown, table

WIDE = 4
"""Columns of rates that a terminal has room for."""
LABEL = 60
"""Characters of a label in a table."""


def show(answer: FeatureQueryAnswer) -> None:
    """The features as a table, or with samples one by one, and below it what the columns are."""
    comparison = answer.comparison
    OUT.print(
        Text.assemble(
            (f"{answer.total:,} of {answer.d_sae:,} features", "bold"),
            f" meet the condition; {answer.total_never_fire:,} of them fire in none of the datasets"
            f" ({answer.n_never_fire:,} of all do not)",
        )
    )
    names = [column.name for column in answer.columns]
    first = [comparison.a, comparison.b] if comparison else []
    names = [*first, *(name for name in names if name not in first)][:WIDE]
    heads = [f"{chr(65 + i)}" for i in range(len(names))]
    tests = ["A − B", "95 %", "lift", "q"] if comparison else []
    alike = ["alike", "q alike"] if comparison and comparison.length_control else []
    weights = ["weight"] if answer.sort == "weight" else []
    numbers = [*heads, *tests, *alike, *weights, "max"]
    made = table("feature", *numbers, "label", right=set(numbers))
    for item in answer.data:
        made.add_row(*_row(item, names, bool(tests), bool(alike), bool(weights)))
    if any(item.samples for item in answer.data):
        for item in answer.data:
            _with_samples(item, dict(zip(heads, names, strict=True)))
        OUT.print()
    elif answer.data:
        OUT.print(made)
    for head, name in zip(heads, names, strict=True):
        column = next(column for column in answer.columns if column.name == name)
        OUT.print(
            f"{head}: {shown(name)}, {column.n_samples:,} samples, {column.n_features:,} features",
            style="dim",
            markup=False,
        )
    if len(answer.columns) > WIDE:
        OUT.print(f"{len(answer.columns) - WIDE} more columns with --json", style="dim")
    if answer.next_cursor:
        OUT.print(f"the next page: --cursor {answer.next_cursor}", style="dim", markup=False)
    _footnote(answer)


def _row(item: FeatureItem, names: list[str], tested: bool, alike: bool, weight: bool) -> list[str | Text]:
    cells: list[str | Text] = [str(item.index), *(f"{item.rates[name]:.1%}" for name in names)]
    if tested and item.interval and item.rate_difference is not None:
        low, high = item.interval
        cells += [f"{item.rate_difference:+.1%}", f"{low:+.0%} {high:+.0%}", f"{item.lift:.3g}", f"{item.q_value:.1g}"]
    if alike and item.controlled:
        cells += [f"{item.controlled.rate_difference:+.1%}", f"{item.controlled.q_value:.1g}"]
    if weight:
        cells.append(f"{item.weight:.3g}")
    label = label_text(item)
    label.truncate(LABEL, overflow="ellipsis")
    return [*cells, f"{item.max_activation:.3g}", label]


def _with_samples(item: FeatureItem, columns: dict[str, str]) -> None:
    """One feature with its rates, and below it what proves it.

    Args:
        columns: letter -> column.
    """
    rates = "  ".join(f"{head} {item.rates[name]:.1%}" for head, name in columns.items())
    tested = "" if item.q_value is None else f"  lift {item.lift:.3g}  q {item.q_value:.1g}"
    OUT.print(
        Text.assemble(
            ("\n" + str(item.index).rjust(7), "bold cyan"),
            f"  {rates}",
            (f"{tested}  weight {item.weight:.3g}  max {item.max_activation:.3g}  ", "dim"),
            label_text(item),
        )
    )
    if item.firing_tokens:
        line = Text("fires on " + "  ".join(shown(token) for token in item.firing_tokens), style="green")
        OUT.print(Padding(line, (0, 0, 0, 9)))
    for sample in item.samples:
        OUT.print(Padding(snippet(sample), (0, 0, 0, 9)))


def _footnote(answer: FeatureQueryAnswer) -> None:
    made = answer.provenance
    notes = [f"pool: {made.pool}", f"mask: {made.mask}", f"by {answer.sort}"]
    if answer.comparison:
        notes.append(f"q over {answer.comparison.n_tested:,} features that fire in A or B")
        control = answer.comparison.length_control
        if control:
            notes.append(
                f"alike: {control.n_a:,} of A and {control.n_b:,} of B in {len(control.bands)} bands of length"
            )
    OUT.print(" · ".join([*notes, f"snapshot {made.snapshot}"]), style="dim", markup=False)
