"""What operations did, added up on the device while they do it and fetched once at the end."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from schema.generation import Op
from schema.wire.steering import OpApplied, SteeringApplied

PROMPT, GENERATED = 0, 1
"""An operation has two places of the ledger, one a phase, side by side."""
_SUMS = ("tokens", "relative", "before", "after")


class Ledger:
    """Sums and maxima over the tokens that were touched, for every operation at work. Places are lent and come back."""

    def __init__(self, device: torch.device, places: int = 64) -> None:
        self._device = device
        self._sums = torch.zeros(places, len(_SUMS), device=device)
        self._most = torch.zeros(places, device=device)
        self._free = deque(range(0, places, 2))

    def take(self) -> int:
        """The first of two places side by side, both at zero."""
        if not self._free:
            self._grow()
        place = self._free.popleft()
        self._sums[place : place + 2] = 0
        self._most[place : place + 2] = 0
        return place

    def free(self, places: Sequence[int]) -> None:
        """Takes places back. Safe from any thread."""
        self._free.extend(places)

    def note(self, places: Tensor, x: Tensor, relative: Tensor, before: Tensor | None, after: Tensor | None) -> None:
        """Adds tokens up.

        Args:
            places: (n,) where each token is counted.
            x: (n,) or (1,) the amounts; a token with 0 was not touched.
            relative: (n,) |delta| / |h|.
            before, after: (n,) the feature's pre-activation where it fires, else 0; None without one.
        """
        touched = (x != 0).to(relative.dtype).expand_as(relative)
        columns = [touched, relative]
        if before is not None and after is not None:
            columns += [before * touched, after * touched]
        sums = self._sums if len(columns) == len(_SUMS) else self._sums[:, : len(columns)]
        sums.index_add_(0, places, torch.stack(columns, dim=1))
        self._most.scatter_reduce_(0, places, relative, "amax")

    def read(self, places: Sequence[int]) -> list[tuple[list[float], float]]:
        """Of each place and the next one: sums in the order of `_SUMS`, and the largest relative norm. One transfer."""
        index = torch.tensor([p + phase for p in places for phase in (PROMPT, GENERATED)], device=self._device)
        fetched = torch.cat((self._sums[index], self._most[index, None]), dim=1).tolist()
        return [(line[:-1], line[-1]) for line in fetched]

    def _grow(self) -> None:
        n = len(self._most)
        self._sums = torch.cat((self._sums, torch.zeros_like(self._sums)))
        self._most = torch.cat((self._most, torch.zeros_like(self._most)))
        self._free.extend(range(n, 2 * n, 2))


def applied(
    ops: Sequence[Op], places: Sequence[int | None], ledger: Ledger, reads_back: Sequence[bool]
) -> list[OpApplied]:
    """What each operation did.

    Args:
        places: of the ledger; None where the operation does nothing by its strength.
        reads_back: which ones have a feature whose activation was read.
    """
    at_work = [place for place in places if place is not None]
    lines = iter(ledger.read(at_work) if at_work else ())
    nothing = ([0.0] * len(_SUMS), 0.0)
    answers = []
    for op, place, reads in zip(ops, places, reads_back, strict=True):
        prompt, generated = (next(lines), next(lines)) if place is not None else (nothing, nothing)
        answers.append(_one(op, prompt, generated, reads))
    return answers


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


def _version() -> str:
    try:
        return version("scopebase")
    except PackageNotFoundError:
        return "0.0.0"
