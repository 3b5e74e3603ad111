"""A choice's operations, checked and on the device, with what they have done so far."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from indexer.encoder import Encoder
from schema.errors import InputError
from schema.generation import Choice, Condition, Op
from schema.wire.steering import SteeringApplied
from steering import reading
from steering.algebra import NUMBERS, Edit, edit, reads
from steering.checks import check_op, check_together, name_of
from steering.conditions import Watcher
from steering.measure import Ledger, applied, summary
from steering.places import Place
from steering.reading import Encoders


@dataclass(frozen=True)
class Ground:
    """What a program is compiled against: the model as it is loaded."""

    n_layers: int
    d_model: int
    device: torch.device
    encoders: Encoders
    special: Set[int]
    ledger: Ledger
    watcher: Callable[[Condition], Watcher]
    """The one that watches this condition for all choices that have it."""
    typical: dict[int, float]
    """Layer -> length of the residual, as `Steerer.check` found it; empty before."""


Gate = Literal["now", "before"]
"""Which answer of the condition lets an operation through: as of its token, or as of the token before, where the block is not so deep."""


@dataclass(frozen=True, eq=False)
class Step:
    """One operation, compiled."""

    op: Op
    place: Place
    edit: Edit
    slot: int
    """Of the ledger."""
    direction: Tensor
    """(d_model,) float32"""
    length: float
    encoder: Encoder | None
    """Whose activation it reads."""
    row: reading.Row | None
    """Of the feature, where its activation is told before and after."""
    echo: float
    """What x = 1 does to the feature's pre-activation: <D, its encoder row>."""
    gate: Gate | None
    numbers: npt.NDArray[np.float32]
    """(7,) of `NUMBERS`"""

    @property
    def kind(self) -> tuple[str, int, bool]:
        """Steps of one kind are worked on together."""
        return self.edit.reads, id(self.encoder), self.edit.does_nothing


class Program:
    """What one choice does to the residual stream. Any thread makes it; the thread of the model uses it."""

    def __init__(self, choice: Choice, ground: Ground, like: Program | None = None) -> None:
        """
        Args:
            like: the program of another choice with the same prompt, operations and condition.

        Raises:
            InputError: an operation that this model cannot take, or that could touch nothing, or two that contradict each other.
        """
        self.special = ground.special
        self.kin: object = object() if like is None else like.kin
        """The same in programs that do the same to the same prompt."""
        self.watcher = ground.watcher(choice.when) if choice.when is not None and choice.ops else None
        self._ops = choice.ops
        self._ledger = ground.ledger
        placed = [(op, _place(op, choice, ground)) for op in choice.ops]
        gates = [_gate(op, self.watcher) for op in choice.ops]
        check_together(placed, gates, choice.sampling.max_tokens)
        self._steps = [_compile(op, place, gate, ground) for (op, place), gate in zip(placed, gates, strict=True)]
        self.layers: dict[int, list[Step]] = {}
        """Layer -> its steps in the request's order."""
        self._steady = all(step.place.is_steady(self.special) for step in self._steps)
        for step in self._steps:
            self.layers.setdefault(step.op.layer, []).append(step)
        self.early = all(step.gate == "before" for steps in self.layers.values() for step in steps)
        lent = [step.slot for step in self._steps]
        weakref.finalize(self, ground.ledger.free, lent).atexit = False
        self.slot = -1
        """Of the watcher."""
        if self.watcher is not None:
            self.slot = self.watcher.take()
            weakref.finalize(self, self.watcher.free, [self.slot]).atexit = False

    def touches(self, number: int, id_: int) -> int:
        """Which steps touch generated token `number`, and whether a feature can fire there, as bits."""
        bits = int(id_ not in self.special)
        if self._steady:
            return bits
        for steps in self.layers.values():
            for step in steps:
                bits = bits << 1 | step.place.generated(number, id_)
        return bits

    def follow(self, first: Program) -> None:
        """Has done to the prompt what its kin did."""
        self._ledger.copy([step.slot for step in first._steps], [step.slot for step in self._steps])
        if self.watcher is not None:
            self.watcher.copy(first.slot, self.slot)

    def restart(self) -> None:
        """Forgets what was done so far: the model is going to read the text anew, from its first token."""
        self._ledger.clear([step.slot for step in self._steps])
        if self.watcher is not None:
            self.watcher.clear(self.slot)

    def applied(self, engine: str = "torch") -> SteeringApplied:
        """What was done so far. Waits for the device."""
        places = [step.slot for step in self._steps]
        reads_back = [step.row is not None for step in self._steps]
        let = None if self.watcher is None else round(float(self.watcher.opened[self.slot]))
        return summary(applied(self._ops, places, self._ledger, reads_back), let, engine)


def _gate(op: Op, watcher: Watcher | None) -> Gate | None:
    if watcher is None:
        return None
    if watcher.scope == "prompt":
        return "before"
    if op.layer >= watcher.deepest:
        return "now"
    if watcher.scope == "token":
        raise InputError(
            f"{name_of(op)}: its condition is read after block {watcher.deepest}, too late for block {op.layer} at the same token; "
            "scope 'after' or 'prompt' can, or steer at that layer or deeper"
        )
    return "before"


def _place(op: Op, choice: Choice, ground: Ground) -> Place:
    check_op(op, ground.n_layers, ground.d_model, ground.typical.get(op.layer))
    try:
        return Place(op.where, choice.ids, ground.special)
    except InputError as error:
        raise InputError(f"{name_of(op)}: {error}") from None


def _compile(op: Op, place: Place, gate: Gate | None, ground: Ground) -> Step:
    encoder = None
    if op.sae is not None and op.feature is not None:
        encoder = ground.encoders(op.sae)
        if encoder.product.layer != op.layer and reads(op) == "activation":
            raise InputError(
                f"{name_of(op)}: {op.mode} reads the feature's activation, which there is only after block "
                f"{encoder.product.layer}, not after {op.layer}; 'add' and 'ablate' work at any layer"
            )
    made = edit(op, rescaled=encoder is not None and encoder.product.rescaled)
    here = encoder if encoder is not None and encoder.product.layer == op.layer else None
    direction = torch.from_numpy(made.direction).to(ground.device)
    row = reading.row(here, op.feature) if here is not None and op.feature is not None else None
    return Step(
        op=op,
        place=place,
        edit=made,
        slot=ground.ledger.take(),
        direction=direction,
        length=made.length,
        encoder=here if made.reads == "activation" else None,
        row=row,
        echo=0.0 if row is None else float(direction @ row.weight),
        gate=gate,
        numbers=np.array([getattr(made, name) for name in NUMBERS], dtype=np.float32),
    )
