"""Rows of one model that go through it together: prompts chunk by chunk, then a token a step, each row as if it were alone.

Every pass is padded on the left, with each row's own positions. What a row computes does not depend on its neighbours, but for the last
bits of sums that are taken in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from steering.cache import Moves, RowCache
from steering.hooks import Program, Row, Steerer

TRIM = 32
"""Padding that all rows share is cut when there is so much, and it is a quarter of the columns."""


@dataclass(eq=False)
class Seat:
    """One row: a choice that is generated, or its unsteered shadow."""

    ids: list[int]
    """The prompt, and the tokens generated since."""
    program: Program | None = None
    n_prompt: int = field(init=False)

    def __post_init__(self) -> None:
        self.n_prompt = len(self.ids)


class After(NamedTuple):
    """What a pass gives for each row."""

    logits: Tensor
    """(n_rows, vocabulary) float32, after its last token."""
    broken: Tensor | None
    """(n_rows,) True where steering left something that is not finite in a prompt; None where it was not looked for."""


class Passes:
    """The model, and one pass of it."""

    def __init__(self, model: nn.Module, steerer: Steerer, device: torch.device) -> None:
        self.model, self.steerer, self.device = model, steerer, device
        self.config: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]

    def __call__(self, ids: Tensor, pads: Tensor | None, cache: RowCache, rows: Sequence[Row]) -> After:
        """
        Args:
            ids: (n_rows, n) the next columns.
            pads: (n_rows, 1) columns of padding before each row, counted from the first that the cache holds; None for none at all.
            rows: the same for steering; may be empty where no row is steered.
        """
        begin, end = cache.length, cache.length + ids.shape[1]
        columns = torch.arange(end, device=self.device)
        mask, positions = None, columns[None, begin:].expand(len(ids), -1)
        if pads is not None:
            mask, positions = columns >= pads, (positions - pads).clamp_(min=0)
        columns_in = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": positions,
            "past_key_values": cache,
        }
        if not any(row.program is not None for row in rows):
            return After(self._logits(columns_in), None)
        with self.steerer.steering(rows) as steered:
            logits = self._logits(columns_in)
        # what breaks one token that is fed alone breaks its logits
        return After(logits, steered.broken() if ids.shape[1] > 1 else None)

    def _logits(self, columns: dict[str, Any]) -> Tensor:
        out = self.model(**columns, use_cache=True, logits_to_keep=1)
        logits: Tensor = out.logits[:, -1]
        return logits.float()


class Prompts:
    """Prompts on their way into the model: several short ones together, or a long one chunk by chunk.

    A prompt that several seats begin with alike, as the choices of one request do, is read once.
    """

    def __init__(self, passes: Passes, seats: Sequence[Seat], chunk: int) -> None:
        self.seats = list(seats)
        self.cache = RowCache(passes.config)
        self._passes, self._chunk = passes, chunk
        self.length = max(seat.n_prompt for seat in seats)
        self.pads = [self.length - seat.n_prompt for seat in seats]
        self._read, self._of = _alike(seats)
        pads = [self.length - seat.n_prompt for seat in self._read]
        padded = [[0] * pad + seat.ids for pad, seat in zip(pads, self._read, strict=True)]
        self._ids = torch.tensor(padded, device=passes.device)
        self._offset = torch.tensor(pads, device=passes.device)[:, None] if any(pads) else None

    def advance(self) -> After | None:
        """Reads the next chunk; what comes after the last one, None before."""
        begin = self.cache.length
        end = min(begin + self._chunk, self.length)
        rows = [_part(seat, self.length - seat.n_prompt, begin, end) for seat in self._read]
        after = self._passes(self._ids[:, begin:end], self._offset, self.cache, rows)
        if end < self.length:
            return None
        return after if len(self._read) == len(self.seats) else self._shared(after)

    def _shared(self, after: After) -> After:
        """Every seat gets what was read for it and others."""
        rows = torch.tensor(self._of, device=self._passes.device)
        self.cache.spread(rows)
        for seat, row in zip(self.seats, self._of, strict=True):
            first = self._read[row].program
            if seat.program is not None and first is not None and first is not seat.program:
                seat.program.follow(first)
        return After(after.logits[rows], None if after.broken is None else after.broken[rows])


def _alike(seats: Sequence[Seat]) -> tuple[list[Seat], list[int]]:
    """One seat for all that have the same prompt and do the same to it, and for each seat which of them stands for it."""
    places: dict[object, int] = {}
    of: list[int] = []
    read: list[Seat] = []
    for seat in seats:
        key = (tuple(seat.ids), None if seat.program is None else seat.program.kin)
        if key not in places:
            places[key] = len(read)
            read.append(seat)
        of.append(places[key])
    return read, of


def _part(seat: Seat, pad: int, begin: int, end: int) -> Row:
    """What lies of a prompt in the columns of a pass."""
    first = max(begin - pad, 0)
    return Row(seat.program, tuple(seat.ids[first : max(end - pad, 0)]), first, seat.n_prompt, max(pad - begin, 0))


class Batch:
    """The rows that generate."""

    def __init__(self, passes: Passes) -> None:
        self._passes = passes
        self.seats: list[Seat] = []
        self._pads: list[int] = []
        self._cache = RowCache(passes.config)
        self._offset: Tensor | None = None

    def __len__(self) -> int:
        return len(self.seats)

    @property
    def columns(self) -> int:
        return self._cache.length

    def join(self, prompts: Prompts, staying: Sequence[int]) -> None:
        """Takes rows of prompts that were read to the end; the others of them are dropped."""
        _keep(prompts.seats, prompts.pads, prompts.cache, staying)
        if not prompts.seats:
            return
        if self.seats:
            longer = prompts.cache.length - self._cache.length
            if longer > 0:
                self._cache.pad(longer)
                self._pads = [pad + longer for pad in self._pads]
            elif longer < 0:
                prompts.cache.pad(-longer)
                prompts.pads = [pad - longer for pad in prompts.pads]
            self._cache.join(prompts.cache)
        else:
            self._cache = prompts.cache
        self.seats += prompts.seats
        self._pads += prompts.pads
        self._settle()

    def keep(self, staying: Sequence[int]) -> None:
        """Drops the other rows; those that stay may change places."""
        _keep(self.seats, self._pads, self._cache, staying)
        self._settle()

    def _settle(self) -> None:
        if not self.seats:
            self._cache, self._offset = RowCache(self._passes.config), None
            return
        common = min(self._pads)
        if common >= max(TRIM, self._cache.length // 4):
            self._cache.pad(-common)
            self._pads = [pad - common for pad in self._pads]
        self._offset = torch.tensor(self._pads, device=self._passes.device)[:, None] if any(self._pads) else None

    def step(self, tokens: Tensor) -> After:
        """Feeds each row its newest token (n_rows,), which its `ids` end with."""
        steered = any(seat.program is not None for seat in self.seats)
        rows = [Row(s.program, (s.ids[-1],), len(s.ids) - 1, s.n_prompt, 0) for s in self.seats] if steered else ()
        return self._passes(tokens[:, None], self._offset, self._cache, rows)


def _keep(seats: list[Seat], pads: list[int], cache: RowCache, staying: Sequence[int]) -> None:
    moves = _moves(len(seats), staying)
    if len(staying) == len(seats):
        return
    for source, target in moves:
        seats[target], pads[target] = seats[source], pads[source]
    del seats[len(staying) :], pads[len(staying) :]
    cache.keep(moves, len(staying))


def _moves(rows: int, staying: Sequence[int]) -> Moves:
    """The last rows that stay take the places of those that left."""
    kept = set(staying)
    holes = [row for row in range(len(kept)) if row not in kept]
    movers = [row for row in range(len(kept), rows) if row in kept]
    return list(zip(movers, holes, strict=True))
