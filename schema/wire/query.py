"""Set algebra over datasets: the question as a tree of conditions, and the features that meet it."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, JsonValue, Tag, model_validator

from schema.wire.base import Pool, Provenance, Wire
from schema.wire.labels import ShownSource
from schema.wire.questions import SampleProof

Name = Annotated[str, Field(min_length=1, max_length=256)]
Count = Annotated[int, Field(ge=0, le=1 << 53)]
Share = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[float, Field(allow_inf_nan=False)]
QuerySort = Literal[
    "rate_difference",
    "controlled_difference",
    "lift",
    "weight",
    "rate",
    "count",
    "q_value",
    "max_activation",
    "density",
    "index",
]


def _readable(where: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Refuses half characters, which no store or terminal can hold."""
    try:
        json.dumps(where, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a character (a lone surrogate)") from None
    return where


Where = Annotated[dict[str, JsonValue], Field(max_length=20), AfterValidator(_readable)]


class DatasetPart(Wire):
    """A dataset, or the samples of it whose fields meet a condition."""

    dataset: Name = Field(description="`<name>`, or `<name>@<version>` for an older one")
    where: Where = Field(
        default={},
        description='Only samples whose fields meet this: `{"subject": "anatomy"}`, `{"level": [1, 2]}`, '
        '`{"level": {"min": 3}}`, `{"text": {"contains": "pears"}}`',
    )
    where_not: Where = Field(
        default={}, description="Only samples that do not meet this; with `where`, those that meet both"
    )


def _in_order(low: float | None, high: float | None, name: str) -> None:
    if low is not None and high is not None and low > high:
        raise ValueError(f"min_{name} is larger than max_{name}")


class DatasetCondition(DatasetPart):
    """How a feature fires in a dataset. Without a bound: in at least one sample. With bounds, these alone decide."""

    min_rate: Share | None = Field(None, description="Share of the samples that fire it, at least")
    max_rate: Share | None = Field(None, description="At most; includes features that never fire")
    min_count: Count | None = Field(None, description="Samples that fire it, at least")
    max_count: Count | None = Field(None, description="At most; includes features that never fire")
    min_samples: Annotated[int, Field(ge=1, le=1 << 53)] | None = Field(None, description="The same as `min_count`")
    group_by: Name | None = Field(None, description="A field of the samples: one more column for each of its values")
    in_groups: Literal["any", "every"] | None = Field(
        None, description="The bounds must hold in any or in every group instead of in the whole"
    )

    @model_validator(mode="after")
    def _whole(self) -> DatasetCondition:
        if self.min_count is not None and self.min_samples is not None:
            raise ValueError("min_count and min_samples mean the same; give one")
        if self.in_groups and not self.group_by:
            raise ValueError("in_groups needs group_by")
        _in_order(self.min_rate, self.max_rate, "rate")
        _in_order(self.least, self.max_count, "count")
        return self

    @property
    def least(self) -> int | None:
        return self.min_samples if self.min_count is None else self.min_count


class Bounds(Wire):
    """At least one end."""

    min: Number | None = None
    max: Number | None = None

    @model_validator(mode="after")
    def _whole(self) -> Bounds:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        _in_order(self.min, self.max, "")
        return self


class DensityCondition(Wire):
    """On what share of the tokens a feature fires."""

    density: Bounds
    dataset: Name | None = Field(None, description="In this dataset; else over all datasets of the question together")


class MaximumCondition(Wire):
    """A feature's largest activation at any token."""

    max_activation: Bounds
    dataset: Name | None = Field(None, description="In this dataset; else over all datasets of the question together")


class LabelCondition(Wire):
    """One of a feature's labels holds this text, whatever the case."""

    label: Annotated[str, Field(min_length=1, max_length=200)]


class LabelledCondition(Wire):
    """The feature has a label, or has none."""

    labelled: bool


class CompareCondition(Wire):
    """How a feature's rates differ between two datasets or slices, A and B."""

    compare: tuple[Name | DatasetPart, Name | DatasetPart] = Field(description="[A, B]")
    min_lift: Annotated[Number, Field(ge=0)] | None = None
    max_lift: Annotated[Number, Field(ge=0)] | None = None
    min_rate_difference: Annotated[float, Field(ge=-1, le=1)] | None = None
    max_rate_difference: Annotated[float, Field(ge=-1, le=1)] | None = None
    max_q_value: Share | None = None
    length_control: bool = Field(False, description="Hold the length-controlled values against the bounds")

    @model_validator(mode="after")
    def _whole(self) -> CompareCondition:
        _in_order(self.min_lift, self.max_lift, "lift")
        _in_order(self.min_rate_difference, self.max_rate_difference, "rate_difference")
        bounds = (self.min_lift, self.max_lift, self.min_rate_difference, self.max_rate_difference, self.max_q_value)
        if all(bound is None for bound in bounds):
            raise ValueError("compare needs a bound, such as min_lift, min_rate_difference or max_q_value")
        return self


class AndCondition(Wire):
    """Every one of these."""

    model_config = ConfigDict(populate_by_name=True)
    all_of: list[Condition] = Field(alias="and", min_length=1, max_length=200)


class OrCondition(Wire):
    """At least one of these."""

    model_config = ConfigDict(populate_by_name=True)
    any_of: list[Condition] = Field(alias="or", min_length=1, max_length=200)


class NotCondition(Wire):
    """The complement within all features of the SAE, so also those that never fire."""

    model_config = ConfigDict(populate_by_name=True)
    none_of: Condition = Field(alias="not")


_KINDS = ("and", "or", "not", "compare", "density", "max_activation", "labelled", "label", "dataset")
_FIELDS = {"all_of": "and", "any_of": "or", "none_of": "not"}


def _kind(value: Any) -> str | None:
    """What kind of condition this is, by the first telling field."""
    names = value if isinstance(value, dict) else type(value).model_fields if isinstance(value, Wire) else ()
    told = {_FIELDS.get(name, name) for name in names}
    return next((kind for kind in _KINDS if kind in told), None)


Condition = Annotated[
    Annotated[AndCondition, Tag("and")]
    | Annotated[OrCondition, Tag("or")]
    | Annotated[NotCondition, Tag("not")]
    | Annotated[CompareCondition, Tag("compare")]
    | Annotated[DensityCondition, Tag("density")]
    | Annotated[MaximumCondition, Tag("max_activation")]
    | Annotated[LabelledCondition, Tag("labelled")]
    | Annotated[LabelCondition, Tag("label")]
    | Annotated[DatasetCondition, Tag("dataset")],
    Discriminator(
        _kind, custom_error_type="condition", custom_error_message=f"a condition has one of: {', '.join(_KINDS)}"
    ),
]

_EXAMPLE: dict[str, JsonValue] = {
    "sae": "qwen3-1.7b-base/12-qwenscope-res-32k-l50",
    "where": {"and": [{"dataset": "gsm8k", "min_rate": 0.05}, {"not": {"dataset": "math", "min_rate": 0.05}}]},
    "sort": "rate_difference",
    "limit": 50,
}


class FeatureQuery(Wire):
    """Which features meet a condition, ranked."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})
    sae: Name | None = Field(None, description="`<model>/<layer>-<set>`; may be left out where there is one SAE")
    pool: Pool = "any"
    where: Condition
    datasets: list[Name] = Field(
        [], max_length=200, description="Datasets shown beside those that `where` and `compare` name"
    )
    compare: tuple[Name | DatasetPart, Name | DatasetPart] | None = Field(
        None,
        description="[A, B] of lift, rate difference and q-value; else the first dataset that `where` asks for "
        "and the first that it rules out, else the next one that it names",
    )
    group_by: Name | None = Field(None, description="A field: one column for each of its values in each dataset shown")
    length_control: bool = Field(False, description="Also compare samples of like length only (Mantel-Haenszel)")
    include: list[Literal["samples"]] = Field([], max_length=1, description="`samples`: what proves each feature")
    samples: Annotated[int, Field(ge=1, le=10)] = Field(2, description="Proving samples a feature, where included")
    sort: QuerySort | None = Field(
        None,
        description="Default: `rate_difference` where two are compared, else `rate`. `rate`, `count` and `weight` are A's, or those "
        "of the first dataset shown",
    )
    reverse: bool = Field(False, description="Worst first")
    limit: Annotated[int, Field(ge=1, le=1000)] = 50
    cursor: Annotated[str, Field(max_length=200)] | None = None
    as_of: Annotated[int, Field(ge=1, le=1 << 31)] | None = None


class QueryColumn(Wire):
    """A dataset or slice that features are counted in: the denominator of its rates."""

    name: str = Field(description="The key in `counts` and `rates`")
    dataset: str
    version: int
    where: dict[str, JsonValue]
    where_not: dict[str, JsonValue]
    n_samples: int
    n_features: int = Field(description="Features that fire in at least one of them")


class LengthControl(Wire):
    """What the length control compared."""

    method: str
    bands: list[tuple[int, int]] = Field(description="Numbers of tokens that count, [from, to], one pair a stratum")
    n_a: int = Field(description="Samples of A in strata that both have; the others do not count")
    n_b: int


class Comparison(Wire):
    """The two columns that lift, rate difference and tests speak of."""

    a: str
    b: str
    n_tested: int = Field(description="Features that fire in either: the denominator of the q-values")
    length_control: LengthControl | None


class ControlledItem(Wire):
    """The comparison within samples of like length."""

    rate_difference: float = Field(description="Mantel-Haenszel, over the strata that both have")
    interval: tuple[float, float] = Field(description="95 %, hybrid score over the standardised rates")
    lift: float | None = Field(description="Mantel-Haenszel rate ratio; null where B's part of it is 0")
    p_value: float = Field(description="Cochran-Mantel-Haenszel test, one degree of freedom")
    q_value: float = Field(description="Benjamini-Hochberg over the same features as the plain q-value")


class FeatureItem(Wire):
    feature: str
    index: int
    label: str | None
    label_source: ShownSource = None
    counts: dict[str, int] = Field(description="Column -> samples that fire the feature")
    rates: dict[str, float] = Field(description="The same over the column's `n_samples`")
    density: float | None = Field(description="Share of the tokens of all datasets of the question on which it fires")
    max_activation: float = Field(description="Largest activation at any token of them")
    lift: float | None = Field(description="A's rate over B's, with half a sample added to each of the four cells")
    lift_interval: tuple[float, float] | None = Field(description="95 %, on the logarithm")
    rate_difference: float | None = Field(description="A's rate less B's")
    interval: tuple[float, float] | None = Field(description="95 %, Newcombe's hybrid score")
    p_value: float | None = Field(description="Fisher's exact test, two-sided")
    q_value: float | None = Field(description="Benjamini-Hochberg over all features that fire in A or B")
    weight: float = Field(
        description="A's rate times ln((1 + N) / (1 + n)), where n of all N samples of the datasets of the question fire the feature"
    )
    controlled: ControlledItem | None
    firing_tokens: list[str] = Field(
        [], description="Tokens on which it fires in the samples shown, most frequent first"
    )
    samples: list[SampleProof] = Field([], description="Of A where it fires there, else of where it fires most often")


class FeatureQueryAnswer(Wire):
    """One page of the features that meet the condition."""

    data: list[FeatureItem]
    next_cursor: str | None
    total: int = Field(description="Features that meet the condition")
    total_never_fire: int = Field(description="Those among them that fire in none of the columns")
    d_sae: int
    n_never_fire: int = Field(description="Features of the SAE that fire in none of the columns")
    columns: list[QueryColumn]
    comparison: Comparison | None
    sort: QuerySort
    provenance: Provenance
