"""One text that was read, live or from the store, and the features of a rule that are above their values in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from api.services.evidence import spans, window
from api.services.rules.expressions import Leaf, decide
from schema.wire.expressions import Expression
from schema.wire.rules import Classified, DecidingFeature

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Above:
    """Where a feature is above its value."""

    position: Ints
    value: npt.NDArray[np.float32]

    @property
    def activation(self) -> float:
        return float(self.value.max())


@dataclass(frozen=True)
class Reading:
    """A text, its tokens, and what is above in it."""

    dataset: str | None
    id: str | None
    text: str
    starts: Ints
    ends: Ints
    above: Mapping[Leaf, Above]
    truncated: bool = False


def says(expression: Expression, found: Mapping[Leaf, bool], reading: Reading) -> bool:
    """What an expression says of one text."""
    holds = {leaf: np.array([leaf in reading.above]) for leaf in found}
    return bool(decide(expression, holds)[0])


def classified(reading: Reading, positive: bool, found: Mapping[Leaf, bool], labels: Mapping[Leaf, str]) -> Classified:
    """The answer for one text, shown around its strongest token.

    Args:
        found: the rule's features, and whether each is negated.
    """
    strongest = max(reading.above.values(), key=lambda above: above.activation, default=None)
    centre = int(reading.starts[strongest.position[strongest.value.argmax()]]) if strongest is not None else 0
    shown = window(len(reading.text), centre)
    return Classified(
        dataset=reading.dataset,
        id=reading.id,
        positive=positive,
        text=reading.text[slice(*shown)],
        offset=shown[0],
        truncated=reading.truncated,
        features=[
            DecidingFeature(
                feature=f"{leaf.sae}/{leaf.index}",
                label=labels.get(leaf),
                above=leaf.above,
                activation=above.activation,
                negated=found[leaf],
                tokens=spans(above.position, above.value, reading.starts, reading.ends, shown),
                n_tokens=len(above.position),
            )
            for leaf, above in reading.above.items()
        ],
    )
