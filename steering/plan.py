"""One forward pass laid out: which operations touch which tokens, with those of one kind side by side in tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from schema.errors import WorkFailed
from steering.algebra import Numbers
from steering.conditions import Gates, Watched, Watcher, Watching
from steering.measure import GENERATED, PROMPT, Ledger
from steering.program import Program, Step
from steering.reading import activation


@dataclass(frozen=True)
class Row:
    """One row of a forward pass."""

    program: Program | None
    """None: unsteered."""
    ids: tuple[int, ...]
    """The tokens of this pass, oldest first: a prompt, a chunk of it, or one token that was generated."""
    first: int
    """Position of `ids[0]` in the choice's whole sequence, from 0."""
    n_prompt: int
    pad: int = 0
    """Columns of padding on the left: token j lies in column `pad + j`."""


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


class Group:
    """Steps of one kind that touch different tokens, as tables of a line a token. Used in one pass, or in many while a batch stays."""

    def __init__(self, touched: Sequence[Touched], gates: Gates, device: torch.device) -> None:
        steps = [each.step for each in touched]
        of = [number for number, each in enumerate(touched) for _ in each.places]
        places = [place for each in touched for place in each.places]
        # lines to repeat for the tokens of each step; none where each has one token, or one line serves all of them
        self._spread = None if len(steps) in (1, len(of)) else torch.tensor(of, device=device)
        self._index = None if places == list(range(gates.n_flat)) else torch.tensor(places, device=device)
        self._slots = torch.tensor([each.step.slot + phase for each in touched for phase in each.phases], device=device)
        numbers = np.stack([step.numbers for step in steps])
        self._numbers = Numbers.of(numbers if self._spread is None else numbers[of], device)
        self._direction = self._lines([step.direction for step in steps])
        self._length = self._column([step.length for step in steps])
        self._reads, self._encoder = steps[0].edit.reads, steps[0].encoder
        self._feature = self._column([step.op.feature or 0 for step in steps])
        self._tells = any(step.row is not None for step in steps)
        if self._tells:
            self._read_back(steps)
        self._moves = not steps[0].edit.does_nothing
        self._ones = torch.ones(len(places), device=device)
        can_fire = [fires for each in touched for fires in each.can_fire]
        self._can_fire = None if all(can_fire) else torch.tensor(can_fire, device=device)
        self._gates = gates if any(step.gate for step in steps) else None
        self._gate = torch.tensor(
            [gates.place(steps[n].gate, p) for n, p in zip(of, places, strict=True)], device=device
        )

    def _lines(self, lines: Sequence[Tensor]) -> Tensor:
        stacked = torch.stack(list(lines))
        return stacked if self._spread is None else stacked[self._spread]

    def _column(self, values: Sequence[float]) -> Tensor:
        column = torch.tensor(values, device=self._slots.device)
        return column if self._spread is None else column[self._spread]

    def _read_back(self, steps: Sequence[Step]) -> None:
        """What reads the features off again; a vector's line reads nothing."""
        none = torch.zeros_like(steps[0].direction)
        rows = [step.row for step in steps]
        self._weight = self._lines([none if row is None else row.weight for row in rows])
        self._bias = self._column([0.0 if row is None else row.bias for row in rows])
        self._threshold = self._column([0.0 if row is None else row.threshold for row in rows])
        self._echo = self._column([step.echo for step in steps])

    @torch.inference_mode()
    def apply(self, flat: Tensor, ledger: Ledger) -> Tensor:
        """The stream (n_flat, d_model) with this group's tokens moved."""
        chosen = flat if self._index is None else flat[self._index]
        h = chosen.float()
        size = torch.linalg.vector_norm(h, dim=1)
        pre = (h * self._weight).sum(1) + self._bias if self._tells else None
        x = self._numbers.amount(size, self._read(h, pre))
        let = None if self._gates is None else self._gates.open[self._gate]
        if let is not None:
            x = torch.where(let, x, 0)
        self._note(ledger, x, size, pre, let)
        if not self._moves:
            return flat
        moved = torch.addcmul(h, x[:, None], self._direction).to(flat.dtype)
        return moved if self._index is None else flat.index_copy(0, self._index, moved)

    def _read(self, h: Tensor, pre: Tensor | None) -> Tensor | None:
        """c, of the formula."""
        if self._reads == "nothing":
            return None
        if self._encoder is None or pre is None:
            return (h * self._direction).sum(1)
        if not self._moves:
            return torch.zeros_like(pre)
        found = activation(self._encoder, h, self._feature, pre, self._threshold)
        return found if self._can_fire is None else found * self._can_fire

    def _note(self, ledger: Ledger, x: Tensor, size: Tensor, pre: Tensor | None, let: Tensor | None) -> None:
        """Tokens that were let through, |delta| / |h|, and the feature before and after."""
        relative = (x.abs() * self._length / size).nan_to_num_(
            0.0, 0.0, 0.0
        )  # a residual of zero has no length to compare with
        columns = [self._ones if let is None else let.float(), relative]
        if pre is not None:
            after = torch.addcmul(pre, x, self._echo)
            there = let if self._can_fire is None else self._can_fire if let is None else self._can_fire & let
            columns += [_firing(pre, self._threshold, there), _firing(after, self._threshold, there)]
        ledger.note(self._slots, columns)


