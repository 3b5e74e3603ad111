"""Rules: stored versions, what they were measured to do, and what they decide about a text."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import ConfigDict, Field, JsonValue, model_validator

from schema.wire.base import BasedOn, Pool, Wire
from schema.wire.discovery import DiscoverBody, LabelValue, Metrics, RuleProvenance
from schema.wire.expressions import Expression
from schema.wire.questions import Token

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
EXAMPLE: dict[str, JsonValue] = {
    "any": [{"feature": "m/3-tiny/99", "above": 0.0}, {"feature": "m/3-tiny/17", "above": 0.5}]
}


class Choice(Wire):
    """Which of a discovery's rules is meant: one layer's best k features, or the best feature of each of m layers."""

    sae: str | None = Field(None, max_length=256)
    k: int | None = Field(None, ge=1)
    m: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one(self) -> Choice:
        if (self.m is None) == (self.k is None) or (self.sae is None) != (self.k is None):
            raise ValueError("name sae and k, or m alone")
        return self


class RuleBody(Wire):
    """A rule to store: an expression written by hand, or what a discovery chose, which the server repeats to make sure."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "toxic_en", "expression": EXAMPLE, "pool": "any"}]}
    )
    name: str = Field(pattern=NAME, description="A new version of it is made where one of this name exists")
    based_on: BasedOn = None
    expression: Expression | None = None
    discovery: DiscoverBody | None = Field(None, description="A request of /v1/rules/discover")
    choice: Choice | None = Field(None, description="With `discovery`: which of its rules, else the one it chose")
    pool: Pool = Field("any", description="With `expression`; a discovery brings its own")
    mask: str = Field("special,first", description="With `expression`: the mask for texts read live")
    max_tokens: int = Field(512, ge=1, le=65_535, description="With `expression`: where texts read live are cut")
    description: str | None = Field(None, max_length=4000)

    @model_validator(mode="after")
    def _one(self) -> RuleBody:
        if (self.expression is None) == (self.discovery is None):
            raise ValueError("give an expression or a discovery, and not both")
        if self.choice is not None and self.discovery is None:
            raise ValueError("choice goes with discovery")
        return self


class BoundSae(Wire):
    """What an SAE was when the rule was made; anything else is drift."""

    sha256: str
    model: str
    revision: str
    tokenizer_sha256: str


class RuleItem(Wire):
    """One version of a rule."""

    id: str = Field(description="`<name>@<version>`")
    name: str
    version: int
    expression: Expression
    pool: Pool
    n_features: int
    saes: dict[str, BoundSae]
    provenance: dict[str, Any] = Field(
        description="How it was made: `made` is `by hand` or `discovery`; of a discovery also its request, choice, split, "
        "dataset with its hash, snapshot, runs and held-out metrics; always the mask and the token limit"
    )
    description: str | None
    author: str
    signed_by: str | None
    signed_at: datetime | None
    created_at: datetime


class SignBody(Wire):
    """Says that a person stands for this version."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"version": 1}]})
    version: int | None = Field(None, ge=1, le=1 << 31, description="The newest unless given")


class DriftItem(Wire):
    sae: str
    what: Literal["missing", "sae_sha256", "model", "model_revision", "tokenizer_sha256"]
    was: str
    now: str | None
    sentence: str


class DriftAnswer(Wire):
    """What changed under a rule since it was made. Texts are classified only while `usable`."""

    rule: str
    version: int
    usable: bool = Field(description="False where an SAE is gone or has other tensors")
    data: list[DriftItem]


class EvaluateBody(Wire):
    """Where to measure a rule: whole datasets, slices of them, or each value of a field apart."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"datasets": ["toxicity_en", "toxicity_de"], "label_field": "label", "positive": 1}]
        }
    )
    datasets: list[str] = Field(min_length=1, max_length=200)
    version: int | None = Field(None, ge=1, le=1 << 31, description="The newest unless given")
    label_field: str | None = Field(None, max_length=256, description="As in the rule's discovery unless given")
    positive: LabelValue | None = Field(None, description="As in the rule's discovery unless given")
    where: dict[str, Any] = Field(default_factory=dict, description='A slice of each dataset, `{"language": "en"}`')
    group_by: str | None = Field(None, max_length=256, description="One row for each value of this field")
    include_discovery: bool = Field(
        False, description="Also measure on the samples that the rule was discovered on; otherwise they are left out"
    )
    seed: int = Field(0, ge=0, le=2**31, description="Of the bootstrap")
    as_of: int | None = Field(None, ge=1, le=1 << 31)


