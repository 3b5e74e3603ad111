"""`scopebase overlap | diff | redundancy`: the questions, answered from the home itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer
from rich.padding import Padding
from rich.text import Text

from schema.records import Sort
from schema.wire.base import Provenance
from schema.wire.questions import DiffAnswer, DiffItem, Matrix, OverlapAnswer, RedundancyAnswer, SampleProof
from scopebase.cli.console import OUT, heat, print_json, shown, table
from scopebase.cli.options import AsOfOption, Home, Json, MinSamplesOption, PoolOption, SaeOption, settings, wants_json
from scopebase.cli.parts import PART, read_parts

if TYPE_CHECKING:
    from api.services.library import Library

SNIPPET = 60
"""Characters shown on either side of the strongest token."""


@contextmanager
def library(home: Path | None) -> Iterator[Library]:
    """The home, opened for questions."""
    from api.services.library import Library
    from schema.home import open_home

    found = open_home(settings(home))
    try:
        yield Library(found)
    finally:
        found.close()


def overlap(
    datasets: Annotated[list[str], typer.Argument(help="Two or more datasets: NAME or NAME@VERSION.")],
    sae: SaeOption = None,
    pool: PoolOption = "any",
    min_samples: MinSamplesOption = 1,
    as_of: AsOfOption = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Matrix of covered shares: how much of each dataset's footprint the others cover."""
    from api.services.questions.overlap import overlap as ask

    with library(home) as books:
        answer = ask(books, sae, datasets, pool, min_samples, as_of)
    if wants_json(json):
        print_json(answer)
    else:
        show_overlap(answer)


