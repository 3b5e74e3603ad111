"""Lists of what there is, and what an index command would cost."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from schema.wire.base import Wire


class SteeringFacts(Wire):
    """What a loaded model can be steered with."""

    engine: str
    layers: list[int] = Field(description="Where a vector can be added")
    saes: list[str] = Field(description="Whose features can be named")
    modes: list[str]
    units: list[str]
    max_ops: int = Field(description="Operations of one request")


class ModelItem(Wire):
    """A model, with what OpenAI's clients look for."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(0, description="`created_at` in seconds since 1970")
    owned_by: str = Field("scopebase", description="As OpenAI's clients expect")
    loaded: bool = Field(False, description="Whether it generates here: /v1/completions takes it")
    source: str
    revision: str
    family: str
    n_layers: int
    d_model: int
    context: int | None
    n_saes: int
    created_at: datetime
    steering: SteeringFacts | None = Field(None, description="Of the model that generates here")


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
    fvu: float | None = Field(
        None,
        description="Fraction of the residuals' variance that its reconstruction leaves unexplained, measured on a few hundred tokens "
        "of the dataset that it was first indexed with, without special and first tokens and those of extreme length. From 1 on it "
        "is worse than the mean, and perhaps of another model. Null where it was not measured",
    )
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
    origin: str = Field("", description="What made the activations where Scopebase did not, such as a cache of Delphi")
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
    n_logits: int = Field(description="SAEs whose logit effects would be computed too")
    logit_work: float = Field(description="Multiply-adds that they take; not in `seconds`")
    measured_tokens: int = Field(description="Tokens on which speed and bytes were measured")
    device: str
    dtype: str
