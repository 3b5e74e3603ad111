"""Steering as users write it, and what the answer says was done. The body of `"steering"` beside OpenAI's fields."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from schema.wire.base import Wire
from schema.wire.expressions import Expression

Mode = Literal["add", "set", "multiply", "suppress", "ablate", "cap", "floor"]
Unit = Literal["absolute", "unit", "residual_norm", "feature_max"]
MOST_OPS = 16
MOST_PLACES = 1_000
Window = Annotated[list[int], Field(min_length=2, max_length=2)]
Positions = Annotated[list[int], Field(max_length=MOST_PLACES)]


class Where(Wire):
    """Which tokens an operation touches: those included and not excluded. Prompt and generation are counted from 0 each."""

    prompt: Literal["all", "last", "none"] = Field(default="all", description="Tokens of the prompt")
    generation: Literal["all", "none"] = Field(default="all", description="Tokens that were generated")
    prompt_window: Window | None = Field(
        default=None, description="[start, stop) instead of all; negative from the end"
    )
    generation_window: Window | None = Field(default=None, description="[start, stop) instead of all")
    prompt_positions: Positions | None = Field(default=None, description="These instead of all; negative from the end")
    generation_positions: Positions | None = Field(default=None, description="These instead of all")
    tokens: Positions | None = Field(default=None, description="Only tokens with these ids")
    exclude_prompt_positions: Positions = Field(default_factory=list)
    exclude_generation_positions: Positions = Field(default_factory=list)
    exclude_tokens: Positions = Field(default_factory=list, description="Never tokens with these ids")
    skip_special: bool = Field(
        default=True,
        description="Never the tokenizer's special tokens, chat markers included, nor position 0: what the index masks",
    )


class OpSpec(Wire):
    """One operation on the residual stream after one block. See docs/explanation/steering.md for what each mode computes."""

    feature: str | None = Field(
        None, max_length=300, description="`<sae>/<index>`: its decoder column, at its SAE's layer"
    )
    vector: str | None = Field(None, max_length=80, description="A saved vector, `<name>` or `<name>@<version>`")
    layer: int | None = Field(
        None,
        strict=True,
        ge=0,
        le=100_000,
        description="Another layer than the direction's own; of a vector of several layers, this one alone",
    )
    mode: Mode = "add"
    strength: float = Field(
        1.0, strict=True, allow_inf_nan=False, description="`suppress` and `ablate`: the share that is removed"
    )
    unit: Unit = Field(
        "absolute", description="What `strength` counts in; `multiply`, `suppress` and `ablate` have none"
    )
    where: Where = Field(default_factory=Where)

    @model_validator(mode="after")
    def _one(self) -> OpSpec:
        if (self.feature is None) == (self.vector is None):
            raise ValueError("give either feature or vector")
        if self.unit == "feature_max" and self.feature is None:
            raise ValueError("unit feature_max needs a feature; a vector has no largest activation")
        return self


class When(Wire):
    """Steers only where something else fires."""

    rule: str | None = Field(None, max_length=80, description="A stored rule, `<name>` or `<name>@<version>`")
    expression: Expression | None = Field(None, description="Or one written here, as in /v1/rules")
    scope: Literal["after", "token", "prompt"] = Field(
        "after",
        description="`after`: from the first token on by which it holds; `token`: at the tokens where it holds; "
        "`prompt`: what was generated, if it held in the prompt",
    )

    @model_validator(mode="after")
    def _one(self) -> When:
        if (self.rule is None) == (self.expression is None):
            raise ValueError("give either rule or expression")
        return self


class Steering(Wire):
    """What is done to the residual stream while a text is generated."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "ops": [{"feature": "m/3-tiny/99", "mode": "add", "strength": 0.4, "unit": "residual_norm"}],
                "compare": True,
            }
        }
    )
    ops: list[OpSpec] = Field(min_length=1, max_length=MOST_OPS, description="Applied in this order at each layer")
    when: When | None = None
    compare: bool = Field(False, description="Also generate the same choices unsteered, from the same seeds")
    kl: Literal["first", "every", "off"] = Field(
        "first",
        description="Divergence from the unsteered next token: at the first one generated, at each (twice the work), or not",
    )


class OpApplied(Wire):
    """What one operation did, over all choices of the answer."""

    op: int = Field(description="Its place in `ops`")
    target: str = Field(description="The feature, or the vector with its version")
    layer: int
    mode: Mode
    strength: float
    unit: Unit
    vector_sha256: str = Field(description="Of the direction's float32 bytes")
    prompt_tokens: int = Field(description="Tokens of the prompt that it touched")
    generated_tokens: int = Field(description="Tokens generated that it touched")
    mean_relative_norm: float | None = Field(
        description="Mean of |added| / |residual| over the tokens touched; null where none was"
    )
    max_relative_norm: float | None
    activation_before: float | None = Field(
        description="What the encoder reads of the feature at the tokens touched, before the k largest are chosen, mean; "
        "null for a vector"
    )
    activation_after: float | None


class SteeringApplied(Wire):
    """What steering did: never left out of a steered answer."""

    ops: list[OpApplied]
    condition_tokens: int | None = Field(
        description="Tokens at which the condition let operations through; null without one"
    )
    kl_first: float | None = Field(
        description="KL(steered || unsteered), in nats, of the first token generated, mean over choices; null where not asked for"
    )
    kl_mean: float | None = Field(
        description="The same over all tokens generated, each after the steered text; null unless `every`"
    )
    engine: str
    version: str