def diff(
    covered_by: Annotated[str, typer.Argument(metavar="A", help="The dataset that covers.")],
    not_covered_by: Annotated[str, typer.Argument(metavar="B", help="The one that does not.")],
    sae: SaeOption = None,
    pool: PoolOption = "any",
    min_samples: MinSamplesOption = 1,
    sort: Annotated[Sort, typer.Option("--sort", help="What comes first.")] = "rate_difference",
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Features shown.")] = 10,
    cursor: Annotated[
        str | None, typer.Option("--cursor", help="Where the next page begins.", show_default=False)
    ] = None,
    samples: Annotated[int, typer.Option("--samples", help="Proving samples a feature.")] = 2,
    as_of: AsOfOption = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Features that A covers and B does not, ranked, with the samples that prove each."""
    from api.services.questions.diff import diff as ask

    with library(home) as books:
        answer = ask(books, sae, covered_by, not_covered_by, pool, min_samples, sort, limit, cursor, samples, as_of)
    if wants_json(json):
        print_json(answer)
    else:
        show_diff(answer)


def redundancy(
    datasets: Annotated[list[str], typer.Argument(help=f"One or more. {PART}")],
    sae: SaeOption = None,
    pool: PoolOption = "any",
    as_of: AsOfOption = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Feature redundancy of each dataset or slice, beside the baselines it must beat."""
    from api.services.questions.redundancy import redundancies as ask

    with library(home) as books:
        answer = ask(books, sae, read_parts(datasets), pool, as_of)
    if wants_json(json):
        print_json(answer)
    else:
        show_redundancy(answer)


def show_overlap(answer: OverlapAnswer) -> None:
    """The matrix, and below it what sampling lets one expect."""
    names = [*answer.provenance.runs]
    OUT.print(Text(f"Share of the row's footprint that the column covers ({answer.provenance.sae})", style="bold"))
    _matrix(answer, names, answer.overlap)
    if len({d.n_samples for d in answer.datasets}) > 1:
        OUT.print(
            Text(f"\nThe same at equal size: expected of {answer.rarefied_n:,} random samples of each", style="bold")
        )
        _matrix(answer, names, answer.rarefied)
        OUT.print(
            "The diagonal is what one draw of a dataset covers of another: what is missing there, sampling took.",
            style="dim",
        )
    footnote(
        answer.provenance,
        f"footprint: fires in at least {answer.min_samples} sample{'s' if answer.min_samples > 1 else ''}",
    )


def _matrix(answer: OverlapAnswer, names: list[str], shares: Matrix) -> None:
    wide = max(map(len, names)) + 22 + sum(max(6, len(name)) + 2 for name in names) > OUT.width
    heads = [f"{place:>4}" for place in range(1, len(names) + 1)] if wide else names
    made = table("", "samples", "features", *heads, right={"samples", "features", *heads})
    for place, (dataset, row) in enumerate(zip(answer.datasets, shares, strict=True), start=1):
        name = f"{place:>2} {names[place - 1]}" if wide else names[place - 1]
        made.add_row(name, f"{dataset.n_samples:,}", f"{dataset.n_features:,}", *(heat(share) for share in row))
    OUT.print(made)


def show_diff(answer: DiffAnswer) -> None:
    a, b = answer.covered_by, answer.not_covered_by
    share = f" ({answer.total / a.n_features:.1%})" if a.n_features else ""
    OUT.print(
        Text.assemble(
            (
                f"{a.name} covers {a.n_features:,} features, {answer.total:,}{share} of them are not covered by {b.name}",
                "bold",
            ),
            f"\n{a.name}: {a.n_samples:,} samples · {b.name}: {b.n_samples:,} samples, {b.n_features:,} features",
        )
    )
    if not answer.data:
        OUT.print("No feature to show.")
    for item in answer.data:
        _diff_item(item, list(item.counts))
    if answer.next_cursor:
        OUT.print(f"\n{answer.total:,} in all; the next page: --cursor {answer.next_cursor}", style="dim", markup=False)
    footnote(
        answer.provenance,
        f"q: Fisher's exact test, Benjamini-Hochberg over the {answer.n_tested:,} features that fire in either",
    )


def _diff_item(item: DiffItem, names: list[str]) -> None:
    low, high = item.interval
    OUT.print(
        Text.assemble(
            ("\n" + str(item.index).rjust(7), "bold cyan"),
            f"  {names[0]} {item.rates[names[0]]:.1%}  {names[1]} {item.rates[names[1]]:.1%}",
            (f"  ({low:+.0%} to {high:+.0%})  q {item.q_value:.1g}  max {item.max_activation:.3g}", "dim"),
            "  ",
            label_text(item),
        )
    )
    if item.firing_tokens:
        OUT.print(
            Padding(
                Text("fires on " + "  ".join(shown(token) for token in item.firing_tokens), style="green"), (0, 0, 0, 9)
            )
        )
    for sample in item.samples:
        OUT.print(Padding(snippet(sample), (0, 0, 0, 9)))


class Labelled(Protocol):
    """An item that shows a feature's label."""

    @property
    def label(self) -> str | None: ...

    @property
    def label_source(self) -> str | None: ...


def label_text(item: Labelled) -> Text:
    """The label; what only the built-in describer says is marked, so that nobody takes it for a person's word."""
    if item.label is None:
        return Text()
    if item.label_source == "describer":
        return Text(f"(described) {shown(item.label)}", style="dim")
    return Text(shown(item.label), style="italic")


def snippet(sample: SampleProof) -> Text:
    """The text around a sample's strongest token, its firing tokens highlighted by strength."""
    if not sample.tokens:
        return Text(f"{shown(sample.id)}  {shown(sample.text[: 2 * SNIPPET])}", style="dim")
    strongest = max(sample.tokens, key=lambda token: token.activation)
    begin, end = max(0, strongest.start - SNIPPET), min(len(sample.text), strongest.end + SNIPPET)
    line = Text.assemble((f"{shown(sample.id)}  ", "dim"))
    line.append("…" if begin else "", style="dim")
    at = begin
    for token in sorted(sample.tokens, key=lambda token: token.start):
        if token.start < at or token.end > end:
            continue
        line.append(shown(sample.text[at : token.start]))
        strong = token.activation > strongest.activation / 2
        line.append(
            shown(sample.text[token.start : token.end]),
            style="bold black on green" if strong else "black on dark_sea_green",
        )
        at = token.end
    line.append(shown(sample.text[at:end]))
    return line.append("…" if end < len(sample.text) else "", style="dim")


def show_redundancy(answer: RedundancyAnswer) -> None:
    columns = ("samples N", "features |F|", "redundancy", "N / |F|")
    made = table("dataset", *columns, "coverage by n samples", right=set(columns))
    for item in answer.data:
        ratio = "–" if item.baseline_n_over_f is None else f"{item.baseline_n_over_f:.3f}"
        value = "–" if item.redundancy is None else f"{item.redundancy:.3f}"
        made.add_row(item.dataset, f"{item.n_samples:,}", f"{item.n_features:,}", value, ratio, curve(item.curve))
    OUT.print(made)
    OUT.print(
        "Redundancy always lies between half of N / |F| and N / |F|: "
        "compare rankings with those of N and N / |F| before reading much into it.",
        style="dim",
    )
    footnote(answer.provenance, "curve: n from 1 to N in even steps of log n, in closed form")


def curve(points: list[tuple[int, float]]) -> Text:
    """A coverage curve as a row of bars, and the n that covers half."""
    if not points:
        return Text("–")
    bars = "".join("▁▂▃▄▅▆▇█"[min(7, int(share * 8))] for _, share in points)
    half = next(n for n, share in points if share >= 0.5 or n == points[-1][0])
    return Text.assemble((bars, "cyan"), f"  half at n = {half:,}")


def footnote(provenance: Provenance, more: str) -> None:
    OUT.print(
        f"pool: {provenance.pool} · mask: {provenance.mask} · {more} · snapshot {provenance.snapshot}",
        style="dim",
        markup=False,
    )
