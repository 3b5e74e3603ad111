"""What a sweep measures of generated texts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from schema.wire.base import Wire
from schema.wire.expressions import Expression

Word = Annotated[str, StringConstraints(min_length=1, max_length=100)]


class ScriptShare(Wire):
    """Share of a text's letters that are of a script."""

    measure: Literal["script"]
    script: str = Field(max_length=40, description="A Unicode script, such as `Han`, `Cyrillic` or `Arabic`")


class RuleShare(Wire):
    """Share of texts in which a rule holds, generated tokens read back through the unsteered model."""

    measure: Literal["rule"]
    rule: str | None = Field(None, max_length=80, description="A stored rule, `<name>` or `<name>@<version>`")
    expression: Expression | None = Field(None, description="Or one written here, as in /v1/rules")

    @model_validator(mode="after")
    def _one(self) -> RuleShare:
        if (self.rule is None) == (self.expression is None):
            raise ValueError("give either rule or expression")
        return self


class FeatureActivation(Wire):
    """A feature's activation at the generated tokens, read back through the unsteered model."""

    measure: Literal["feature"]
    feature: str = Field(max_length=300, description="`<sae>/<index>`")
    of: Literal["mean", "max", "fires"] = Field(
        "mean",
        description="Mean over a text's tokens that count, their maximum, or the share of texts where it fires",
    )


class Repetition(Wire):
    """Share of a text's n-grams of tokens that stood in it before; 1 minus distinct-n."""

    measure: Literal["repetition"]
    n: int = Field(4, ge=1, le=32)


class LongestRepeat(Wire):
    """Length of the longest run of tokens that occurs twice in a text, over the text's length."""

    measure: Literal["longest_repeat"]


class Endless(Wire):
    """Share of texts that were not ended and whose last tokens repeat with one period."""

    measure: Literal["endless"]
    tail: int = Field(200, ge=4, le=8_192, description="So many tokens at the end, at least")
    times: int = Field(4, ge=2, le=64, description="So many repeats, at least")
    period: int = Field(100, ge=1, le=2_048, description="Of so many tokens, at most")


class Words(Wire):
    """Share of texts that hold one of these words."""

    measure: Literal["words"]
    words: list[Word] = Field(
        min_length=1, max_length=500, description="Whole words in any case; in scripts without spaces, anywhere"
    )


Effect = Annotated[
    ScriptShare | RuleShare | FeatureActivation | Repetition | LongestRepeat | Endless | Words,
    Field(discriminator="measure"),
]
