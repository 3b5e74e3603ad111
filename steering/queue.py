"""Requests on their way through the engine: what waits, what is at work, and what comes of it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from schema.generation import Choice, Ended, Event, Failed, Finish
from schema.wire.steering import SteeringApplied
from steering.batch import Seat
from steering.hooks import Program
from steering.sampler import Draw, Told
from steering.writing import Writer

log = logging.getLogger("scopebase.steering")


class Work:
    """One request. It is also its ticket."""

    def __init__(self, deliver: Callable[[Event], None]) -> None:
        self._deliver = deliver
        self.lines: list[Line] = []
        self.over = False
        """Nothing more is done for it: it was cancelled, it failed, or every choice has ended."""
        self.begun = False

    def cancel(self) -> None:
        """See `schema.generation.Ticket.cancel`."""
        self.over = True

    def tell(self, event: Event) -> None:
        """Hands an event over. A receiver that fails has its request cancelled."""
        if self.over:
            return
        try:
            self._deliver(event)
        except Exception:
            log.exception("a receiver of generated text failed; its request is cancelled")
            self.over = True

    def fail(self, error: Exception) -> None:
        self.tell(Failed(error))
        self.over = True

    def ended(self) -> None:
        """One of its lines has ended."""
        self.over = self.over or all(line.finish is not None for line in self.lines)


class Line:
    """One choice being generated."""

    def __init__(self, work: Work, choice: Choice, program: Program | None, draw: Draw, writer: Writer, place: int):
        self.work, self.choice, self.program, self.draw, self.writer, self.place = (
            work,
            choice,
            program,
            draw,
            writer,
            place,
        )
        self.seat = Seat(list(choice.ids), program)
        self.shadow = Seat(list(choice.ids)) if program is not None and choice.kl != "off" else None
        self.n_generated = 0
        self.finish: Finish | None = None
        self._kl: list[float] = []

    @property
    def seats(self) -> list[Seat]:
        return [self.seat] if self.shadow is None else [self.seat, self.shadow]

    @property
    def columns(self) -> int:
        """The most that it will ever need."""
        return len(self.choice.ids) + self.choice.sampling.max_tokens

    def begins_like(self, other: Line) -> bool:
        """Whether it is of the same request, with the same prompt."""
        return self.work is other.work and self.choice.ids == other.choice.ids

    def diverged(self, kl: float) -> None:
        """The divergence of the token that comes next. From here on only `every` goes on measuring."""
        self._kl.append(kl)

    def take(self, token: int, told: Told | None, ends: frozenset[int]) -> None:
        """The next token: says what can be said, and ends the choice where it ends."""
        self.n_generated += 1
        sampling = self.choice.sampling
        if token in ends and not sampling.ignore_end:
            self._end("stop")
            return
        self.draw.saw(token)
        for seat in self.seats:
            seat.ids.append(token)
        piece = self.writer.add(token, told)
        if piece is not None:
            self.work.tell(piece)
        if self.writer.stopped:
            self._end("stop")
        elif self.n_generated >= sampling.max_tokens:
            self._end("length")

    def _end(self, finish: Finish) -> None:
        piece = self.writer.finish()
        if piece is not None:
            self.work.tell(piece)
        self.finish = "stop" if self.writer.stopped else finish
        self.work.tell(Ended(self.place, self.finish, self.n_generated, self._applied()))
        self.work.ended()

    def _applied(self) -> SteeringApplied | None:
        if self.program is None:
            return None
        applied: SteeringApplied = self.program.applied()
        first = self._kl[0] if self._kl else None
        mean = sum(self._kl) / len(self._kl) if self._kl and self.choice.kl == "every" else None
        return applied.model_copy(update={"kl_first": first, "kl_mean": mean})


@torch.inference_mode()
def divergence(steered: Tensor, plain: Tensor) -> list[float]:
    """KL(steered || plain) in nats of each row of logits (n, vocabulary)."""
    ours, theirs = steered.double().log_softmax(dim=1), plain.double().log_softmax(dim=1)
    return [max(kl, 0.0) for kl in (ours.exp() * (ours - theirs)).sum(dim=1).tolist()]
