"""`--steer FEATURE:STRENGTH`: operations as people type them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Optional, get_args

import typer

from schema.errors import InputError
from schema.wire.steering import Mode, Steering, Unit
from scopebase.cli.options import checked

MODES, UNITS = get_args(Mode), get_args(Unit)
SHARES = ("suppress", "ablate")
SYNTAX = "FEATURE:STRENGTH or VECTOR:STRENGTH, and after further colons a mode and a unit"
SteerOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--steer",
        metavar="FEATURE:STRENGTH",
        help="<sae>/<index> or a saved vector, its strength, and if wanted :MODE and :UNIT, as in "
        "'m/3-tiny/99:0.4', 'm/3-tiny/99:2:set:feature_max', 'calm@2:ablate'. Repeat for more.",
        show_default=False,
    ),
]
SteerJsonOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--steer-json",
        help="The whole 'steering' of the HTTP route as JSON, or @FILE that holds it; --steer adds to its operations.",
        show_default=False,
    ),
]
ModeOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--mode", help=f"Of each --steer that names none: {', '.join(MODES)}.  [default: add]", show_default=False
    ),
]
UnitOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--unit",
        help=f"Of each --steer that names none: {', '.join(UNITS)}.  [default: residual_norm for add, else absolute]",
        show_default=False,
    ),
]


def read_op(text: str, mode: str | None = None, unit: str | None = None) -> dict[str, Any]:
    """One --steer as an operation of the wire. What stands behind the target may stand in any order.

    Raises:
        InputError: it cannot be read.
    """
    target, *rest = text.split(":")
    words = [word.strip() for word in rest]
    modes, units = [w for w in words if w in MODES], [w for w in words if w in UNITS]
    numbers = [w for w in words if w not in (*MODES, *UNITS)]
    if not target.strip() or max(len(modes), len(units), len(numbers)) > 1:
        raise InputError(f"--steer {text!r}: {SYNTAX}")
    mode = modes[0] if modes else mode or "add"
    if not numbers and mode not in SHARES:
        raise InputError(f"--steer {text!r}: no strength; {SYNTAX}, as in {target}:0.4")
    found: dict[str, Any] = {"feature" if "/" in target else "vector": target.strip(), "mode": mode}
    if numbers:
        found["strength"] = _number(text, numbers[0])
    chosen = units[0] if units else unit if mode not in ("multiply", *SHARES) else None
    return {**found, "unit": chosen or ("residual_norm" if mode == "add" else "absolute")}


def read_steering(
    steer: Sequence[str] | None, steer_json: str | None, mode: str | None, unit: str | None, more: Mapping[str, Any]
) -> Steering | None:
    """All that was typed of steering; None for nothing.

    Args:
        more: further fields, None where not given.

    Raises:
        InputError: it cannot be read, or contradicts itself.
    """
    whole = _read_json(steer_json) if steer_json is not None else {}
    ops = [*whole.get("ops", []), *(read_op(each, mode, unit) for each in steer or ())]
    if not ops:
        if whole:
            raise InputError("--steer-json has no operation in its ops")
        return None
    given = {name: value for name, value in more.items() if value is not None}
    return checked(Steering, {**whole, **given, "ops": ops})


def _number(text: str, word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise InputError(
            f"--steer {text!r}: {word!r} is neither a number nor a mode ({', '.join(MODES)}) nor a unit ({', '.join(UNITS)})"
        ) from None


def _read_json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(Path(text[1:]).read_text("utf-8") if text.startswith("@") else text)
    except OSError as error:
        raise InputError(f"--steer-json {text}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"--steer-json is no JSON: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("ops", []), list):
        raise InputError("--steer-json: an object with ops, as the steering of POST /v1/completions")
    return found
