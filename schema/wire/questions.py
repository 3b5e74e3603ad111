"""Overlap, difference and redundancy of datasets, and the samples that prove a feature."""

from __future__ import annotations

from typing import Any

from pydantic import Field, JsonValue

from schema.wire.base import Pool, Provenance, Wire
from schema.wire.labels import ShownSource


class DatasetCount(Wire):
    name: str = Field(description="The dataset's, or of a slice `mmlu[subject=anatomy]`")
    version: int
    n_samples: int
    n_features: int = Field(description="Size of the footprint")
    where: dict[str, JsonValue] = Field(default={}, description="Of a slice")
    where_not: dict[str, JsonValue] = Field(default={}, description="Of a slice")


Matrix = list[list[float | None]]


class OverlapAnswer(Wire):
    """Shares of footprints that other datasets cover. A share over an empty footprint is null."""

    datasets: list[DatasetCount]
    overlap: Matrix = Field(description="[i][j]: share of i's footprint that j covers")
    overlap_min: Matrix = Field(description="[i][j]: shared features over the smaller footprint")
    jaccard: Matrix = Field(description="[i][j]: shared features over all features of both")
    shared: list[list[int]] = Field(description="[i][j]: features in both footprints")
    rarefied: Matrix = Field(
        description="[i][j]: the overlap to expect of independent random subsets of `rarefied_n` samples each, in closed form; "
        "[i][i] is what one draw of a dataset covers of another: the loss that sampling alone makes"
    )
    rarefied_n: int
    min_samples: int
    d_sae: int
    provenance: Provenance

    def to_rows(self) -> list[dict[str, Any]]:
        """One row a pair: `dataset`, what of it `covered_by` covers, and the other measures."""
        names = [d.name for d in self.datasets]
        if len(set(names)) < len(names):
            names = [f"{d.name}@{d.version}" for d in self.datasets]
        measures = ("overlap", "overlap_min", "jaccard", "shared", "rarefied")
        return [
            {"dataset": a, "covered_by": b, **{measure: getattr(self, measure)[i][j] for measure in measures}}
            for i, a in enumerate(names)
            for j, b in enumerate(names)
        ]


class RedundancyItem(Wire):
    dataset: str
    n_samples: int
    n_features: int
    footprints: dict[Pool, int] = Field(
        description="Pool -> size of the footprint; `n_features` is that of the pool asked for"
    )
    redundancy: float | None = Field(
        description="(sum over n of c_n) / |F|, in closed form; null for an empty footprint"
    )
    baseline_n: int = Field(description="N alone")
    baseline_n_over_f: float | None = Field(description="N / |F|: redundancy lies between half of it and it")
    curve: list[tuple[int, float]] = Field(
        description="(n, c_n): share of the footprint that n random samples cover, expected"
    )


class RedundancyAnswer(Wire):
    data: list[RedundancyItem]
    provenance: Provenance


class Token(Wire):
    """A token that fires, as a span of the text shown."""

    start: int
    end: int
    activation: float
    position: int


class SampleProof(Wire):
    """A sample that shows a feature, with the tokens on which it fires."""

    dataset: str
    id: str
    activation: float = Field(description="The sample's pooled activation of the feature")
    text: str = Field(description="The text around the strongest token, as the model read it")
    offset: int = Field(description="Where `text` begins in the sample's whole text")
    tokens: list[Token]


class DiffItem(Wire):
    feature: str
    index: int
    label: str | None
    label_source: ShownSource = None
    counts: dict[str, int] = Field(description="Dataset -> samples that fire the feature")
    rates: dict[str, float] = Field(description="The same over all samples of the dataset")
    rate_difference: float
    interval: tuple[float, float] = Field(description="95 % of the rate difference, Newcombe's hybrid score")
    p_value: float = Field(description="Fisher's exact test, two-sided")
    q_value: float = Field(description="Benjamini-Hochberg over all features that fire in either dataset")
    max_activation: float = Field(
        description="Largest activation at any token of the covering dataset, whatever the pool"
    )
    firing_tokens: list[str] = Field(description="Tokens on which it fires in the samples shown, most frequent first")
    samples: list[SampleProof]


class DiffAnswer(Wire):
    """Features that one dataset covers and another does not."""

    data: list[DiffItem]
    next_cursor: str | None
    total: int = Field(description="Size of the difference")
    n_tested: int = Field(description="Features that fire in either dataset: the denominator of the q-values")
    covered_by: DatasetCount
    not_covered_by: DatasetCount
    min_samples: int
    sort: str
    provenance: Provenance