class EvaluationRow(Wire):
    dataset: str
    group: str | None = Field(description="Value of the field that it was grouped by")
    part: Literal["all", "held_out", "all_with_discovery"]
    n_unlabelled: int = Field(description="Samples left out because they have no label")
    metrics: Metrics
    trivial: Metrics = Field(description="Of calling every sample positive")


class Macro(Wire):
    """Means over the rows that have both classes."""

    n_rows: int
    f1: float | None
    precision: float | None = Field(description="Over the rows where the rule calls anything positive")
    recall: float | None
    accuracy: float | None
    trivial_f1: float | None
    trivial_accuracy: float | None


class EvaluateAnswer(Wire):
    """A measurement, stored with the rule."""

    id: int
    rule: str
    version: int
    data: list[EvaluationRow]
    macro: Macro
    label_field: str
    positive: LabelValue
    seed: int
    n_bootstrap: int
    warnings: list[str]
    provenance: RuleProvenance
    created_at: datetime


class ClassifyBody(Wire):
    """What to classify: `texts` through the loaded model, or stored samples of a `dataset`, all or by id."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"texts": ["You are a fool."]}, {"dataset": "toxicity_en", "only": True}]}
    )
    version: int | None = Field(None, ge=1, le=1 << 31, description="The newest unless given")
    texts: list[str] | None = Field(None, min_length=1, max_length=256)
    dataset: str | None = Field(None, max_length=80)
    ids: list[str] | None = Field(None, min_length=1, max_length=1000, description="Samples of the dataset")
    where: dict[str, Any] = Field(default_factory=dict, description="A slice of the dataset")
    only: bool | None = Field(None, description="Only the samples that the rule calls positive (true) or not (false)")
    limit: int = Field(50, ge=1, le=1000)
    cursor: str | None = Field(None, max_length=200)
    as_of: int | None = Field(None, ge=1, le=1 << 31)

    @model_validator(mode="after")
    def _one(self) -> ClassifyBody:
        if (self.texts is None) == (self.dataset is None):
            raise ValueError("give texts or a dataset, and not both")
        if self.ids is not None and (self.dataset is None or self.where):
            raise ValueError("ids go with a dataset, and not with where")
        return self


class DecidingFeature(Wire):
    """A feature of the rule that is above its value in this text, and where it fires."""

    feature: str
    label: str | None
    above: float
    activation: float
    negated: bool = Field(description="Under an odd number of `not`: it speaks against")
    tokens: list[Token] = Field(description="Tokens above the value inside `text`")
    n_tokens: int = Field(description="Tokens above the value in the whole text")


class Classified(Wire):
    """One text, what the rule says of it, and what decided."""

    dataset: str | None
    id: str | None
    positive: bool
    text: str = Field(description="As the model read it; of a long text the part around the strongest token")
    offset: int = Field(description="Where `text` begins in the whole text")
    truncated: bool = Field(description="Read live: the text went on after the last token that was read")
    features: list[DecidingFeature]


class ClassifyAnswer(Wire):
    rule: str
    version: int
    data: list[Classified]
    next_cursor: str | None = None
    total: int = Field(description="Texts that were asked for and, with `only`, meet it")
    n_positive: int = Field(description="Of all texts or samples that were asked for")
    n: int
    warnings: list[str]
    provenance: RuleProvenance
