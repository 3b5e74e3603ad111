"""The two shapes that OpenAI gives to generated texts, whole and in pieces. A field that is not set is not sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from schema.generation import Finish, TokenLogprob
from schema.wire.chat import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatToken,
    Delta,
    LikelyToken,
)
from schema.wire.completions import Completion, CompletionChoice, CompletionChunk, CompletionLogprobs
from schema.wire.sampling import UNSEEN, Answered

Whole = TypeVar("Whole", bound=Answered, covariant=True)
Chunk = TypeVar("Chunk", bound=Answered, covariant=True)


@dataclass
class Told:
    """One choice so far."""

    index: int
    seed: int
    logprobs: bool
    before: str = ""
    """What stands in front of the generated text."""
    texts: list[str] = field(default_factory=list)
    tokens: list[TokenLogprob] = field(default_factory=list)
    offset: int = 0
    """Characters of the tokens that are gone out."""
    finish: Finish | None = None
    n_generated: int = 0


class Form(Protocol, Generic[Whole, Chunk]):
    """One of the shapes."""

    prefix: str
    """Of the answer's id."""

    def opening(self, told: Told) -> Any:
        """What a choice's stream begins with; None for nothing."""

    def piece(self, told: Told, text: str, tokens: Sequence[TokenLogprob]) -> Any: ...

    def ending(self, told: Told) -> Any: ...

    def chunk(self, choices: list[Any], common: dict[str, Any]) -> Chunk: ...

    def whole(self, told: Sequence[Told], unsteered: Sequence[Told] | None, common: dict[str, Any]) -> Whole: ...


class CompletionForm:
    """Of /v1/completions."""

    prefix = "cmpl-"

    def opening(self, told: Told) -> CompletionChoice | None:
        if not told.before:
            return None
        return CompletionChoice(index=told.index, text=told.before, logprobs=None, finish_reason=None)

    def piece(self, told: Told, text: str, tokens: Sequence[TokenLogprob]) -> CompletionChoice:
        logprobs = _completion_logprobs(tokens, told.offset) if told.logprobs else None
        return CompletionChoice(index=told.index, text=text, logprobs=logprobs, finish_reason=None)

    def ending(self, told: Told) -> CompletionChoice:
        return CompletionChoice(index=told.index, text="", logprobs=None, finish_reason=told.finish, seed=told.seed)

    def chunk(self, choices: list[Any], common: dict[str, Any]) -> CompletionChunk:
        return CompletionChunk(object="text_completion", choices=choices, **common)

    def whole(self, told: Sequence[Told], unsteered: Sequence[Told] | None, common: dict[str, Any]) -> Completion:
        more = {} if unsteered is None else {"unsteered": [self._choice(each) for each in unsteered]}
        choices = [self._choice(each) for each in told]
        return Completion(object="text_completion", choices=choices, **more, **common)  # type: ignore[arg-type]

    def _choice(self, told: Told) -> CompletionChoice:
        return CompletionChoice(
            index=told.index,
            text=told.before + "".join(told.texts),
            logprobs=_completion_logprobs(told.tokens, 0) if told.logprobs else None,
            finish_reason=told.finish,
            seed=told.seed,
        )


class ChatForm:
    """Of /v1/chat/completions."""

    prefix = "chatcmpl-"

    def opening(self, told: Told) -> ChatChunkChoice:
        delta = Delta(role="assistant", content="")
        return ChatChunkChoice(index=told.index, delta=delta, logprobs=None, finish_reason=None)

    def piece(self, told: Told, text: str, tokens: Sequence[TokenLogprob]) -> ChatChunkChoice:
        logprobs = _chat_logprobs(tokens) if told.logprobs else None
        return ChatChunkChoice(index=told.index, delta=Delta(content=text), logprobs=logprobs, finish_reason=None)

    def ending(self, told: Told) -> ChatChunkChoice:
        return ChatChunkChoice(
            index=told.index, delta=Delta(), logprobs=None, finish_reason=told.finish, seed=told.seed
        )

    def chunk(self, choices: list[Any], common: dict[str, Any]) -> ChatChunk:
        return ChatChunk(object="chat.completion.chunk", choices=choices, **common)

    def whole(self, told: Sequence[Told], unsteered: Sequence[Told] | None, common: dict[str, Any]) -> ChatCompletion:
        more = {} if unsteered is None else {"unsteered": [self._choice(each) for each in unsteered]}
        choices = [self._choice(each) for each in told]
        return ChatCompletion(object="chat.completion", choices=choices, **more, **common)  # type: ignore[arg-type]

    def _choice(self, told: Told) -> ChatChoice:
        assert told.finish is not None
        return ChatChoice(
            index=told.index,
            message=AnswerMessage(role="assistant", content="".join(told.texts), refusal=None),
            logprobs=_chat_logprobs(told.tokens) if told.logprobs else None,
            finish_reason=told.finish,
            seed=told.seed,
        )


def _completion_logprobs(tokens: Sequence[TokenLogprob], offset: int) -> CompletionLogprobs:
    """Args:
    offset: characters before the first of these tokens.
    """
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return CompletionLogprobs(
        tokens=[token.text for token in tokens],
        token_logprobs=[_seen(token.logprob) for token in tokens],
        top_logprobs=[_likeliest(token) for token in tokens],
        text_offset=offsets,
    )


def _likeliest(token: TokenLogprob) -> dict[str, float]:
    """By text, as OpenAI has it; of two tokens with one text the likelier stays."""
    found: dict[str, float] = {}
    for _, text, logprob in token.top:
        found.setdefault(text, _seen(logprob))
    found.setdefault(token.text, _seen(token.logprob))
    return found


def _chat_logprobs(tokens: Sequence[TokenLogprob]) -> ChatLogprobs:
    return ChatLogprobs(
        content=[
            ChatToken(
                token=token.text,
                logprob=_seen(token.logprob),
                bytes=_bytes(token.text),
                top_logprobs=[
                    LikelyToken(token=text, logprob=_seen(logprob), bytes=_bytes(text))
                    for _, text, logprob in token.top
                ],
            )
            for token in tokens
        ],
        refusal=None,
    )


def _bytes(text: str) -> list[int] | None:
    return None if "\ufffd" in text else list(text.encode())


def _seen(logprob: float) -> float:
    return max(logprob, UNSEEN)  # minus infinity is no JSON
