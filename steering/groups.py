"""Operations of one kind that touch different tokens, worked on together: tables of a line a token instead of a loop over requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from steering.algebra import Numbers
from steering.conditions import Gates
from steering.measure import Ledger
from steering.program import Step
from steering.reading import activation

MOST_LOGGED = 64
"""Passes whose measures wait to be taken together."""
MOST_HELD = 1 << 21
"""Elements of residuals that may wait meanwhile: 8 MB of float32."""


@dataclass(frozen=True)
class Touched:
    """A step and the tokens of one row that it touches."""

    step: Step
    places: list[int]
    """In the flattened pass: row times width plus column."""
    phases: list[int]
    """`PROMPT` or `GENERATED`, each."""
    can_fire: list[bool]
    """False at tokens that the index masks, where no feature has an activation."""


class Lines:
    """Makes tables of a line a token, of what each step has. Where one step touches all, one line serves them all."""

    def __init__(self, touched: Sequence[Touched], device: torch.device) -> None:
        self.steps = [each.step for each in touched]
        self.of = [number for number, each in enumerate(touched) for _ in each.places]
        self._device = device
        repeats = len(self.steps) not in (1, len(self.of))
        self._spread = torch.tensor(self.of, device=device) if repeats else None

    def vectors(self, lines: Sequence[Tensor]) -> Tensor:
        """(n, d_model)"""
        stacked = torch.stack(list(lines))
        return stacked if self._spread is None else stacked[self._spread]

    def column(self, values: Sequence[float]) -> Tensor:
        """(n,)"""
        column = torch.tensor(values, device=self._device)
        return column if self._spread is None else column[self._spread]

    def numbers(self) -> Numbers:
        rows = np.stack([step.numbers for step in self.steps])
        return Numbers.of(rows if self._spread is None else rows[self.of], self._device)


class ReadBack:
    """What tells a feature's activation before and after; a vector's line reads nothing."""

    def __init__(self, lines: Lines) -> None:
        none = torch.zeros_like(lines.steps[0].direction)
        rows = [step.row for step in lines.steps]
        self.weight = lines.vectors([none if row is None else row.weight for row in rows])
        self.bias = lines.column([0.0 if row is None else row.bias for row in rows])
        self.threshold = lines.column([0.0 if row is None else row.threshold for row in rows])
        self.echo = lines.column([step.echo for step in lines.steps])

    def pre(self, h: Tensor) -> Tensor:
        """(..., n, d_model) to (..., n): pre-activations."""
        return (h * self.weight).sum(-1) + self.bias

    def firing(self, pre: Tensor, there: Tensor | None) -> Tensor:
        """The same where the feature fires, else 0."""
        fires = pre > self.threshold
        return torch.where(fires if there is None else fires & there, pre, 0)


class Group:
    """Tables for one pass, or for many while a batch stays as it is."""

    def __init__(self, touched: Sequence[Touched], gates: Gates, device: torch.device) -> None:
        lines = Lines(touched, device)
        first = lines.steps[0]
        places = [place for each in touched for place in each.places]
        self._index = None if places == list(range(gates.n_flat)) else torch.tensor(places, device=device)
        self._numbers = lines.numbers()
        self._direction = lines.vectors([step.direction for step in lines.steps])
        self._length = lines.column([step.length for step in lines.steps])
        self._reads, self._encoder, self._moves = first.edit.reads, first.encoder, not first.edit.does_nothing
        self._feature = lines.column([step.op.feature or 0 for step in lines.steps])
        self._back = ReadBack(lines) if any(step.row is not None for step in lines.steps) else None
        can_fire = [fires for each in touched for fires in each.can_fire]
        self._can_fire = None if all(can_fire) else torch.tensor(can_fire, device=device)
        self._gates = gates if any(step.gate for step in lines.steps) else None
        gate = [gates.place(lines.steps[number].gate, place) for number, place in zip(lines.of, places, strict=True)]
        self._gate = torch.tensor(gate, device=device)
        self._slots = torch.tensor([each.step.slot + phase for each in touched for phase in each.phases], device=device)
        self._log: list[tuple[Tensor, Tensor, Tensor | None]] = []

    @torch.inference_mode()
    def apply(self, flat: Tensor, ledger: Ledger) -> Tensor:
        """The stream (n_flat, d_model) with this group's tokens moved."""
        chosen = flat if self._index is None else flat[self._index]
        h = chosen.float()
        size = torch.linalg.vector_norm(h, dim=1) if self._numbers.needs_size else None
        x = self._numbers.amount(size, self._read(h))
        let = None if self._gates is None else self._gates.open[self._gate]
        if let is not None:
            x = torch.where(let, x, 0)
        self._note(ledger, chosen if self._moves else chosen.clone(), x, let)
        if not self._moves:
            return flat
        moved = torch.addcmul(h, x[:, None], self._direction).to(flat.dtype)
        return moved if self._index is None else flat.index_copy(0, self._index, moved)

    def _read(self, h: Tensor) -> Tensor | None:
        """c, of the formula."""
        if self._reads == "nothing" or not self._moves:
            return None
        if self._encoder is None or self._back is None:
            return (h * self._direction).sum(1)
        pre = self._back.pre(h)
        found = activation(self._encoder, h, self._feature, pre, self._back.threshold)
        return found if self._can_fire is None else found * self._can_fire

    def _note(self, ledger: Ledger, h: Tensor, x: Tensor, let: Tensor | None) -> None:
        """Keeps what is measured later, many passes at once: a step costs next to nothing then."""
        if not self._log:
            ledger.wait(self)
        self._log.append((h, x, let))
        if len(self._log) >= MOST_LOGGED or len(self._log) * h.numel() > MOST_HELD:
            ledger.settle()

    @torch.inference_mode()
    def settle(self, ledger: Ledger) -> None:
        """Measures what waits: tokens let through, |delta| / |h|, and the feature before and after."""
        shape = (len(self._log), len(self._slots))
        h = torch.stack([h for h, _, _ in self._log]).float()
        x = torch.stack([x.expand(shape[1]) for _, x, _ in self._log])
        lets = [let for _, _, let in self._log if let is not None]
        let = torch.stack(lets) if lets else None
        self._log = []
        size = torch.linalg.vector_norm(h, dim=2)
        # a residual of zero has no length to compare with
        relative = torch.where(size > 0, x.abs() * self._length / size, 0)
        columns = [torch.ones_like(size) if let is None else let.float(), relative]
        if self._back is not None:
            there = let if self._can_fire is None else self._can_fire if let is None else self._can_fire & let
            pre = self._back.pre(h)
            columns += [self._back.firing(pre, there), self._back.firing(pre + x * self._back.echo, there)]
        ledger.note(self._slots.expand(shape).flatten(), [column.flatten() for column in columns])
