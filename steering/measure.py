"""What operations did, added up on the device while they do it and fetched once at the end."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from threading import Lock
from typing import Protocol

import torch
from torch import Tensor

from schema.generation import Op
from schema.wire.steering import OpApplied, SteeringApplied

PROMPT, GENERATED = 0, 1
"""An operation has two places of the ledger, one a phase, side by side."""
_SUMS = ("tokens", "relative", "before", "after")


class Waiting(Protocol):
    """What keeps measures back to take them together."""

    def settle(self, ledger: Ledger) -> None: ...


class Ledger:
    """Sums and maxima over the tokens that were touched, for every operation at work. Places are lent and come back.

    Choices are compiled on the threads that ask while the model's own adds up, so that a lock is needed.
    """

    def __init__(self, device: torch.device, places: int = 64) -> None:
        self._device = device
        self._lock = Lock()
        self._sums = torch.zeros(places, len(_SUMS), device=device)
        self._most = torch.zeros(places, device=device)
        self._free = deque(range(0, places, 2))
        self._waiting: list[Waiting] = []

    def take(self) -> int:
        """The first of two places side by side, both at zero."""
        with self._lock:
            if not self._free:
                self._grow()
            place = self._free.popleft()
            self._sums[place : place + 2] = 0
            self._most[place : place + 2] = 0
            return place

    def clear(self, places: Sequence[int]) -> None:
        """Sets places and those beside them to zero. On the model's thread."""
        self.settle()
        index = torch.tensor([p + phase for p in places for phase in (PROMPT, GENERATED)], device=self._device)
        with self._lock:
            self._sums[index] = 0
            self._most[index] = 0

    def free(self, places: Sequence[int]) -> None:
        """Takes places back. Safe from any thread."""
        self._free.extend(places)

    def wait(self, group: Waiting) -> None:
        """Has something to be measured at the next `settle`."""
        self._waiting.append(group)

    def settle(self) -> None:
        """Measures what waits. On the model's thread."""
        waiting, self._waiting = self._waiting, []
        for group in waiting:
            group.settle(self)

    def note(self, places: Tensor, columns: Sequence[Tensor]) -> None:
        """Adds tokens up.

        Args:
            places: (n,) where each token is counted.
            columns: (n,) each, in the order of `_SUMS`: 1 where the token was touched, |delta| / |h|, and, of a feature, its
                pre-activation before and after where it fires, else 0.
        """
        with self._lock:
            sums = self._sums if len(columns) == len(_SUMS) else self._sums[:, : len(columns)]
            sums.index_add_(0, places, torch.stack(list(columns), dim=1))
            self._most.scatter_reduce_(0, places, columns[1], "amax")

    def read(self, places: Sequence[int]) -> list[tuple[list[float], float]]:
        """Of each place and the next one: sums in the order of `_SUMS`, and the largest relative norm. One transfer."""
        self.settle()
        index = torch.tensor([p + phase for p in places for phase in (PROMPT, GENERATED)], device=self._device)
        with self._lock:
            fetched = torch.cat((self._sums[index], self._most[index, None]), dim=1).tolist()
        return [(line[:-1], line[-1]) for line in fetched]

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Counts for the targets and the places beside them what was counted for the sources."""
        self.settle()
        ours, theirs = ([p + phase for p in places for phase in (PROMPT, GENERATED)] for places in (targets, sources))
        with self._lock:
            self._sums[ours], self._most[ours] = self._sums[theirs], self._most[theirs]

    def _grow(self) -> None:
        n = len(self._most)
        self._sums = torch.cat((self._sums, torch.zeros_like(self._sums)))
        self._most = torch.cat((self._most, torch.zeros_like(self._most)))
        self._free.extend(range(n, 2 * n, 2))


def applied(ops: Sequence[Op], places: Sequence[int], ledger: Ledger, reads_back: Sequence[bool]) -> list[OpApplied]:
    """What each operation did.

    Args:
        places: of the ledger.
        reads_back: which ones have a feature whose activation was read.
    """
    lines = ledger.read(places)
    return [
        _one(op, lines[2 * number], lines[2 * number + 1], reads)
        for number, (op, reads) in enumerate(zip(ops, reads_back, strict=True))
    ]


def _one(op: Op, prompt: tuple[list[float], float], generated: tuple[list[float], float], reads: bool) -> OpApplied:
    tokens, relative, before, after = (a + b for a, b in zip(prompt[0], generated[0], strict=True))
    return OpApplied(
        op=op.place,
        target=op.target,
        layer=op.layer,
        mode=op.mode,
        strength=op.strength,
        unit=op.unit,
        vector_sha256=hashlib.sha256(op.vector.astype("<f4").tobytes()).hexdigest(),
        prompt_tokens=round(prompt[0][0]),
        generated_tokens=round(generated[0][0]),
        mean_relative_norm=relative / tokens if tokens else None,
        max_relative_norm=max(prompt[1], generated[1]) if tokens else None,
        activation_before=before / tokens if tokens and reads else None,
        activation_after=after / tokens if tokens and reads else None,
    )


def summary(ops: list[OpApplied], condition_tokens: int | None, engine: str) -> SteeringApplied:
    """The whole answer, but for the divergences, which the engine adds."""
    return SteeringApplied(
        ops=ops,
        condition_tokens=condition_tokens,
        kl_first=None,
        kl_mean=None,
        engine=engine,
        version=_version(),
    )


@cache
def _version() -> str:
    try:
        return version("scopebase")
    except PackageNotFoundError:
        return "0.0.0"
