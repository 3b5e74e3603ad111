"""`scopebase evaluation import | list | remove | redundancy | similarity`, `preservation` and `failures`: features beside scores."""

from __future__ import annotations

import getpass
import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from schema.errors import InputError
from schema.wire.evaluations import Match, PreservationRequest
from scopebase.cli.answers import library
from scopebase.cli.console import OUT, print_json
from scopebase.cli.options import AsOfOption, Home, Json, MinSamplesOption, PoolOption, SaeOption, wants_json
from scopebase.cli.scores import (
    show_evaluations,
    show_failures,
    show_performance,
    show_preservation,
    show_report,
    show_similarity,
)
from scopebase.cli.suite import CountOption, CoverageOption, WeightsOption

if TYPE_CHECKING:
    pass

app = typer.Typer(help="Evaluation results: import them, and ask what features tell of them.", no_args_is_help=True)

MetricOption = Annotated[
    str | None, typer.Option("--metric", help="May be left out where there is one.", show_default=False)
]
EvaluatedOption = Annotated[
    str | None, typer.Option("--evaluated", help="The model that was evaluated.", show_default=False)
]
DrawsOption = Annotated[int, typer.Option("--draws", min=20, max=2000, help="Random subsets of every size.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Of the random subsets.")]
Dataset = Annotated[str, typer.Argument(help="NAME or NAME@VERSION.")]
Datasets = Annotated[list[str], typer.Argument(help="Three or more datasets.")]


@app.command("import")
def import_(
    dataset: Dataset,
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="lm-eval samples, Inspect logs, or CSV or JSONL of id and score."),
    ],
    metric: Annotated[str, typer.Option("--metric", help="Such as acc, or exact_match,strict-match.")],
    evaluated: EvaluatedOption = None,
    match: Annotated[Match, typer.Option("--match", help="What joins rows and samples.")] = "auto",
    author: Annotated[str | None, typer.Option("--author", help="Who imports; the OS user unless given.")] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Imports per-sample scores of an evaluated model; several files are parts of one evaluation."""
    from api.services.evaluations.files import read_file
    from api.services.evaluations.results import evaluated_in, import_scores

    read = [read_file(path, metric) for path in files]
    name = evaluated or evaluated_in(read)
    with library(home) as books:
        report = import_scores(books, dataset, name, metric, read, author or getpass.getuser(), match)
    if wants_json(json):
        print_json(report)
    else:
        show_report(report)


@app.command("list")
def list_(
    dataset: Annotated[str | None, typer.Argument(help="Only this dataset's.", show_default=False)] = None,
    evaluated: EvaluatedOption = None,
    metric: MetricOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000)] = 50,
    cursor: Annotated[
        str | None, typer.Option("--cursor", help="Where the next page begins.", show_default=False)
    ] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Imported evaluations, oldest first."""
    from api.services.evaluations.results import list_evaluations

    with library(home) as books:
        page = list_evaluations(books, dataset, evaluated, metric, limit, cursor)
    if wants_json(json):
        print_json(page)
    else:
        show_evaluations(page)


@app.command("remove")
def remove(
    evaluation: Annotated[int, typer.Argument(help="Its id; 'scopebase evaluation list' shows them.")],
    author: Annotated[str | None, typer.Option("--author", help="Who removes; the OS user unless given.")] = None,
    home: Home = None,
) -> None:
    """Removes an evaluation and its scores."""
    from api.services.evaluations.results import remove_evaluation

    with library(home) as books:
        remove_evaluation(books, evaluation, author or getpass.getuser())
    OUT.print(f"evaluation {evaluation} removed")


@app.command("redundancy")
def redundancy(
    datasets: Datasets,
    sae: SaeOption = None,
    metric: MetricOption = None,
    pool: PoolOption = "any",
    draws: DrawsOption = 200,
    seed: SeedOption = 0,
    as_of: AsOfOption = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Does feature redundancy tell how early samples rank the models, and better than size does?"""
    from api.services.evaluations.performance import performance_redundancy

    with library(home) as books:
        answer = performance_redundancy(books, sae, datasets, metric, pool, draws, seed, as_of)
    if wants_json(json):
        print_json(answer)
    else:
        show_performance(answer)


@app.command("similarity")
def similarity(
    datasets: Datasets,
    sae: SaeOption = None,
    metric: MetricOption = None,
    control: Annotated[
        str | None, typer.Option("--control", help="A dataset whose means are held fixed.", show_default=False)
    ] = None,
    pool: PoolOption = "any",
    min_samples: MinSamplesOption = 1,
    seed: SeedOption = 0,
    as_of: AsOfOption = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Do datasets that share features rank models alike?"""
    from api.services.evaluations.performance import performance_similarity

    with library(home) as books:
        answer = performance_similarity(books, sae, datasets, metric, control, pool, min_samples, seed, as_of)
    if wants_json(json):
        print_json(answer)
    else:
        show_similarity(answer)


def preservation(
    dataset: Dataset,
    metric: MetricOption = None,
    sae: SaeOption = None,
    coverage: CoverageOption = None,
    n: CountOption = None,
    samples: Annotated[
        Path | None,
        typer.Option(
            "--samples", help="A subset of your own: a JSONL with ids, as 'subset --out' writes.", show_default=False
        ),
    ] = None,
    weights: WeightsOption = "uniform",
    pool: PoolOption = "any",
    draws: DrawsOption = 200,
    seed: SeedOption = 0,
    home: Home = None,
    json: Json = False,
) -> None:
    """Does a subset of a dataset keep the order of the evaluated models?"""
    from api.services.evaluations.preservation import rank_preservation

    request = PreservationRequest.model_construct(
        dataset=dataset,
        metric=metric,
        samples=None if samples is None else _ids(samples),
        coverage=coverage,
        n=n,
        sae=sae,
        pool=pool,
        weights=weights,
        draws=draws,
        seed=seed,
    )
    with library(home) as books:
        answer = rank_preservation(books, request)
    if wants_json(json):
        print_json(answer)
    else:
        show_preservation(answer)


def _ids(path: Path) -> list[str]:
    """Ids of a file of rows, or of plain lines."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        ids = [str(json_module.loads(line)["id"]) if line.startswith("{") else line for line in lines]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError) as error:
        raise InputError(f"{path}: expected an id a line, or JSON objects with 'id'") from error
    if not ids:
        raise InputError(f"{path} has no ids")
    return ids


def failures(
    dataset: Dataset,
    evaluated: EvaluatedOption = None,
    metric: MetricOption = None,
    sae: SaeOption = None,
    pool: PoolOption = "any",
    min_support: Annotated[
        int, typer.Option("--min-support", min=1, help="Scored samples that must fire a feature, and that must not.")
    ] = 10,
    direction: Annotated[
        Literal["lower", "higher", "both"],
        typer.Option("--direction", help="Which way the scores of firing samples go."),
    ] = "lower",
    sort: Annotated[Literal["q_value", "difference"], typer.Option("--sort", help="What comes first.")] = "q_value",
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Features shown.")] = 10,
    cursor: Annotated[
        str | None, typer.Option("--cursor", help="Where the next page begins.", show_default=False)
    ] = None,
    samples: Annotated[int, typer.Option("--samples", help="Sample ids a feature.")] = 2,
    as_of: AsOfOption = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Where a model fails: features whose samples it scores lower than the others."""
    from api.services.evaluations.failures import failures as ask

    with library(home) as books:
        answer = ask(
            books, sae, dataset, evaluated, metric, pool, min_support, direction, sort, limit, cursor, samples, as_of
        )
    if wants_json(json):
        print_json(answer)
    else:
        show_failures(answer)
