"""Generating the texts of a point, a few at a time, so that whoever else asks the model gets turns."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from schema.errors import TooMany, WorkFailed
from schema.generation import Choice, Ended, Event, Failed, Generator, Piece
from schema.wire.steering import SteeringApplied

AT_ONCE = 16
"""Texts asked for together."""
PATIENCE = 0.5
"""Seconds between looks at whether to stop."""


class Stopped(Exception):
    """The sweep was told to stop. Points that are done stay done."""


@dataclass
class Generated:
    """One text, with its tokens."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    ended: bool = False
    applied: SteeringApplied | None = None


def generate(generator: Generator, choices: Sequence[Choice], stop: threading.Event) -> list[Generated]:
    """The texts of the choices, in their order.

    Raises:
        ScopebaseError: the engine's own, where it cannot.
        Stopped: `stop` was set.
    """
    found: list[Generated] = []
    for begin in range(0, len(choices), AT_ONCE):
        found += _some(generator, choices[begin : begin + AT_ONCE], stop)
    return found


def _some(generator: Generator, choices: Sequence[Choice], stop: threading.Event) -> list[Generated]:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    texts = [Generated() for _ in choices]
    left = len(choices)
    ticket = None
    while ticket is None:
        try:
            ticket = generator.submit(choices, events.put)
        except TooMany:  # others are being served: wait for room
            if stop.wait(PATIENCE):
                raise Stopped from None
    while left:
        event = _next(generator, events, stop)
        if event is None:
            ticket.cancel()
            raise Stopped
        if isinstance(event, Failed):
            raise event.error
        text = texts[event.choice]
        if isinstance(event, Piece):
            text.ids.extend(event.ids)
            text.text += event.text
        elif isinstance(event, Ended):
            text.ended, text.applied = event.finish == "stop", event.applied
            left -= 1
    return texts


def _next(generator: Generator, events: queue.SimpleQueue[Event], stop: threading.Event) -> Event | None:
    """None where the sweep is to stop."""
    while not stop.is_set():
        try:
            return events.get(timeout=PATIENCE)
        except queue.Empty:
            fault = generator.fault()
            if fault is not None:
                raise WorkFailed(fault) from None
    return None
