"""Requests to steer that contradict themselves, or that would do nothing, are refused before any work."""

from __future__ import annotations

from collections.abc import Sequence

from schema.errors import InputError
from schema.generation import Op
from schema.wire.steering import OpSpec, Where

NEED_ENCODER = ("set", "multiply", "suppress", "cap", "floor")
"""Modes that read a feature's activation, which only its own layer's SAE can give."""
NO_UNIT = ("multiply", "suppress", "ablate")
SHARES = ("suppress", "ablate")
LARGEST = {"absolute": 1e6, "unit": 1e6, "residual_norm": 100.0, "feature_max": 10_000.0}
"""The largest strength of each unit; beyond it a text is only one token repeated."""


def check_spec(place: int, spec: OpSpec) -> None:
    """Raises InputError for an operation that cannot be meant."""
    where = f"steering.ops.{place}"
    if spec.mode in NO_UNIT and spec.unit != "absolute":
        raise InputError(f"{where}: mode {spec.mode} has no unit; leave unit out")
    if spec.mode in SHARES and not 0 <= spec.strength <= 1:
        raise InputError(
            f"{where}: strength of {spec.mode} is the share that is removed, 0 to 1, not {spec.strength:g}"
        )
    if abs(spec.strength) > LARGEST[spec.unit]:
        most = f"{LARGEST[spec.unit]:,.0f}"
        raise InputError(
            f"{where}: strength {spec.strength:g} in unit {spec.unit}; it must lie between -{most} and {most}"
        )
    fault = _fault(spec.where)
    if fault:
        raise InputError(f"{where}.where: {fault}")


def check_together(ops: Sequence[Op]) -> None:
    """Raises InputError for operations of one direction at one layer and the same tokens of which only the last could hold."""
    for place, later in enumerate(ops):
        for earlier in ops[:place]:
            same = (earlier.target, earlier.layer, earlier.where) == (later.target, later.layer, later.where)
            if same and earlier.place != later.place and (why := _against(earlier, later)):
                raise InputError(
                    f"steering.ops.{earlier.place} and steering.ops.{later.place} contradict each other: {why} "
                    f"{later.target} at layer {later.layer}; leave one out, or give them different tokens"
                )


def _against(a: Op, b: Op) -> str | None:
    modes = {a.mode, b.mode}
    if a.mode == b.mode == "set":
        return "both set"
    if "set" in modes and modes & {"suppress", "ablate"}:
        return "one sets and the other removes"
    if modes == {"cap", "floor"} and a.unit == b.unit:
        cap, floor = (a, b) if a.mode == "cap" else (b, a)
        return "the floor lies above the cap of" if floor.strength > cap.strength else None
    return None


def _fault(where: Where) -> str | None:
    """What keeps it from selecting any token."""
    for phase in ("prompt", "generation"):
        window, positions = getattr(where, f"{phase}_window"), getattr(where, f"{phase}_positions")
        if window is not None and positions is not None:
            return f"give {phase}_window or {phase}_positions, not both"
        if (window is not None or positions is not None) and getattr(where, phase) != "all":
            return (
                f"{phase}={getattr(where, phase)} beside {phase}_{'window' if window else 'positions'}; leave one out"
            )
        if window is not None and (window[0] < 0) == (window[1] < 0) and window[0] >= window[1]:
            return f"{phase}_window [{window[0]}, {window[1]}) holds no token"
    if any(n < 0 for n in (*(where.generation_window or ()), *(where.generation_positions or ()))):
        return "generated tokens are counted from 0; their number is not known beforehand"
    nowhere = all(
        getattr(where, phase) == "none" or getattr(where, f"{phase}_positions") == []
        for phase in ("prompt", "generation")
    )
    if nowhere:
        return "it selects neither prompt nor generated tokens, so nothing would be steered"
    if where.tokens is not None and set(where.tokens) <= set(where.exclude_tokens):
        return "every id in tokens is excluded, or there is none, so nothing would be steered"
    return None
