"""Steering a loaded model: hooks that are set once, and the tables that say what they do in one forward pass.

One thread owns the model and everything here. A hook without a pass does nothing, so that the same model can be read unsteered.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from schema.errors import WorkFailed
from schema.generation import Choice, Condition
from steering import selftest
from steering.conditions import Watcher
from steering.measure import Ledger
from steering.plan import Plan, Row, lay_out
from steering.program import Ground, Program
from steering.reading import Encoders

__all__ = ["Pass", "Program", "Row", "Steerer"]

Through = Callable[[Any, Callable[[Tensor], Tensor]], Any]
"""What a block returned, with its stream (n_rows, width, d_model) led through a function."""


class Steered(selftest.Model, Protocol):
    """What is to be known of a loaded model. `indexer.subject.Subject` is one."""

    @property
    def device(self) -> torch.device: ...


def plain(output: Any, after: Callable[[Tensor], Tensor]) -> Any:
    """Blocks of transformers return the stream, alone or before something else."""
    if isinstance(output, tuple):
        return (after(output[0]), *output[1:])
    return after(output)


class Pass:
    """One forward pass of a batch, as it goes through the blocks."""

    def __init__(self, plan: Plan, rows: Sequence[Row], ledger: Ledger) -> None:
        self._plan, self._rows, self._ledger = plan, rows, ledger
        self.layers = plan.work.keys()
        """After which anything is to be done."""
        self._reached: set[int] = set()
        self._last: Tensor | None = None
        for watching in plan.watching:
            watching.begin()

    def after(self, layer: int, hidden: Tensor) -> Tensor:
        """The stream (n_rows, width, d_model) after one of `layers`, as the next one shall see it.

        Raises:
            WorkFailed: it is not the pass that was announced.
        """
        work = self._plan.work[layer]
        n_rows, width = self._plan.shape
        if hidden.shape[:2] != (n_rows, width) or layer in self._reached:
            raise WorkFailed(
                f"block {layer} was run twice, or on {tuple(hidden.shape[:2])} rows and tokens instead of {(n_rows, width)}, "
                "in one steered pass"
            )
        self._reached.add(layer)
        flat = hidden.reshape(n_rows * width, -1)
        for watching in work.watching:
            watching.read(layer, flat)
        for group in work.groups:
            flat = group.apply(flat, self._ledger)
        self._last = flat.view_as(hidden)
        return self._last

    def check(self) -> None:
        """
        Raises:
            WorkFailed: the model did not come by a layer that has operations; what came out is not what was asked for.
        """
        missed = sorted(self._plan.work.keys() - self._reached)
        if missed:
            raise WorkFailed(f"steering after block {missed[0]} did not happen: the model ran without calling its hook")

    def broken(self) -> Tensor | None:
        """(n_rows,) True where the stream is no longer finite at a token of the row, on the device; None where nothing was steered."""
        if self._last is None:
            return None
        bad = ~torch.isfinite(self._last.float().sum(2))
        n_rows, width = self._plan.shape
        if width > 1:
            real = torch.zeros(n_rows, width, dtype=torch.bool)
            for number, row in enumerate(self._rows):
                real[number, row.pad : row.pad + len(row.ids)] = True
            bad &= real.to(bad.device)
        return bad.any(1)


class Steerer:
    """Operations on the residual stream of one loaded model."""

    def __init__(
        self,
        subject: Steered,
        encoders: Encoders,
        special_ids: Iterable[int],
        *,
        through: Through = plain,
        packed: bool = False,
    ) -> None:
        """
        Args:
            encoders: the encoder of an SAE by its name, on the model's device. Asked when a choice first needs it.
            special_ids: the tokenizer's special tokens.
            through: finds the stream in what a block returns.
            packed: see `steering.plan.lay_out`.
        """
        self._subject, self._packed, self._through = subject, packed, through
        self._pass: Pass | None = None
        self._lock = Lock()
        self._kept: tuple[Any, Plan] | None = None
        self._watchers: weakref.WeakValueDictionary[str, Watcher] = weakref.WeakValueDictionary()
        self._ground = Ground(
            n_layers=len(subject.blocks),
            d_model=subject.d_model,
            device=subject.device,
            encoders=encoders,
            special=frozenset(int(id_) for id_ in special_ids),
            ledger=Ledger(subject.device),
            watcher=self._watcher,
            typical={},
        )
        for layer, block in enumerate(subject.blocks):
            # before every other hook, so that whoever reads the block's output reads it steered
            block.register_forward_hook(self._hook(layer), prepend=True)

    def program(self, choice: Choice, like: Program | None = None) -> Program:
        """A choice's operations, checked and brought to the device. Safe from any thread, as far as the encoders are.

        Args:
            like: the program of another choice with the same prompt, operations and condition.

        Raises:
            InputError: an operation that this model cannot take, that could touch no token, or that contradicts another.
        """
        return Program(choice, self._ground, like)

    def check(self, see: selftest.See | None = None) -> None:
        """Proves on the loaded model that steering arrives, and learns how long its residuals are. Run it once, after loading.

        Args:
            see: runs rows steered, and tells the stream after every block; all in one pass unless given.

        Raises:
            WorkFailed: it does not.
        """
        self._ground.typical.update(selftest.check(self._subject, self.program, see or self._see))

    def _see(self, rows: Sequence[Row]) -> Mapping[int, Tensor]:
        with self.steering(rows):
            return selftest.streams(self._subject, rows)

    @contextmanager
    def steering(self, rows: Sequence[Row]) -> Iterator[Pass]:
        """Steers the one forward pass that is run inside.

        Raises:
            WorkFailed: at the end, if the model did not come by every layer that has operations.
        """
        assert self._pass is None, "one pass at a time"
        self._pass = Pass(self._plan(rows), rows, self._ground.ledger)
        try:
            yield self._pass
            self._pass.check()
            if self._kept is None:  # its tables are not used again
                self._ground.ledger.settle()
        finally:
            self._pass = None

    def _plan(self, rows: Sequence[Row]) -> Plan:
        """The last one again, where the same rows are fed one generated token each and the same operations touch them."""
        key = _key(rows)
        if key is not None and self._kept is not None and self._kept[0] == key:
            return self._kept[1]
        self._ground.ledger.settle()
        plan = lay_out(rows, self._subject.device, packed=self._packed)
        self._kept = None if key is None else (key, plan)
        return plan

    def _watcher(self, condition: Condition) -> Watcher:
        """The one of all choices under this condition, so that their rows are read together."""
        key = f"{condition.scope} {condition.expression.model_dump_json()}"
        with self._lock:
            watcher = self._watchers.get(key)
        if watcher is not None:
            return watcher
        ground = self._ground
        made = Watcher(
            condition, ground.encoders, ground.n_layers, ground.device
        )  # may load an SAE: not under the lock
        with self._lock:
            return self._watchers.setdefault(key, made)

    def _hook(self, layer: int) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(_block: nn.Module, _inputs: Any, output: Any) -> Any:
            if self._pass is None or layer not in self._pass.layers:
                return None
            return self._through(output, partial(self._pass.after, layer))

        return hook


def _key(rows: Sequence[Row]) -> Any:
    """What the plan of a pass over generated tokens depends on; None for other passes."""
    key = []
    for program, ids, first, n_prompt, pad in rows:
        if len(ids) != 1 or first < n_prompt:
            return None
        key.append((program, pad, None if program is None else program.touches(first - n_prompt, ids[0])))
    return key
