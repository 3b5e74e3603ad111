"""Evaluation results, and what they say about datasets and features."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from api.deps import (
    Actor,
    AsOf,
    Books,
    Cursor,
    DatasetName,
    DatasetNames,
    Limit,
    MinSamples,
    PoolParam,
    SaeParam,
    needs,
)
from api.routes.suite import Budget, Coverage, WeightsParam
from api.routes.uploads import received
from api.services.evaluations.failures import MOST_SAMPLES, Direction, Order, failures
from api.services.evaluations.files import parse_rows, read_file
from api.services.evaluations.performance import performance_redundancy, performance_similarity
from api.services.evaluations.preservation import rank_preservation
from api.services.evaluations.results import evaluated_in, import_scores, list_evaluations, remove_evaluation
from schema.wire.base import Page
from schema.wire.evaluations import (
    EvaluationItem,
    EvaluationReport,
    EvaluationRequest,
    FailuresAnswer,
    Match,
    PerformanceAnswer,
    PreservationAnswer,
    PreservationRequest,
    SimilarityAnswer,
)

router = APIRouter(tags=["evaluations"])

_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_FILES: dict[str, Any] = {
    "application/x-ndjson": {"schema": {"type": "string"}, "example": '{"id": "gsm8k/1", "score": 1}\n'},
    "text/csv": {"schema": {"type": "string"}, "example": "id,score\ngsm8k/1,1\n"},
    "application/octet-stream": {**_BINARY, "example": "(an Inspect log, or any of the others packed with gzip)"},
}
Evaluated = Annotated[
    str | None, Query(max_length=200, description="The evaluated model; may be left out where there is one")
]
Metric = Annotated[str | None, Query(max_length=120, description="May be left out where there is one")]
Draws = Annotated[int, Query(ge=20, le=2000, description="Random subsets of every size")]
Seed = Annotated[int, Query(ge=0, le=1 << 31)]


@router.get("/evaluations", summary="Imported evaluation results")
def get_evaluations(
    library: Books,
    dataset: Annotated[str | None, Query(max_length=80)] = None,
    evaluated: Evaluated = None,
    metric: Metric = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[EvaluationItem]:
    """One item a model, dataset and metric, oldest first."""
    return list_evaluations(library, dataset, evaluated, metric, limit, cursor)


@router.post("/evaluations", summary="Import per-sample scores", dependencies=[needs("write")])
def post_evaluations(library: Books, actor: Actor, request: EvaluationRequest) -> EvaluationReport:
    """Scores of one model on one dataset. The same again change nothing; others take the place of the former."""
    file = parse_rows(request.rows, request.metric, request.source)
    return import_scores(library, request.dataset, request.evaluated, request.metric, [file], actor, request.match)


@router.post(
    "/evaluations/import",
    summary="Import a file of per-sample scores",
    dependencies=[needs("write")],
    openapi_extra={"requestBody": {"required": True, "content": _FILES}},
)
async def post_evaluation_file(
    request: Request,
    library: Books,
    actor: Actor,
    dataset: DatasetName,
    metric: Annotated[
        str, Query(min_length=1, max_length=120, description="Such as `acc`, or lm-eval's `exact_match,strict-match`")
    ],
    evaluated: Annotated[
        str | None,
        Query(
            max_length=200, description="The model that was evaluated; may be left out where the file is an Inspect log"
        ),
    ] = None,
    match: Annotated[Match, Query(description="What joins rows and samples")] = "auto",
    name: Annotated[
        str, Query(min_length=1, max_length=400, description="What the evaluation's `source` and errors call the file")
    ] = "the upload",
) -> EvaluationReport:
    """The body is the file as it was written: lm-eval samples, an Inspect log (JSON or .eval), CSV or JSONL of id and score; plain or
    gzip. The same scores again change nothing; others take the place of the former."""

    def taken(path: FilePath) -> EvaluationReport:
        file = read_file(path, metric, name)
        return import_scores(library, dataset, evaluated or evaluated_in([file]), metric, [file], actor, match)

    async with received(request) as path:
        return await run_in_threadpool(taken, path)


@router.delete(
    "/evaluations/{evaluation}", summary="Remove an evaluation", status_code=204, dependencies=[needs("write")]
)
def delete_evaluation(library: Books, actor: Actor, evaluation: Annotated[int, Path(ge=1, le=1 << 31)]) -> Response:
    """Removes the scores of one model on one dataset."""
    remove_evaluation(library, evaluation, actor)
    return Response(status_code=204)


@router.get("/rank-preservation", summary="Does a subset keep the order of the models?")
def get_rank_preservation(
    library: Books,
    dataset: DatasetName,
    metric: Metric = None,
    samples: Annotated[
        list[str] | None, Query(max_length=1000, description="Ids of the subset, once for each; POST takes more")
    ] = None,
    coverage: Coverage = None,
    n: Budget = None,
    sae: SaeParam = None,
    pool: PoolParam = "any",
    weights: WeightsParam = "uniform",
    draws: Draws = 200,
    seed: Seed = 0,
) -> PreservationAnswer:
    """Kendall's tau of a subset among random subsets of its size, and of random subsets of every size."""
    request = PreservationRequest(
        dataset=dataset,
        metric=metric,
        samples=samples,
        coverage=coverage,
        n=n,
        sae=sae,
        pool=pool,
        weights=weights,
        draws=draws,
        seed=seed,
    )
    return rank_preservation(library, request)


