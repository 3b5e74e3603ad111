"""Features that tell two sets of texts apart."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from schema.wire.base import Provenance, Wire
from schema.wire.reading import Mask

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
        if self.sae is not None and self.saes:
            raise ValueError("give either sae or saes")
        return self


class ContrastItem(Wire):
    feature: str
    index: int
    label: str | None
    means: tuple[float, float] = Field(
        description="Positive and negative: activation averaged over a text's tokens that count, then over texts"
    )
    mean_difference: float
    counts: tuple[int, int] = Field(description="Texts that fire the feature")
    rates: tuple[float, float] = Field(description="The same over all texts of the side")
    rate_difference: float
    rate_interval: tuple[float, float] = Field(description="95 %, Newcombe's hybrid score")
    p_value: float | None = Field(description="Of what is sorted by; null for means of fewer than 5 texts a side")
    q_value: float | None = Field(description="Benjamini-Hochberg over the features that fire in either side")


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
