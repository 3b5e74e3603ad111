"""The arithmetic of modes: every operation moves the residual along one direction by an amount that is read off the token.

    h' = h + x D
    x  = base + base_norm |h| + share c + (clamp(c, low + low_norm |h|, high + high_norm |h|) - c)

c is the residual's component along D, or the activation of D's feature. One formula for all modes, so that rows with different ones can be
worked on together. docs/explanation/steering.md derives it from each mode and unit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from schema.generation import Op
from schema.wire.steering import Mode

Reads = Literal["nothing", "component", "activation"]
"""What c is."""
NUMBERS = ("base", "base_norm", "share", "low", "low_norm", "high", "high_norm")
_READS_ACTIVATION: tuple[Mode, ...] = ("set", "multiply", "suppress", "cap", "floor")


@dataclass(frozen=True)
class Edit:
    """One operation as the formula's numbers."""

    direction: npt.NDArray[np.float32]
    """(d_model,) D."""
    reads: Reads
    base: float = 0.0
    base_norm: float = 0.0
    share: float = 0.0
    low: float = -math.inf
    low_norm: float = 0.0
    high: float = math.inf
    high_norm: float = 0.0

    @property
    def length(self) -> float:
        """|D|"""
        return float(np.linalg.norm(self.direction.astype(np.float64)))

    @property
    def does_nothing(self) -> bool:
        """Whatever the residual is: strength 0 of `add`, `suppress` and `ablate`, and `multiply` by 1."""
        clamps = self.low > -math.inf or self.high < math.inf
        return not (self.base or self.base_norm or self.share or clamps)


def reads(op: Op) -> Reads:
    """What an operation needs to know of a token."""
    if op.mode == "add":
        return "nothing"
    return "activation" if op.feature is not None and op.mode in _READS_ACTIVATION else "component"


def edit(op: Op, *, rescaled: bool = False) -> Edit:
    """The operation's numbers.

    Args:
        rescaled: the feature's contribution is its activation times the direction of its column, whatever the column's length.
    """
    vector = op.vector.astype(np.float64)
    unit = vector / np.linalg.norm(vector)
    what = reads(op)
    if what == "nothing":
        along = unit if op.unit in ("unit", "residual_norm") or (op.unit == "feature_max" and rescaled) else vector
        base, norm = _target(op, 1.0)
        return Edit(along.astype(np.float32), what, base=base, base_norm=norm)
    along = unit if what == "component" or rescaled else vector
    direction = along.astype(np.float32)
    if op.mode == "multiply":
        return Edit(direction, what, share=op.strength - 1)
    if op.mode in ("suppress", "ablate"):
        return Edit(direction, what, share=-op.strength)
    value, norm = _target(op, float(np.linalg.norm(along)))
    low = {"low": value, "low_norm": norm} if op.mode in ("set", "floor") else {}
    high = {"high": value, "high_norm": norm} if op.mode in ("set", "cap") else {}
    return Edit(direction, what, **low, **high)


def _target(op: Op, length: float) -> tuple[float, float]:
    """The strength as a constant and a multiple of |h|, in what D is counted in.

    Args:
        length: what lengths are divided by: of D where its multiples are counted, 1 where D already has the unit's length.
    """
    if op.unit == "residual_norm":
        return 0.0, op.strength / length
    if op.unit == "feature_max":
        assert op.largest is not None
        return op.strength * op.largest, 0.0
    return (op.strength / length if op.unit == "unit" else op.strength), 0.0


@dataclass(frozen=True)
class Numbers:
    """The numbers of several operations, a column (n,) each, or (1,) for all tokens alike."""

    base: Tensor
    base_norm: Tensor | None
    share: Tensor | None
    low: Tensor | None
    low_norm: Tensor | None
    high: Tensor | None
    high_norm: Tensor | None

    @classmethod
    def of(cls, rows: npt.NDArray[np.float32], device: torch.device) -> Numbers:
        """From (n, 7) in the order of `NUMBERS`; columns that no row needs stay out."""
        columns = dict(zip(NUMBERS, rows.T, strict=True))
        clamps = bool(np.isfinite(columns["low"]).any() or np.isfinite(columns["high"]).any())
        needed = {name for name in ("base_norm", "share", "low_norm", "high_norm") if columns[name].any()} | {"base"}
        needed |= {"low", "high"} if clamps else set()
        # one transfer for all of them
        block = torch.from_numpy(np.ascontiguousarray(rows.T)).to(device)
        return cls(**{name: block[place] if name in needed else None for place, name in enumerate(NUMBERS)})  # type: ignore[arg-type]

    @cached_property
    def needs_size(self) -> bool:
        """Whether an amount depends on |h|."""
        return any(norm is not None for norm in (self.base_norm, self.low_norm, self.high_norm))

    def amount(self, size: Tensor | None, c: Tensor | None) -> Tensor:
        """x.

        Args:
            size: (n,) |h|; None where it is not needed.
            c: (n,) component or activation; None where every mode reads nothing.

        Returns:
            (n,), or (1,) where it is the same for every token.
        """
        x = _with_size(self.base, self.base_norm, size)
        if c is None:
            return x
        if self.share is not None:
            x = torch.addcmul(x, self.share, c)
        if self.low is None or self.high is None:
            return x
        low, high = _with_size(self.low, self.low_norm, size), _with_size(self.high, self.high_norm, size)
        return x + (torch.clamp(c, low, high) - c)


def _with_size(constant: Tensor, norm: Tensor | None, size: Tensor | None) -> Tensor:
    return constant if norm is None or size is None else torch.addcmul(constant, norm, size)
