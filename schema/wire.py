"""The answers as JSON: one pydantic model a shape, the same over HTTP, with `--json`, and in a client. Knows no store."""

from __future__ import annotations

from datetime import datetime
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Pool = Literal["any", "last"]
Item = TypeVar("Item")


class Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Page(Wire, Generic[Item]):
    """One page of a list."""

    data: list[Item]
    next_cursor: str | None = Field(None, description="Pass it as `cursor` to get the next page; null on the last")


class Provenance(Wire):
    """What an answer over activations was made from; `as_of=<snapshot>` repeats it."""

    sae: str
    sae_sha256: str
    runs: dict[str, int] = Field(description="Dataset -> run")
    pool: Pool
    mask: str
    snapshot: int


class ModelItem(Wire):
    id: str
    source: str
    revision: str
    family: str
    n_layers: int
    d_model: int
    context: int | None
    n_saes: int
    created_at: datetime


class SaeItem(Wire):
    id: str
    model: str
    layer: int
    set: str
    release: str
    format: str
    activation: str
    k: int | None
    d_model: int
    d_sae: int
    sha256: str
    datasets: list[str] = Field(description="Datasets with a finished run")
    created_at: datetime


class DatasetItem(Wire):
    id: str = Field(description="`<name>@<version>`")
    name: str
    version: int
    sha256: str
    n_samples: int
    n_chars: int
    n_skipped: int
    fields: dict[str, str]
    source: str
    n_runs: int = Field(description="Finished runs")
    created_at: datetime


class RunItem(Wire):
    id: int
    dataset: str
    model: str
    saes: list[str]
    state: Literal["unfinished", "finished"]
    progress: float = Field(description="Share of the samples that are encoded and committed")
    snapshot: int | None
    mask: str
    max_tokens: int
    dtype: str
    template: str | None
    text_field: str
    n_samples: int
    n_tokens: int
    n_masked: int
    n_empty: int
    n_truncated: int
    n_activations: int
    bytes: int
    versions: dict[str, str]
    created_at: datetime
    finished_at: datetime | None


class DatasetEstimate(Wire):
    name: str
    n_samples: int
    n_tokens: int
    n_tokens_interval: tuple[int, int] = Field(description="95 %; both ends equal where every text was tokenised")
    finished: bool = Field(description="Already indexed with these SAEs: nothing would be done")


class EstimateAnswer(Wire):
    """What an index command would cost, measured on some of its own texts."""

    datasets: list[DatasetEstimate]
    n_saes: int
    n_tokens: int = Field(description="Of the datasets that are not finished")
    n_activations: int
    tokens_per_second: float
    seconds: float
    bytes: int
    bytes_per_activation: float
    measured_tokens: int = Field(description="Tokens on which speed and bytes were measured")
    device: str
    dtype: str


class DatasetCount(Wire):
    name: str
    version: int
    n_samples: int
    n_features: int = Field(description="Size of the footprint")


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


class RedundancyItem(Wire):
    dataset: str
    n_samples: int
    n_features: int
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


class Health(Wire):
    status: Literal["ok"]
    version: str


class Ready(Wire):
    status: Literal["ready", "not ready"]
    checks: dict[str, str]


class Problem(Wire):
    """An error, RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[dict[str, str]] | None = None
