"""Expressions as trees: their features, and what they say of samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schema.errors import InputError
from schema.names import parse_sae
from schema.wire.expressions import AnyOf, Expression, FeatureAbove, Not

MOST_FEATURES = 1000
DEEPEST = 20

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Leaf:
    """One feature of an expression."""

    sae: str
    index: int
    above: float


def leaf_of(node: FeatureAbove) -> Leaf:
    """The SAE and index of a feature's id.

    Raises:
        InputError: it is none.
    """
    sae, _, index = node.feature.rpartition("/")
    if not index.isdecimal() or len(index) > 9:
        raise InputError(f"{node.feature!r} is no feature's id; it looks like <model>/<layer>-<set>/<index>")
    parse_sae(sae)
    return Leaf(sae, int(index), node.above)


def leaves(expression: Expression) -> dict[Leaf, bool]:
    """Every feature of an expression in its order, and whether it stands under an odd number of `not`.

    Raises:
        InputError: an id that is none, or an expression beyond MOST_FEATURES or DEEPEST.
    """
    found: dict[Leaf, bool] = {}
    for n, (leaf, negated) in enumerate(_walk(expression, False, 1), start=1):
        if n > MOST_FEATURES:
            raise InputError(f"the expression has more than {MOST_FEATURES:,} features; make it smaller")
        found.setdefault(leaf, negated)
    return found


def _walk(node: Expression, negated: bool, depth: int) -> Iterator[tuple[Leaf, bool]]:
    if depth > DEEPEST:
        raise InputError(f"the expression is nested deeper than {DEEPEST}; make it flatter")
    if isinstance(node, FeatureAbove):
        yield leaf_of(node), negated
    elif isinstance(node, Not):
        yield from _walk(node.not_, not negated, depth + 1)
    else:
        for part in node.any if isinstance(node, AnyOf) else node.all:
            yield from _walk(part, negated, depth + 1)


def decide(expression: Expression, holds: Mapping[Leaf, Bools]) -> Bools:
    """What an expression says of each sample.

    Args:
        holds: leaf -> (n_samples,) True where the feature is above its value.
    """
    if isinstance(expression, FeatureAbove):
        return holds[leaf_of(expression)]
    if isinstance(expression, Not):
        return ~decide(expression.not_, holds)
    either = isinstance(expression, AnyOf)
    parts = [decide(part, holds) for part in (expression.any if isinstance(expression, AnyOf) else expression.all)]
    return np.logical_or.reduce(parts) if either else np.logical_and.reduce(parts)


def any_of(features: Sequence[tuple[str, int]]) -> AnyOf:
    """The OR rule of these features, each an SAE and an index."""
    return AnyOf(any=[FeatureAbove(feature=f"{sae}/{index}") for sae, index in features])
