"""Features that tell two sets of texts apart."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from schema.wire.base import Provenance, Wire
from schema.wire.reading import Mask
from schema.wire.steering import OpSpec

ContrastSort = Literal["mean_difference", "rate_difference"]
Text = Annotated[str, StringConstraints(min_length=1, max_length=20_000)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=256)]


class Slice(Wire):
    """A dataset, or its samples whose fields meet a condition."""

    dataset: str = Field(max_length=80)
    where: dict[str, Any] = Field(default_factory=dict, max_length=20)
    where_not: dict[str, Any] = Field(
        default_factory=dict, max_length=20, description="Without those whose fields meet all of this"
    )


class ContrastRequest(Wire):
    """Texts, read by the loaded model, or stored samples, on both sides alike."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "positive": ["The dog barked.", "A puppy ran to the dog."],
                    "negative": ["The tree was tall.", "A ship sailed to the island."],
                    "sae": "tinystories-3m/3-qwenscope-res-3k-l32",
                },
                {"positive": {"dataset": "gsm8k"}, "negative": {"dataset": "svamp", "where": {"Type": "Addition"}}},
            ]
        }
    )
    positive: Texts | Slice
    negative: Texts | Slice
    sae: str | None = Field(None, max_length=256, description="May be left out where there is one SAE")
    saes: list[str] = Field(default_factory=list, max_length=128, description="Several at once")
    set: str | None = Field(None, max_length=120, description="Or the SAEs of every layer of this set")
    sort: ContrastSort = "mean_difference"
    limit: int = Field(20, ge=1, le=1_000, description="Features an SAE")
    samples: int = Field(
        1_000, ge=1, le=100_000, description="Stored samples read a side; drawn with the seed where there are more"
    )
    seed: int = Field(0, ge=0, le=(1 << 31) - 1)
    mask: Mask | None = Field(None, description="For texts; as in the SAE's newest run unless given")
    max_tokens: int = Field(512, ge=1, le=8_192, description="For texts; longer ones are cut here")

    @model_validator(mode="after")
    def _alike(self) -> ContrastRequest:
        if isinstance(self.positive, Slice) != isinstance(self.negative, Slice):
            raise ValueError("positive and negative: give texts for both, or a dataset for both")
        if (self.sae is not None) + bool(self.saes) + (self.set is not None) > 1:
            raise ValueError("give one of sae, saes and set")
        return self


class ContrastItem(Wire):
    feature: str
    index: int
    label: str | None
    means: tuple[float, float] = Field(
        description="Positive and negative: activation averaged over a text's tokens that count, then over texts"
    )
    mean_difference: float
    effect_size: float | None = Field(
        description="Cohen's d: the difference over the pooled deviation of the texts' means, which layers can be compared by; "
        "null where no text differs from another of its side"
    )
    counts: tuple[int, int] = Field(description="Texts that fire the feature")
    rates: tuple[float, float] = Field(description="The same over all texts of the side")
    rate_difference: float
    rate_interval: tuple[float, float] = Field(description="95 %, Newcombe's hybrid score")
    p_value: float | None = Field(description="Of what is sorted by; null for means of fewer than 5 texts a side")
    q_value: float | None = Field(description="Benjamini-Hochberg over the features that fire in either side")
    rate_q_value: float = Field(description="The same of the rates, by Fisher's exact test")


class SaeContrast(Wire):
    """One SAE's features, those first that stand for the positive side."""

    sae: str
    data: list[ContrastItem]
    n_tested: int = Field(description="Features that fire in either side: the denominator of the q-values")
    provenance: Provenance


class ContrastAnswer(Wire):
    data: list[SaeContrast]
    n: tuple[int, int] = Field(description="Texts of the positive and the negative side")
    n_available: tuple[int, int] = Field(description="The same before drawing")
    test: Literal["welch", "fisher"] = Field(
        description="Welch's t-test of the means, or Fisher's exact test of the rates"
    )
    sort: ContrastSort
    seed: int


class ProposeRequest(ContrastRequest):
    """A contrast whose best features, over all its layers, are to be steered with."""

    propose: int = Field(5, ge=1, le=100, description="Features, over all layers")
    most_q: float = Field(
        0.05, gt=0, le=1, description="Only features whose q-value, of what is sorted by, is at most this"
    )
    unit: Literal["residual_norm", "absolute"] = Field("residual_norm", description="Of the strengths")


class Proposal(Wire):
    """A feature that stands for the positive side, ready for a sweep or a vector."""

    feature: str
    index: int
    sae: str
    layer: int
    label: str | None
    means: tuple[float, float]
    mean_difference: float
    effect_size: float | None
    rates: tuple[float, float]
    rate_difference: float
    q_value: float | None
    rate_q_value: float
    strengths: list[float] = Field(description="Where to begin; to suppress the behaviour, their negatives")
    unit: Literal["residual_norm", "absolute"]
    op: OpSpec = Field(description="As a sweep's `target`, its strengths to be multiplied by")


class ProposeAnswer(Wire):
    """The features that tell the sides apart best, over all layers; their layers' scales differ, so means are ranked by effect size."""

    data: list[Proposal]
    n: tuple[int, int]
    n_available: tuple[int, int]
    n_tested: dict[str, int] = Field(description="SAE -> features that fire in either side")
    sort: ContrastSort
    most_q: float
    reason: str | None = Field(description="Why there are fewer than were asked for; null where there are not")
    seed: int
    provenance: list[Provenance]
