"""One feature: its dossier and the parts of it. A feature's id holds slashes, so the parts come before the whole."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query

from api.deps import AsOf, Books, Cursor, DatasetName, Limit, PoolParam
from api.services.features.dossier import dossier, feature_profiles, feature_samples
from api.services.features.match import match
from api.services.features.neighbours import Question, neighbours
from schema.wire.features import (
    Dossier,
    FeatureSamplesAnswer,
    MatchAnswer,
    NeighbourKind,
    NeighboursAnswer,
    ProfilesAnswer,
    SampleChoice,
)

router = APIRouter(tags=["features"])
FeatureId = Annotated[
    str,
    Path(
        max_length=280,
        description="`<model>/<layer>-<set>/<index>`",
        examples=["tinystories-3m/3-qwenscope-res-3k-l32/17"],
    ),
]
Datasets = Annotated[
    list[DatasetName] | None,
    Query(max_length=200, alias="dataset", description="Only these; every dataset of the SAE unless given"),
]
Seed = Annotated[int, Query(ge=0, lt=1 << 31, description="Of what is drawn at random")]
SaeName = Annotated[str, Query(max_length=256)]


@router.get("/features/{feature:path}/profiles", summary="How a feature fires in each dataset")
def get_profiles(
    library: Books, feature: FeatureId, dataset: Datasets = None, pool: PoolParam = "any", as_of: AsOf = None
) -> ProfilesAnswer:
    """Rates with intervals, densities, means, maxima and histograms."""
    return feature_profiles(library, feature, pool, dataset or (), as_of)


@router.get("/features/{feature:path}/samples", summary="Samples that fire a feature")
def get_samples(
    library: Books,
    feature: FeatureId,
    by: Annotated[SampleChoice, Query(description="Strongest first, some from each fifth, or random ones")] = "top",
    dataset: Datasets = None,
    pool: PoolParam = "any",
    limit: Limit = 50,
    cursor: Cursor = None,
    seed: Seed = 0,
    as_of: AsOf = None,
) -> FeatureSamplesAnswer:
    """With the tokens on which it fires."""
    return feature_samples(library, feature, by, pool, dataset or (), limit, cursor, seed, as_of)


@router.get("/features/{feature:path}/neighbours", summary="Features near a feature")
def get_neighbours(
    library: Books,
    feature: FeatureId,
    by: Annotated[
        NeighbourKind, Query(description="Decoder directions, firing in the same samples, or avoiding each other")
    ] = "cosine",
    in_sae: Annotated[
        list[SaeName] | None, Query(max_length=128, description="Where to look; in its own SAE unless given")
    ] = None,
    layers: Annotated[bool, Query(description="Look in the SAEs of all layers of its set")] = False,
    dataset: Datasets = None,
    pool: PoolParam = "any",
    limit: Annotated[int, Query(ge=1, le=1000, description="Features an SAE")] = 10,
    samples: Annotated[
        int, Query(ge=1, le=100_000, description="Samples read at most; drawn with the seed where more fire it")
    ] = 2_000,
    seed: Seed = 0,
    as_of: AsOf = None,
) -> NeighboursAnswer:
    """In its own SAE, in those of other layers, or in SAEs of other training runs."""
    question = Question(by, in_sae or (), layers, pool, dataset or (), limit, samples, seed, as_of)
    return neighbours(library, feature, question)


@router.get("/features/{feature:path}", summary="A feature's dossier")
def get_dossier(
    library: Books,
    feature: FeatureId,
    dataset: Datasets = None,
    pool: PoolParam = "any",
    seed: Seed = 0,
    as_of: AsOf = None,
) -> Dossier:
    """Profiles, histogram, samples, logit effects, labels, neighbours."""
    return dossier(library, feature, pool, dataset or (), seed, as_of)


@router.get("/match", summary="How much of one SAE another one has")
def get_match(
    library: Books,
    a: Annotated[str, Query(max_length=256, description="An SAE")],
    b: Annotated[str, Query(max_length=256, description="Another one, of residuals of the same width")],
    threshold: Annotated[float, Query(ge=-1, le=1, description="Cosine from which a feature counts as matched")] = 0.7,
    features: Annotated[
        int, Query(ge=1, le=1 << 20, description="Features compared a side; drawn with the seed where there are more")
    ] = 2_048,
    sort: Annotated[
        Literal["cosine", "-cosine"], Query(description="Nearest pairs first, or those without a match")
    ] = "cosine",
    limit: Limit = 50,
    cursor: Cursor = None,
    seed: Seed = 0,
) -> MatchAnswer:
    """Each feature's nearest direction in the other SAE: mean largest cosine, mutual pairs, share matched, beside what chance gives."""
    return match(library, a, b, threshold, features, sort, limit, cursor, seed)
