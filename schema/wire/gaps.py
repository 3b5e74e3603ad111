"""Coverage gaps: what a target fires and a curator's datasets do not, or hardly."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, JsonValue, Tag, model_validator

from schema.wire.base import Pool, Provenance, Wire
from schema.wire.labels import How, ShownSource
from schema.wire.query import DatasetPart, Name
from schema.wire.questions import DatasetCount, SampleProof

GapSort = Literal["weight", "target_rate", "q_value", "index"]
State = Literal["missing", "weak", "covered", "untargeted"]
Change = Literal["opened", "closed", "moved"]
MOST_FEATURES = 1 << 20


class DatasetTarget(DatasetPart):
    """The features that fire in at least `min_samples` samples of another dataset, or of a slice of it."""


class FeaturesTarget(Wire):
    """These features, each with a weight such as its relevance."""

    features: list[Annotated[int, Field(ge=0, le=MOST_FEATURES)] | Name] = Field(
        min_length=1, max_length=MOST_FEATURES, description="`<sae>/<index>` or the index alone"
    )
    weights: list[Annotated[float, Field(allow_inf_nan=False)]] | None = Field(
        None, max_length=MOST_FEATURES, description="One a feature; 1 unless given"
    )

    @model_validator(mode="after")
    def _whole(self) -> FeaturesTarget:
        if self.weights is not None and len(self.weights) != len(self.features):
            raise ValueError(f"{len(self.weights)} weights for {len(self.features)} features; give one for each")
        return self


class LabelsTarget(Wire):
    """The features whose labels say this, best match first; the weight is the share that a match's score is of the best one's."""

    labels: Annotated[str, Field(min_length=1, max_length=200)]
    limit: Annotated[int, Field(ge=1, le=10_000)] = 1000
    how: How = Field("text", description="By words, by a sentence model, or by both ranks fused")


class RuleTarget(Wire):
    """The features that a stored rule speaks of."""

    rule: Name = Field(description="`<name>`, or `<name>@<version>` for an older one")


_KINDS = ("dataset", "features", "labels", "rule")


def _kind(value: Any) -> str | None:
    names = value if isinstance(value, dict) else type(value).model_fields if isinstance(value, Wire) else ()
    return next((kind for kind in _KINDS if kind in names), None)


Target = Annotated[
    Annotated[DatasetTarget, Tag("dataset")]
    | Annotated[FeaturesTarget, Tag("features")]
    | Annotated[LabelsTarget, Tag("labels")]
    | Annotated[RuleTarget, Tag("rule")],
    Discriminator(_kind, custom_error_type="target", custom_error_message=f"a target has one of: {', '.join(_KINDS)}"),
]

_EXAMPLE: dict[str, JsonValue] = {
    "sae": "qwen3-1.7b-base/12-qwenscope-res-32k-l50",
    "datasets": ["my_sft"],
    "target": {"dataset": "safety"},
    "min_samples": 1,
    "include": ["samples", "synthesis_prompt"],
}


class CoverageGapQuestion(Wire):
    """What do these datasets lack of a target?"""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})
    sae: Name | None = Field(None, description="`<model>/<layer>-<set>`; may be left out where there is one SAE")
    datasets: list[Name | DatasetPart] = Field(
        min_length=1,
        max_length=200,
        description="Names or slices, taken together as one set of samples; no two share any",
    )
    target: Target
    pool: Pool = "any"
    min_samples: Annotated[int, Field(ge=1, le=1 << 53)] = Field(
        1, description="A feature is missing if it fires in fewer samples of the datasets"
    )
    support: Annotated[float, Field(ge=0, le=1)] = Field(
        0.001, description="A feature that is there is weakly covered if it fires in a smaller share of the samples"
    )
    include: list[Literal["samples", "synthesis_prompt"]] = Field([], max_length=2)
    samples: Annotated[int, Field(ge=1, le=10)] = Field(2, description="Proving samples a feature, where included")
    sort: GapSort = Field(
        "weight", description="`weight`: a dataset target's rate, a label's score, what was given, or 1"
    )
    limit: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None, description="Features a page, 50 unless given; a stream has them all unless given"
    )
    cursor: Annotated[str, Field(max_length=200)] | None = None
    as_of: Annotated[int, Field(ge=1, le=1 << 31)] | None = None
    since: Annotated[int, Field(ge=0, le=1 << 31)] | None = Field(
        None, description="Only what has changed since this snapshot; 0 is before the first run"
    )


class Coverage(Wire):
    """How much of the target the datasets cover."""

    share: float | None = Field(description="`n_covered / n_targets`; null without targets")
    n_targets: int
    n_covered: int = Field(
        description="In at least `min_samples` samples of the datasets, weakly covered ones included"
    )
    n_weak: int
    n_missing: int
    n_samples: int = Field(description="Samples of the datasets together")


class GapItem(Wire):
    feature: str
    index: int
    label: str | None
    label_source: ShownSource = None
    state: State = Field(description="`covered` and `untargeted` only among changes")
    before: State | None = Field(description="At `since`")
    change: Change | None = Field(description="`opened`, `closed`, or `moved` between missing and weak")
    count: int = Field(description="Samples of the datasets that fire it")
    rate: float | None = Field(description="The same over their `n_samples`")
    interval: tuple[float, float] | None = Field(description="95 % of the rate, Wilson's score interval")
    target_count: int | None = Field(description="Samples of the target dataset that fire it")
    target_rate: float | None = Field(description="The same over its `n_samples`")
    rate_difference: float | None = Field(description="The target's rate less the datasets'")
    difference_interval: tuple[float, float] | None = Field(description="95 %, Newcombe's hybrid score")
    q_value: float | None = Field(description="Fisher's exact test, Benjamini-Hochberg over `n_tested`")
    weight: float
    firing_tokens: list[str] = Field(description="Tokens on which it fires in the samples shown, most frequent first")
    samples: list[SampleProof] = Field(
        description="Of the target dataset; for another target, of the dataset that fires the feature most"
    )
    synthesis_prompt: str | None = Field(description="Asks a model for one text that shows the feature")


class GapTarget(Wire):
    """What the datasets were held against."""

    kind: Literal["dataset", "features", "labels", "rule"]
    name: str
    n_features: int
    n_samples: int | None = Field(description="Of the target dataset")


class CoverageGapAnswer(Wire):
    """One page of the gap, or of what has changed in it."""

    data: list[GapItem]
    next_cursor: str | None
    total: int = Field(description="Missing and weakly covered features; with `since`, changed ones")
    coverage: Coverage
    since: int | None
    coverage_before: Coverage | None = Field(description="At `since`")
    datasets: list[DatasetCount]
    target: GapTarget
    n_tested: int | None = Field(description="Features that fire in the target dataset or in the others")
    min_samples: int
    support: float
    sort: GapSort
    provenance: Provenance
