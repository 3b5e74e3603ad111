"""Events of one request on their way to its answer: pieces as they come, and the whole at the end."""

from __future__ import annotations

import time
import uuid
from typing import Any, Generic, TypeVar

from api.services.generation.applied import check_applied, merge
from api.services.generation.forms import Form, Told
from api.services.generation.prepared import Prepared
from schema.errors import WorkFailed
from schema.generation import Ended, Event, Failed, Piece
from schema.wire.sampling import Answered, Usage
from schema.wire.steering import SteeringApplied

Whole = TypeVar("Whole", bound=Answered)
Chunk = TypeVar("Chunk", bound=Answered)


class Assembly(Generic[Whole, Chunk]):
    """One answer in the making.

    Args:
        keeps: whether the texts are kept for the whole answer; a stream hands them on.
        tells_usage: whether a stream's last chunk tells the tokens used.
    """

    def __init__(
        self, prepared: Prepared, form: Form[Whole, Chunk], *, keeps: bool = True, tells_usage: bool = False
    ) -> None:
        self._prepared, self._form, self._keeps, self._tells_usage = prepared, form, keeps, tells_usage
        self._told = [
            Told(place, prepared.seeds[place % prepared.n], prepared.logprobs, self._before(place))
            for place in range(len(prepared.choices))
        ]
        self._applied: list[tuple[SteeringApplied, int]] = []
        self._left = len(prepared.choices)
        self._common: dict[str, Any] = {
            "id": f"{form.prefix}{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": prepared.model,
            "system_fingerprint": prepared.fingerprint,
        }

    @property
    def done(self) -> bool:
        return not self._left

    @property
    def n_tokens(self) -> int:
        """Read and generated so far."""
        return self._prepared.prompt_tokens + sum(told.n_generated for told in self._told)

    def open(self) -> list[Chunk]:
        """What a stream begins with."""
        openings = ((told, self._form.opening(told)) for told in self._told)
        return [self._chunk(told, opening) for told, opening in openings if opening is not None]

    def take(self, event: Event) -> list[Chunk]:
        """The chunks that an event makes.

        Raises:
            ScopebaseError: what the engine failed with, or a choice that was not steered as asked.
        """
        if isinstance(event, Failed):
            raise event.error
        told = self._told[event.choice]
        return self._piece(told, event) if isinstance(event, Piece) else self._end(told, event)

    def answer(self) -> Whole:
        """The whole, once it is done."""
        n = self._prepared.n
        common = {**self._common, "usage": self._usage(), **self._last()}
        return self._form.whole(self._told[:n], self._told[n:] if self._prepared.compare else None, common)

    def _before(self, place: int) -> str:
        return self._prepared.echo[place % self._prepared.n] if self._prepared.echo else ""

    def _piece(self, told: Told, piece: Piece) -> list[Chunk]:
        told.n_generated += len(piece.ids)
        if self._keeps:
            told.texts.append(piece.text)
            told.tokens.extend(piece.logprobs)
            return []
        if not piece.text and not (told.logprobs and piece.logprobs):
            return []
        made = self._chunk(told, self._form.piece(told, piece.text, piece.logprobs))
        told.offset += sum(len(token.text) for token in piece.logprobs)
        return [made]

    def _end(self, told: Told, ended: Ended) -> list[Chunk]:
        check_applied(self._prepared.choices[ended.choice], ended)
        told.finish, told.n_generated = ended.finish, ended.n_generated
        if ended.applied is not None:
            self._applied.append((ended.applied, ended.n_generated))
        self._left -= 1
        if self._keeps:
            return []
        last = {} if self._left else self._last()
        chunks = [self._chunk(told, self._form.ending(told), **({} if self._tells_usage else last))]
        if self._tells_usage and not self._left:
            chunks.append(self._form.chunk([], {**self._common, "usage": self._usage(), **last}))
        return chunks

    def _chunk(self, told: Told, choice: Any, **more: Any) -> Chunk:
        marks: dict[str, Any] = {} if told.index < self._prepared.n else {"unsteered": True}
        usage = {"usage": None} if self._tells_usage else {}
        return self._form.chunk([choice], {**self._common, **usage, **marks, **more})

    def _last(self) -> dict[str, Any]:
        """What is known at the end."""
        seed = {"seed": self._prepared.seeds[0]}
        if not self._prepared.steered:
            return seed
        if len(self._applied) < self._prepared.n:
            raise WorkFailed("the engine did not say of every choice how it was steered; no text is handed out")
        return {**seed, "steering_applied": merge(self._applied)}

    def _usage(self) -> Usage:
        read, total = self._prepared.prompt_tokens, self.n_tokens
        return Usage(prompt_tokens=read, completion_tokens=total - read, total_tokens=total)
