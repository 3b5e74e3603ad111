"""Neuronpedia's answers about texts of one's own, which a loaded model reads."""

from __future__ import annotations

from pydantic import Field

from schema.wire.base import Wire
from schema.wire.neuronpedia import Floats, Names


class NpComputed(Wire):
    """A feature's activations on a text of one's own."""

    tokens: Names
    values: Floats
    maxValue: float
    minValue: float
    maxValueTokenIndex: int
    modelId: str
    layer: str
    source: str
    index: str
    dfaValues: Floats = Field(default_factory=list)
    dfaTargetIndex: int | None = None
    dfaMaxValue: float | None = None


class NpSparse(Wire):
    tokens: Names
    activeFeatures: dict[str, list[tuple[int, float]]] = Field(description="Feature -> (token, activation) pairs")


class NpSparseAnswer(Wire):
    results: list[NpSparse]


class NpHit(Wire):
    modelId: str
    layer: str
    source: str
    index: str
    values: Floats
    maxValue: float
    maxValueIndex: int
    neuron: dict[str, str | float]


class NpHits(Wire):
    tokens: Names
    result: list[NpHit]
    sortIndexes: list[int]
    counts: list[list[float]] = Field(default_factory=list)


class NpHitsList(Wire):
    results: list[NpHits]


class NpTopFeature(Wire):
    activationValue: float
    featureIndex: int
    feature: dict[str, str | float] | None


class NpTopToken(Wire):
    position: int
    token: str
    isSpecial: bool
    topFeatures: list[NpTopFeature]


class NpTopAnswer(Wire):
    source: str
    results: list[NpTopToken]


class NpTopList(Wire):
    results: list[NpTopAnswer]
