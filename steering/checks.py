"""What is refused before any work: operations that the model cannot take, that contradict each other or that could touch nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from schema.errors import InputError
from schema.generation import Op
from schema.wire.steering import Mode
from steering.places import Place

MOST_OF_NORM = 10.0
"""Of unit `residual_norm`: times the residual's own length."""
MOST_OVER_TYPICAL = 100.0
"""Of the other units: what is added, over the typical length of the residual at that layer."""
MOST_FACTOR = 100.0
"""Of `multiply`."""
_REMOVES: tuple[Mode, ...] = ("suppress", "ablate")
_SHARES: tuple[Mode, ...] = ("suppress", "ablate")


def name_of(op: Op) -> str:
    """How an operation is called in a sentence."""
    return f"steering.ops.{op.place} ({op.mode} {op.target})"


def check_op(op: Op, n_layers: int, d_model: int, typical: float | None) -> None:
    """
    Args:
        typical: length of the residual at the operation's layer, where it is known.

    Raises:
        InputError: layer, width, values, strength or unit are wrong.
    """
    name = name_of(op)
    if not 0 <= op.layer < n_layers:
        raise InputError(f"{name}: layer {op.layer} is none of the model's, which are 0 to {n_layers - 1}")
    if op.vector.shape != (d_model,):
        width = " x ".join(map(str, op.vector.shape))
        raise InputError(f"{name}: its vector has width {width}, but the model's residual stream has {d_model}")
    if not np.isfinite(op.vector).all():
        raise InputError(f"{name}: its vector holds NaN or infinity; save it anew")
    if not op.vector.any():
        raise InputError(f"{name}: its vector is zero everywhere, so that it has no direction")
    if not np.isfinite(op.strength):
        raise InputError(f"{name}: strength {op.strength} is no finite number")
    _check_unit(op, name)
    _check_strength(op, name, typical)


def _check_unit(op: Op, name: str) -> None:
    if op.unit != "feature_max" or op.mode in ("multiply", *_SHARES):
        return
    if op.feature is None:
        raise InputError(f"{name}: unit feature_max needs a feature; a vector has no largest activation")
    if not op.largest:
        raise InputError(
            f"{name}: unit feature_max needs the feature's largest activation, but it never fires in the index; give another unit"
        )


def _check_strength(op: Op, name: str, typical: float | None) -> None:
    if op.mode in _SHARES:
        if not 0 <= op.strength <= 1:
            raise InputError(
                f"{name}: strength {op.strength:g} of {op.mode} is the share that is removed, from 0 to 1; 'multiply' goes further"
            )
        return
    if op.mode == "multiply":
        if abs(op.strength) > MOST_FACTOR:
            raise InputError(
                f"{name}: a factor of {op.strength:g} is out of reason; from -{MOST_FACTOR:g} to {MOST_FACTOR:g}"
            )
        return
    if op.unit == "residual_norm":
        if abs(op.strength) > MOST_OF_NORM:
            raise InputError(
                f"{name}: {op.strength:g} times the residual's norm is out of reason; from -{MOST_OF_NORM:g} to {MOST_OF_NORM:g}, "
                "and texts mostly fall apart beyond 0.5"
            )
        return
    added = _length_added(op)
    if typical is not None and added > MOST_OVER_TYPICAL * typical:
        raise InputError(
            f"{name}: strength {op.strength:g} adds a vector of length {added:.3g} where the residual's is about {typical:.3g}; "
            f"at most {abs(op.strength) * MOST_OVER_TYPICAL * typical / added:.3g} is taken"
        )


def _length_added(op: Op) -> float:
    """About what the strength comes to in the residual stream."""
    length = float(np.linalg.norm(op.vector.astype(np.float64)))
    if op.unit == "unit" or (op.mode != "add" and op.feature is None):
        return abs(op.strength)
    return abs(op.strength) * length * (op.largest or 0.0 if op.unit == "feature_max" else 1.0)


def check_together(ops: Sequence[tuple[Op, Place]], gates: Sequence[str | None], max_tokens: int) -> None:
    """
    Args:
        gates: `before` of operations that a condition lets through only at what is generated.

    Raises:
        InputError: an operation can touch no token, or two want one thing to be two things at the same tokens.
    """
    for (op, place), gate in zip(ops, gates, strict=True):
        if not (place.can_touch_generated(max_tokens) if gate == "before" else place.can_touch(max_tokens)):
            raise InputError(
                f"{name_of(op)}: its where leaves no token of this prompt or of the {max_tokens} to generate; "
                "the last one generated is never steered"
            )
    for (first, here), (second, there) in combinations(ops, 2):
        same = first.layer == second.layer and np.array_equal(first.vector, second.vector)
        if same and _contradict(first, second) and here.overlaps(there, max_tokens):
            raise InputError(
                f"{name_of(first)} and {name_of(second)} contradict each other at layer {first.layer}; "
                "leave one out, or give them places that do not overlap"
            )


def _contradict(first: Op, second: Op) -> bool:
    """One is set twice, set and changed, removed and raised, or capped below its floor."""
    modes = {first.mode, second.mode}
    if "add" in modes:
        return False
    if "set" in modes:
        return True
    if modes & set(_REMOVES):
        return bool(modes & {"multiply", "floor"})
    if modes == {"cap", "floor"} and first.unit == second.unit:
        cap, floor = (first, second) if first.mode == "cap" else (second, first)
        return cap.strength < floor.strength
    return False
