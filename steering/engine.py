"""The one thread that owns the model: it admits requests, reads prompts, steps the batch, and hands text over.

Between two steps it reads at most one chunk of prompts, and does what other callers want of the model (`run`). What goes wrong in a pass
fails the requests in that pass; what goes wrong anywhere else puts the engine out of order, and `fault` says so.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from schema.errors import ScopebaseError, WorkFailed
from steering.batch import After, Batch, Passes, Prompts, Seat
from steering.desk import Desk
from steering.queue import Line, divergence, log
from steering.sampler import Sampler


@dataclass(frozen=True)
class Limits:
    """What the engine takes on at once."""

    rows: int = 16
    """Rows of the batch, shadows included."""
    queue: int = 64
    """Requests that wait while every row is taken."""
    columns: int = 1 << 20
    """Tokens of keys and values that are kept, over all rows with their padding."""
    chunk: int = 256
    """Tokens of a prompt read at a time."""
    prompts: int = 1024
    """Tokens of short prompts read together, with their padding."""


class Engine:
    """See the module. Every method but `_...` is safe for any thread."""

    def __init__(self, passes: Passes, limits: Limits, ends: frozenset[int]) -> None:
        self.limits = limits
        self._passes, self._ends = passes, ends
        self._desk = Desk(limits.rows, limits.queue)
        self.run, self.put = self._desk.run, self._desk.put
        self._reading: deque[tuple[Prompts, list[Line]]] = deque()
        self._batch = Batch(passes)
        self._lines: dict[Seat, Line] = {}
        self._own: list[Seat] = []
        """The rows that are sampled from; the others are their shadows."""
        self._shadowed: list[Line] = []
        self._sampler = Sampler((), passes.device)
        self._tokens = self._source = self._place = torch.empty(0, dtype=torch.long)
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def fault(self) -> str | None:
        return self._desk.fault

    def close(self, seconds: float) -> None:
        """See `schema.generation.Generator.close`."""
        self._desk.close(seconds)
        if threading.current_thread() is not self._thread:
            self._thread.join(seconds + 60)

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            while self._gather():
                self._admit()
                self._read_prompts()
                self._step()
                self._drop()
        except Exception as error:
            log.exception("the engine stopped")
            self._desk.fault = f"the engine stopped on a fault of its own ({type(error).__name__}); restart the service"
            self._fail_all(WorkFailed(self._desk.fault))

    def _gather(self) -> bool:
        """What arrived, and what is over; False when it is time to end."""
        if not self._desk.attend(busy=bool(self._reading or self._batch.seats)):
            return False
        self._drop()
        if self._desk.overdue:
            self._fail_all(WorkFailed("the service was shut down before this text was complete; try again"))
            self._drop()
        return True

    def _drop(self) -> None:
        """Gives back the places of requests that are over."""
        staying = [i for i, seat in enumerate(self._batch.seats) if self._keeps(seat)]
        if len(staying) < len(self._batch):
            kept = set(staying)
            for seat in [seat for i, seat in enumerate(self._batch.seats) if i not in kept]:
                del self._lines[seat]
            self._batch.keep(staying)
            self._seated()
            self._desk.ended()
        self._desk.taken = len(self._batch) + sum(len(prompts.seats) for prompts, _ in self._reading)

    def _keeps(self, seat: Seat) -> bool:
        line = self._lines[seat]
        return line.finish is None and not line.work.over

    def _admit(self) -> None:
        """Seats what waits, first come first served, as far as rows and columns last."""
        short: list[Line] = []
        waiting = self._desk.waiting
        while waiting and self._fits(waiting[0], short):
            line = waiting.popleft()
            line.work.begun = True
            if len(line.choice.ids) > self.limits.chunk:
                self._begin([line, *self._others_like(line, short)])
            else:
                short.append(line)
        if short:
            self._begin(short)

    def _others_like(self, line: Line, short: Sequence[Line]) -> list[Line]:
        """What waits next of the same request with the same prompt, as far as there is room: they are read together."""
        waiting, found = self._desk.waiting, list[Line]()
        while waiting and waiting[0].begins_like(line) and self._fits(waiting[0], [*short, line, *found]):
            found.append(waiting.popleft())
        return found

    def _begin(self, lines: list[Line]) -> None:
        prompts = Prompts(self._passes, [seat for line in lines for seat in line.seats], self.limits.chunk)
        self._reading.append((prompts, lines))

    def _fits(self, line: Line, short: Sequence[Line]) -> bool:
        at_work = {*self._lines.values(), *short, *(each for _, lines in self._reading for each in lines), line}
        rows = sum(len(each.seats) for each in at_work)
        together = [len(each.choice.ids) for each in (*short, line)]
        padded = max(together) * sum(len(each.seats) for each in (*short, line))
        return (
            rows <= self.limits.rows
            and rows * max(each.columns for each in at_work) <= self.limits.columns
            and (not short or padded <= self.limits.prompts or len(line.choice.ids) > self.limits.chunk)
        )

    def _read_prompts(self) -> None:
        """One chunk of the prompts whose turn it is."""
        if not self._reading:
            return
        prompts, lines = self._reading.popleft()
        if all(line.work.over for line in lines):
            return
        after = self._try(prompts.advance, lines)
        if after is False:
            return
        if after is None:
            self._reading.append((prompts, lines))
            return
        self._first_tokens(prompts, lines, after)

    def _first_tokens(self, prompts: Prompts, lines: Sequence[Line], after: After) -> None:
        place = {seat: i for i, seat in enumerate(prompts.seats)}
        self._measure(lines, place, after.logits)
        own = torch.tensor([place[line.seat] for line in lines], device=after.logits.device)
        sampler = Sampler([line.draw for line in lines], after.logits.device)
        self._take(lines, sampler.choose(*_of(after, own)))
        staying = []
        for line in lines:
            if line.choice.kl != "every":
                line.shadow = None
            if line.finish is None and not line.work.over:
                staying += [place[seat] for seat in line.seats]
                self._lines |= dict.fromkeys(line.seats, line)
        self._batch.join(prompts, sorted(staying))
        self._seated()

    def _seated(self) -> None:
        """Rows have joined or left: what is kept a row is made anew."""
        seats, device = self._batch.seats, self._passes.device
        place = {seat: i for i, seat in enumerate(seats)}
        self._own = [seat for seat in seats if self._lines[seat].seat is seat]
        self._source = torch.tensor([self._own.index(self._lines[seat].seat) for seat in seats], device=device)
        self._place = torch.tensor([place[seat] for seat in self._own], device=device)
        self._shadowed = [line for line in map(self._lines.__getitem__, self._own) if line.shadow is not None]
        self._sampler = Sampler([self._lines[seat].draw for seat in self._own], device)
        self._tokens = torch.tensor([seat.ids[-1] for seat in seats], device=device)

    def _step(self) -> None:
        """One token for every row."""
        if not self._batch.seats:
            return
        lines = [self._lines[seat] for seat in self._own]
        after = self._try(lambda: self._batch.step(self._tokens), lines)
        if after is False:
            return
        if self._shadowed:
            self._measure(self._shadowed, {seat: i for i, seat in enumerate(self._batch.seats)}, after.logits)
            after = _of(after, self._place)
        chosen = self._sampler.choose(*after)
        self._tokens = chosen.tokens[self._source] if self._shadowed else chosen.tokens
        self._take(lines, chosen)

    def _measure(self, lines: Sequence[Line], place: dict[Seat, int], logits: Tensor) -> None:
        shadowed = [line for line in lines if line.shadow is not None]
        if not shadowed:
            return
        ours = torch.tensor([place[line.seat] for line in shadowed], device=logits.device)
        plain = torch.tensor([place[line.seats[1]] for line in shadowed], device=logits.device)
        for line, kl in zip(shadowed, divergence(logits[ours], logits[plain]), strict=True):
            line.diverged(kl)

    def _take(self, lines: Sequence[Line], chosen: Any) -> None:
        for i, (line, token) in enumerate(zip(lines, chosen.ids, strict=True)):
            if line.work.over:
                continue
            if token < 0:
                line.work.fail(WorkFailed(_not_finite(line)))
            else:
                line.take(token, chosen.told.get(i), self._ends)

    def _try(self, work: Callable[[], Any], lines: Sequence[Line]) -> Any:
        """What a pass gives; False where it failed, and its requests with it."""
        try:
            return work()
        except Exception as error:
            failure = _failure(error, self._passes.device)
            if not isinstance(error, ScopebaseError | torch.OutOfMemoryError):
                log.exception("a pass through the model failed")
        for line in lines:
            line.work.fail(failure)
        return False

    def _fail_all(self, error: ScopebaseError) -> None:
        self._desk.dismiss(error)
        for line in [*self._lines.values(), *(line for _, lines in self._reading for line in lines)]:
            line.work.fail(error)
        self._reading.clear()


def _of(after: After, rows: Tensor) -> After:
    return After(after.logits[rows], None if after.broken is None else after.broken[rows])


def _failure(error: Exception, device: torch.device) -> ScopebaseError:
    """The sentence for what went wrong in a pass."""
    if isinstance(error, ScopebaseError):
        return error
    words = str(error)
    if (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or "allocate memory" in words
        or "not enough memory" in words
    ):
        return WorkFailed(
            f"{device} ran out of memory on this request; try fewer tokens, or again when there is less to do"
        )
    reason = words.splitlines()[0][:200] if words else ""
    return WorkFailed(f"the model failed on this request: {type(error).__name__}: {reason}")


def _not_finite(line: Line) -> str:
    cause = "lower the strength of its steering" if line.program is not None else "load the model with --dtype float32"
    return f"after {line.n_generated:,} tokens the model's output is not finite; {cause}"
