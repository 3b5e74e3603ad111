"""`scopebase subset | suite`: smaller datasets, and smaller suites of them."""

from __future__ import annotations

import json as json_module
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from schema.errors import WorkFailed
from schema.wire.suite import Curve, SubsetAnswer, SuiteAnswer, SuiteRequest, Weights
from scopebase.cli.answers import footnote, library
from scopebase.cli.console import OUT, print_json, shown, table
from scopebase.cli.options import AsOfOption, Home, Json, MinSamplesOption, PoolOption, SaeOption, wants_json
from scopebase.cli.parts import PART, WhereOption, read_part, read_parts

if TYPE_CHECKING:
    from api.services.library import Library
    from api.services.suite.subset import Selection

BARS = 20
IDS = 12
"""Sample ids shown in the terminal; --out and --json have all."""

CoverageOption = Annotated[
    float | None,
    typer.Option("--coverage", help="Share of the footprint to keep; 0.95 unless given.", show_default=False),
]
CountOption = Annotated[
    int | None, typer.Option("--n", min=1, help="The best so many samples instead.", show_default=False)
]
WeightsOption = Annotated[
    Weights,
    typer.Option("--weights", help="What a feature counts: 1, 1 / its samples, or the sum of its activations."),
]


def subset(
    dataset: Annotated[str, typer.Argument(help=PART)],
    where: WhereOption = None,
    sae: SaeOption = None,
    coverage: CoverageOption = None,
    n: CountOption = None,
    weights: WeightsOption = "uniform",
    pool: PoolOption = "any",
    min_samples: MinSamplesOption = 1,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the chosen rows to this JSONL file.", show_default=False)
    ] = None,
    as_of: AsOfOption = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """The smallest set of samples found that keeps a share of a dataset's or a slice's footprint."""
    from api.services.suite.subset import answer_of, select_subset

    part = read_part(dataset, where)
    with library(home) as books:
        chosen = select_subset(books, sae, part, coverage, pool, min_samples, weights, n, as_of)
        answer = answer_of(books, chosen)
        if out is not None:
            _write_rows(books, chosen, out)
    if wants_json(json):
        print_json(answer)
    else:
        show_subset(answer, out)


def suite(
    datasets: Annotated[list[str], typer.Argument(help=f"Two or more that are run together. {PART}")],
    sae: SaeOption = None,
    pool: PoolOption = "any",
    min_samples: MinSamplesOption = 1,
    low: Annotated[
        float, typer.Option("--low", min=0, max=1, help="Apart is what no other dataset covers so much of.")
    ] = 0.5,
    as_of: AsOfOption = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Which datasets or slices of a suite the others cover, and in what order to drop them."""
    from api.services.suite.advice import advise

    request = SuiteRequest.model_construct(
        datasets=read_parts(datasets), sae=sae, pool=pool, min_samples=min_samples, low=low, as_of=as_of
    )
    with library(home) as books:
        answer = advise(books, request)
    if wants_json(json):
        print_json(answer)
    else:
        show_suite(answer)


def _write_rows(books: Library, chosen: Selection, out: Path) -> None:
    """The chosen rows as they came; the file is there as a whole or not at all."""
    from api.services.suite.subset import sample_records

    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            for record in sample_records(books, chosen.source, chosen.found.ordinals):
                file.write(json_module.dumps(record, ensure_ascii=False) + "\n")
        part.replace(out)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise WorkFailed(f"{out} cannot be written: {error.strerror}; name another file with --out") from error


def show_subset(answer: SubsetAnswer, out: Path | None) -> None:
    count, whole = len(answer.samples), answer.dataset.n_samples
    unit = "" if answer.weights == "uniform" else f" (weights: {answer.weights})"
    OUT.print(
        Text.assemble(
            (
                f"{count:,} of {answer.dataset.name}'s {whole:,} samples ({count / whole:.1%}) keep {answer.coverage:.1%} "
                f"of its footprint{unit}",
                "bold",
            ),
            f"\n{answer.n_features:,} of {answer.dataset.n_features:,} features",
        )
    )
    made = table("", "samples", "coverage", right={"samples", "coverage"})
    made.add_row("chosen", f"{count:,}", f"{answer.coverage:.1%}", _bars(answer.curve))
    made.add_row("random, the same number", f"{count:,}", f"{answer.random_coverage:.1%}", _bars(answer.random_curve))
    made.add_row("random, the same coverage", f"{answer.random_n:,}", f"{answer.coverage:.1%}")
    OUT.print(made)
    if answer.optimum_at_least is not None:
        OUT.print(
            f"No set of fewer than {answer.optimum_at_least:,} samples keeps as much; greedy is proved to take at most "
            f"{answer.guarantee:.2f} times the fewest.",
            style="dim",
        )
    else:
        OUT.print(
            f"No {count:,} samples keep more than {answer.coverage_at_most:.1%}; greedy is proved to keep at least "
            f"{answer.guarantee:.0%} of the best.",
            style="dim",
        )
    if out is not None:
        OUT.print(f"rows written to {out}", markup=False)
    else:
        more = f" … and {count - IDS:,} more (--out FILE writes their rows)" if count > IDS else ""
        OUT.print("samples: " + "  ".join(shown(id_) for id_ in answer.samples[:IDS]) + more, markup=False)
    footnote(answer.provenance, "random: expected, in closed form")


def _bars(points: Curve) -> Text:
    """A curve as at most BARS bars."""
    step = max(1.0, len(points) / BARS)
    shares = [points[int(place * step)][1] for place in range(int(len(points) / step))]
    return Text("".join("▁▂▃▄▅▆▇█"[min(7, int(share * 8))] for share in shares), style="cyan")


def show_suite(answer: SuiteAnswer) -> None:
    OUT.print(
        Text(f"What each dataset adds to the other {len(answer.data) - 1} ({answer.provenance.sae})", style="bold")
    )
    heads = ("samples", "features", "unique", "covered", "equal n", "itself")
    made = table("", *heads, "nearest", right=set(heads))
    for item in answer.data:
        nearest = f"{item.nearest or '–'} {_share(item.nearest_rarefied).lstrip('0')}"
        counted = (f"{item.dataset.n_samples:,}", f"{item.dataset.n_features:,}", f"{item.n_unique:,}")
        shares = (_share(item.covered), _share(item.covered_rarefied), _share(item.self_rarefied))
        made.add_row(item.dataset.name, *counted, *shares, nearest)
    OUT.print(made)
    OUT.print(Text("\nDrop in this order: the least loss first", style="bold"))
    steps = table(
        "drop", "lost", "remains", "at random", "samples left", right={"lost", "remains", "at random", "samples left"}
    )
    for drop in answer.drops:
        steps.add_row(
            drop.dataset, f"{drop.lost:,}", f"{drop.coverage:.2%}", f"{drop.random_coverage:.2%}", f"{drop.n_samples:,}"
        )
    OUT.print(steps)
    apart = [item.dataset.name for item in answer.data if item.apart]
    OUT.print(f"{answer.keep} remains, of {answer.n_features:,} features in all.", markup=False)
    OUT.print(f"Apart, no other one covers {answer.low:.0%} of it: {', '.join(apart) or 'none'}.", markup=False)
    OUT.print(
        f"covered: by all others together; equal n, nearest: expected of {answer.rarefied_n:,} random samples of each; "
        "itself: what one such draw covers of another.",
        style="dim",
        markup=False,
    )
    footnote(
        answer.provenance,
        f"footprint: fires in at least {answer.min_samples} sample{'s' if answer.min_samples > 1 else ''}",
    )


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
