"""A generator that says what it is told to: for faults that a real engine cannot be made to show, and moments that must be held still."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from schema.errors import InputError
from schema.generation import Choice, Ended, Event, Piece, Stats, TokenLogprob
from schema.wire.steering import OpApplied, SteeringApplied


def applied(choice: Choice, n: int) -> SteeringApplied | None:
    """What an engine says that did as it was asked."""
    if not choice.ops:
        return None
    ops = [
        OpApplied(
            op=op.place,
            target=op.target,
            layer=op.layer,
            mode=op.mode,
            strength=op.strength,
            unit=op.unit,
            vector_sha256="0" * 64,
            prompt_tokens=len(choice.ids),
            generated_tokens=n,
            mean_relative_norm=0.5,
            max_relative_norm=0.75,
            activation_before=None,
            activation_after=None,
        )
        for op in choice.ops
    ]
    return SteeringApplied(ops=ops, condition_tokens=None, kl_first=0.25, kl_mean=None, engine="scripted", version="1")


def say(choices: Sequence[Choice], deliver: Callable[[Event], None]) -> None:
    """Each choice says its words: as many as it may, steered ones others than plain ones."""
    for place, choice in enumerate(choices):
        n = choice.sampling.max_tokens
        for g in range(n):
            word = f" {'warm' if choice.ops else 'word'}{g}"
            told = TokenLogprob(g, word, -0.5, ((g, word, -0.5), (g + 1, " other", -1.5)))
            deliver(Piece(place, word, (g,), (told,) if choice.sampling.logprobs is not None else ()))
        deliver(Ended(place, "length", n, applied(choice, n)))


@dataclass
class Ticket:
    cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        self.cancelled.set()


class Scripted:
    """See `schema.generation.Generator`. Each request is answered by `script` in a thread of its own."""

    name = "tiny-qwen3"
    engine = "scripted"
    context: int | None = 256
    tokenizer_sha256 = "0" * 64

    def __init__(self, script: Callable[[Sequence[Choice], Callable[[Event], None]], None] = say) -> None:
        self.script = script
        self.tickets: list[Ticket] = []
        self.said: list[Sequence[Choice]] = []
        self.refusal: Exception | None = None
        self.trouble: str | None = None

    def tokenize(self, prompt: str | Sequence[int]) -> list[int]:
        return [0, *prompt.encode()] if isinstance(prompt, str) else list(prompt)

    def chat(self, messages: Sequence[Any], **options: Any) -> list[int]:
        if options.get("broken"):
            raise InputError("this model has no chat template; use /v1/completions")
        return self.tokenize("".join(f"<{m['role']}>{m['content']}" for m in messages))

    def read(self, texts: Sequence[Any], saes: Sequence[str], *, mask: str, max_tokens: int) -> Any:
        raise NotImplementedError

    def submit(self, choices: Sequence[Choice], deliver: Callable[[Event], None]) -> Ticket:
        if self.refusal is not None:
            raise self.refusal
        ticket = Ticket()
        self.tickets.append(ticket)
        self.said.append(choices)
        threading.Thread(target=self.script, args=(choices, deliver), daemon=True).start()
        return ticket

    def stats(self) -> Stats:
        return Stats(generated=0, read=0, rows=1, at_work=0, waiting=0, dropped=0)

    def fault(self) -> str | None:
        return self.trouble

    def close(self, seconds: float = 5.0) -> None: ...
