"""What a text fires, token by token: a new text through a loaded model, or a stored sample."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from schema.wire.base import Provenance, Wire

Mask = Literal["none", "special", "first", "special,first"]
MOST_CHARS = 100_000
MOST_IDS = 8_192


class InspectRequest(Wire):
    """A text, or token ids as they are."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"text": "Lily has three apples.", "saes": ["tinystories-3m/3-qwenscope-res-3k-l32"]}
        }
    )
    text: str | None = Field(None, min_length=1, max_length=MOST_CHARS, description="What to read")
    token_ids: list[int] | None = Field(None, min_length=1, max_length=MOST_IDS)
    sae: str | None = Field(None, max_length=256, description="May be left out where there is one SAE")
    saes: list[str] = Field(default_factory=list, max_length=128, description="Several at once")
    features: list[str] = Field(
        default_factory=list, max_length=1_000, description="Only these features, `<sae>/<index>`; all unless given"
    )
    top: int = Field(8, ge=0, le=1_000, description="Strongest features a token")
    overall: int = Field(20, ge=0, le=1_000, description="Strongest features of the whole text")
    mask: Mask | None = Field(None, description="Tokens that never fire; as in the SAE's newest run unless given")
    max_tokens: int = Field(512, ge=1, le=MOST_IDS, description="Longer texts are cut here")

    @model_validator(mode="after")
    def _one(self) -> InspectRequest:
        if (self.text is None) == (self.token_ids is None):
            raise ValueError("give either text or token_ids")
        if self.sae is not None and self.saes:
            raise ValueError("give either sae or saes")
        return self


class ReadToken(Wire):
    position: int
    id: int
    text: str
    start: int = Field(description="Characters of the whole text")
    end: int
    counts: bool | None = Field(
        description="False where the mask keeps it from firing; null for stored samples, which keep the number alone"
    )


class TokenFeature(Wire):
    index: int
    activation: float


class ReadFeature(Wire):
    """A feature over the whole text."""

    feature: str
    index: int
    label: str | None
    activation: float = Field(description="Its largest")
    position: int = Field(description="The token where it is largest")
    tokens: int = Field(description="Tokens on which it fires")


class SaeReading(Wire):
    """What a text fires in one SAE."""

    sae: str
    n_features: int = Field(description="Features that fire at some token, of those asked for")
    n_activations: int
    tokens: list[list[TokenFeature]] = Field(description="For each token the strongest, strongest first")
    features: list[ReadFeature] = Field(description="The strongest of the whole text")
    labels: dict[int, str] = Field(description="Best labels of the features shown")
    provenance: Provenance


class InspectAnswer(Wire):
    text: str
    model: str
    tokens: list[ReadToken]
    n_tokens: int
    n_counting: int = Field(description="Tokens that may fire")
    truncated: bool
    max_tokens: int
    saes: list[SaeReading]


class SampleAnswer(Wire):
    """A stored sample, and what it fires."""

    dataset: str
    version: int
    id: str
    record: dict[str, Any] = Field(description="The sample's fields as they came")
    text: str
    tokens: list[ReadToken]
    n_tokens: int
    n_counting: int
    saes: list[SaeReading]
