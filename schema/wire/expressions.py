"""A rule's expression: features that fire above a value, joined by any, all and not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Discriminator, Field, Tag

from schema.wire.base import Wire

KINDS = ("feature", "any", "all", "not")


class FeatureAbove(Wire):
    """Holds for a sample whose pooled activation of the feature is greater than `above`."""

    feature: str = Field(description="`<sae>/<index>`", max_length=300)
    above: float = Field(default=0.0, ge=0, le=65_504, description="0 means: fires")


class AnyOf(Wire):
    """Holds where one of them does."""

    any: list[Expression] = Field(min_length=1, max_length=1000)


class AllOf(Wire):
    """Holds where each of them does."""

    all: list[Expression] = Field(min_length=1, max_length=1000)


class Not(Wire):
    """Holds where the other does not."""

    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=True, validate_by_alias=True)
    not_: Expression = Field(alias="not")


def _kind(value: Any) -> str | None:
    """Which of the four an object is, by the one word that it must have."""
    if isinstance(value, Mapping):
        return next((kind for kind in KINDS if kind in value), None)
    kinds: dict[type, str] = {FeatureAbove: "feature", AnyOf: "any", AllOf: "all", Not: "not"}
    return kinds.get(type(value))


Expression = Annotated[
    Annotated[FeatureAbove, Tag("feature")]
    | Annotated[AnyOf, Tag("any")]
    | Annotated[AllOf, Tag("all")]
    | Annotated[Not, Tag("not")],
    Discriminator(
        _kind,
        custom_error_type="expression",
        custom_error_message='an expression is one of {"feature": "<sae>/<index>", "above": 0.0}, {"any": [...]}, '
        '{"all": [...]} and {"not": {...}}',
    ),
]
for _model in (AnyOf, AllOf, Not):
    _model.model_rebuild()
