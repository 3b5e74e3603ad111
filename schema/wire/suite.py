"""A smaller dataset that keeps the footprint, and advice on a suite of datasets."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from schema.wire.base import Pool, Provenance, Wire
from schema.wire.query import DatasetPart
from schema.wire.questions import DatasetCount

Weights = Literal["uniform", "inverse_frequency", "activation"]
Curve = list[tuple[int, float]]


class SubsetAnswer(Wire):
    """Few samples that keep a share of a dataset's footprint, and what random ones of the same number would keep."""

    dataset: DatasetCount
    samples: list[str] = Field(description="Ids, in the order in which they were taken")
    coverage: float = Field(description="Share of the footprint, by weight, that the samples fire")
    n_features: int = Field(description="Features of the footprint that the samples fire")
    curve: Curve = Field(description="(n, share that the first n samples fire), for every n")
    asked: float | None = Field(description="The share asked for; null where a number of samples was")
    weights: Weights
    guarantee: float = Field(
        description="Proved of greedy: the samples are at most so many times the fewest possible; "
        "for a number of samples, the coverage is at least so many times the best possible"
    )
    optimum_at_least: int | None = Field(description="No set of fewer samples keeps the share asked for")
    coverage_at_most: float | None = Field(description="No set of so many samples keeps more")
    random_coverage: float = Field(description="Expected of as many random samples, in closed form")
    random_n: int = Field(description="Random samples that it takes to expect this coverage")
    random_curve: Curve = Field(description="(n, share expected of n random samples), in closed form")
    min_samples: int
    provenance: Provenance


class SuiteRequest(Wire):
    """Datasets that are run together."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"datasets": ["gsm8k", {"dataset": "mmlu", "where": {"subject": "anatomy"}}], "pool": "last"}]
        }
    )
    datasets: list[Annotated[str, Field(max_length=80)] | DatasetPart] = Field(
        min_length=2,
        max_length=200,
        description='Names, or slices such as `{"dataset": "mmlu", "where": {"subject": "anatomy"}}`; no two share samples',
    )
    sae: str | None = Field(None, max_length=256)
    pool: Pool = "any"
    min_samples: int = Field(1, ge=1, le=1 << 40)
    low: float = Field(0.5, ge=0, le=1, description="A dataset is apart if no other covers so much of it at equal size")
    as_of: int | None = Field(None, ge=1, le=1 << 31)


class SuiteItem(Wire):
    """What one dataset adds to the others."""

    dataset: DatasetCount
    covered: float | None = Field(description="Share of its footprint that the union of the others covers")
    n_unique: int = Field(description="Features that no other one fires")
    covered_rarefied: float | None = Field(
        description="The same expected of `rarefied_n` random samples of each, in closed form"
    )
    self_rarefied: float | None = Field(
        description="What one draw of so many of its samples covers of another: the share that sampling alone allows"
    )
    nearest: str | None = Field(
        description="The one other dataset that covers most of it at equal size; null where none does"
    )
    nearest_rarefied: float | None = Field(description="How much that is")
    apart: bool = Field(description="No other dataset alone covers the share `low` of it at equal size")


class SuiteDrop(Wire):
    """One step of the order in which to drop datasets."""

    dataset: str
    lost: int = Field(description="Features of the union that go with it")
    coverage: float = Field(description="Share of the whole suite's union that remains")
    random_coverage: float = Field(description="Expected if as many datasets were dropped at random, in closed form")
    n_samples: int = Field(description="Samples that remain to be run")


class SuiteAnswer(Wire):
    data: list[SuiteItem]
    drops: list[SuiteDrop] = Field(description="Least loss first; the last dataset is never dropped")
    keep: str = Field(description="The dataset that remains at the end")
    n_features: int = Field(description="Size of the union")
    n_samples: int
    rarefied_n: int
    low: float
    min_samples: int
    provenance: Provenance
