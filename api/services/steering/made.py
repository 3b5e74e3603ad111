"""A direction that was just made, before it has a name: one vector a layer of one model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from schema.errors import Conflict, InputError
from schema.tables import Model
from schema.wire.vectors import VectorMade

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Made:
    """What is saved under a name."""

    model: Model
    layers: Mapping[int, Floats]
    """Layer -> (d_model,), ascending."""
    how: VectorMade
    provenance: Mapping[str, Any]


def finish(
    model: Model, sums: Mapping[int, Doubles], unit: bool, how: VectorMade, provenance: Mapping[str, Any]
) -> Made:
    """Sums in float64 as they are saved.

    Args:
        unit: brings each layer's vector to length 1.

    Raises:
        Conflict: at some layer nothing is left.
        InputError: numbers beyond float32.
    """
    layers: dict[int, Floats] = {}
    for layer in sorted(sums):
        norm = float(np.linalg.norm(sums[layer]))
        if norm == 0:
            raise Conflict(f"at layer {layer} nothing is left: the parts cancel each other out, or there was none")
        with np.errstate(over="ignore"):
            vector = (sums[layer] / norm if unit else sums[layer]).astype(np.float32)
        if not np.isfinite(vector).all():
            raise InputError(f"at layer {layer} the sum is beyond what float32 holds; give smaller weights")
        layers[layer] = vector
    return Made(model, layers, how, provenance)