@router.post("/rank-preservation", summary="The same, for a subset of any number of samples")
def post_rank_preservation(library: Books, request: PreservationRequest) -> PreservationAnswer:
    """Kendall's tau of a subset among random subsets of its size, and of random subsets of every size."""
    return rank_preservation(library, request)


@router.get("/performance-redundancy", summary="Performance redundancy beside feature redundancy")
def get_performance_redundancy(
    library: Books,
    dataset: DatasetNames,
    sae: SaeParam = None,
    metric: Metric = None,
    pool: PoolParam = "any",
    draws: Draws = 200,
    seed: Seed = 0,
    as_of: AsOf = None,
) -> PerformanceAnswer:
    """How early samples of each dataset rank the models, and whether features tell it better than size does."""
    return performance_redundancy(library, sae, dataset, metric, pool, draws, seed, as_of)


@router.get("/performance-similarity", summary="Shared features beside shared ranking")
def get_performance_similarity(
    library: Books,
    dataset: DatasetNames,
    sae: SaeParam = None,
    metric: Metric = None,
    control: Annotated[str | None, Query(max_length=80, description="A dataset whose means are held fixed")] = None,
    pool: PoolParam = "any",
    min_samples: MinSamples = 1,
    seed: Seed = 0,
    as_of: AsOf = None,
) -> SimilarityAnswer:
    """For each pair of datasets the overlap and the correlation of the models' means, and how the two go together."""
    return performance_similarity(library, sae, dataset, metric, control, pool, min_samples, seed, as_of)


@router.get("/failures", summary="Where does a model fail?")
def get_failures(
    library: Books,
    dataset: DatasetName,
    evaluated: Evaluated = None,
    metric: Metric = None,
    sae: SaeParam = None,
    pool: PoolParam = "any",
    min_support: Annotated[
        int, Query(ge=1, le=1 << 40, description="Scored samples that must fire a feature, and that must not")
    ] = 10,
    direction: Annotated[Direction, Query(description="Features whose samples score lower, higher, or both")] = "lower",
    sort: Order = "q_value",
    limit: Limit = 50,
    cursor: Cursor = None,
    samples: Annotated[int, Query(ge=0, le=MOST_SAMPLES, description="Sample ids a feature")] = 2,
    as_of: AsOf = None,
) -> FailuresAnswer:
    """Features whose samples the model scores differently from the others, with a test each."""
    return failures(
        library, sae, dataset, evaluated, metric, pool, min_support, direction, sort, limit, cursor, samples, as_of
    )