def _firing(pre: Tensor, threshold: Tensor, there: Tensor | None) -> Tensor:
    fires = pre > threshold
    return torch.where(fires if there is None else fires & there, pre, 0)


@dataclass(frozen=True)
class Work:
    """What happens after one block, in this order."""

    watching: Sequence[Watching]
    """Conditions read the stream as it comes from the block."""
    groups: Sequence[Group]


@dataclass(frozen=True)
class Plan:
    """A pass of a batch."""

    shape: tuple[int, int]
    """Rows, and the columns that they take at least."""
    work: Mapping[int, Work]
    watching: Sequence[Watching]


def lay_out(rows: Sequence[Row], device: torch.device) -> Plan:
    """The pass of these rows, whatever was before."""
    width = max(
        (row.pad + len(row.ids) for row in rows if row.ids), default=1
    )  # of a prompt's chunk, a row may hold only padding
    gates = Gates(len(rows) * width, device)
    found: dict[int, dict[tuple[int, str, int, bool], list[Touched]]] = {}
    for number, row in enumerate(rows):
        for layer, steps in row.program.layers.items() if row.program is not None else ():
            for stage, step in enumerate(steps):
                touched = _touched(step, row, number * width + row.pad)
                if touched is not None:
                    found.setdefault(layer, {}).setdefault((stage, *step.kind), []).append(touched)
    watching = _watch(rows, gates, width, device)
    work = {}
    for layer in sorted({*found, *(layer for each in watching for layer in each.layers)}):
        by_kind = found.get(layer, {})
        groups = [Group(by_kind[key], gates, device) for key in sorted(by_kind, key=lambda key: key[0])]
        work[layer] = Work([each for each in watching if layer in each.layers], groups)
    return Plan((len(rows), width), work, watching)


def _touched(step: Step, row: Row, begin: int) -> Touched | None:
    columns = step.place.columns(row.ids, row.first)
    if step.gate == "before" and row.first < row.n_prompt:
        columns = []
    if not columns:
        return None
    special = row.program.special if row.program is not None else ()
    can_fire = [row.first + column > 0 and row.ids[column] not in special for column in columns]
    phases = [GENERATED if row.first + column >= row.n_prompt else PROMPT for column in columns]
    return Touched(step, [begin + column for column in columns], phases, can_fire)


def _watch(rows: Sequence[Row], gates: Gates, width: int, device: torch.device) -> list[Watching]:
    """The conditions of the rows, those that are the same together."""
    watched: dict[Watcher, list[Watched]] = {}
    for number, row in enumerate(rows):
        program = row.program
        if program is None or program.watcher is None or not row.ids:
            continue
        if row.first + len(row.ids) > row.n_prompt and len(row.ids) > 1:
            raise WorkFailed(
                "tokens that were generated were fed together to a choice under a condition; feed them one by one"
            )
        begin = number * width + row.pad
        one = Watched(
            slot=program.slot,
            places=list(range(begin, begin + len(row.ids))),
            can_fire=[row.first + j > 0 and id_ not in program.special for j, id_ in enumerate(row.ids)],
            generated=[row.first + j >= row.n_prompt for j in range(len(row.ids))],
            early=program.early,
        )
        watched.setdefault(program.watcher, []).append(one)
    return [Watching(watcher, each, gates, device) for watcher, each in watched.items()]
