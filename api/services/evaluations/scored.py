"""Per-sample scores, whatever file they came from."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field
from typing import Any

from schema.errors import InputError

LETTERS = {"c": 1.0, "p": 0.5, "i": 0.0, "n": 0.0, "true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0}
LARGEST_SCORE = 1e100


@dataclass(frozen=True)
class Scored:
    """One scored sample as a file has it."""

    score: float
    id: str | None = None
    order: int | None = None
    """Its place in the dataset that was evaluated."""
    fields: dict[str, Any] = field(default_factory=dict)
    """What the file repeats of the dataset's row."""

    @property
    def shown(self) -> str:
        return self.id if self.id is not None else f"doc_id {self.order}"


@dataclass(frozen=True)
class ScoreFile:
    """The scores of one evaluated model in one file."""

    format: str
    source: str
    rows: list[Scored]
    evaluated: str | None = None
    """The model, where the file names it."""


def number_of(value: Any, where: str, name: str) -> float:
    """A score as a number.

    Raises:
        InputError: it is none, not finite, or too large to be averaged.
    """
    number = math.nan
    with contextlib.suppress(ValueError, OverflowError):
        if isinstance(value, str):
            text = value.strip().lower()
            number = LETTERS[text] if text in LETTERS else float(text)
        elif isinstance(value, bool | int | float):
            number = float(value)
    if not abs(number) <= LARGEST_SCORE:
        raise InputError(f"{where}: {name}={str(value)[:40]!r} is no finite number; leave such rows out")
    return number
