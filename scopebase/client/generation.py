"""Texts from the service's model, steered or not. `**more` are further fields of the routes: `max_tokens`, `temperature`, `seed`, ..."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, overload

from schema.wire.chat import ChatChunk, ChatCompletion
from schema.wire.completions import Completion, CompletionChunk
from schema.wire.steering import Steering
from scopebase.client.asking import Asking

Prompt = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
Messages = Sequence[Mapping[str, Any]]
Steered = Steering | Mapping[str, Any] | None


class Generation(Asking):
    @overload
    def complete(
        self, prompt: Prompt, *, steering: Steered = None, stream: Literal[False] = False, **more: Any
    ) -> Completion: ...
    @overload
    def complete(
        self, prompt: Prompt, *, steering: Steered = None, stream: Literal[True], **more: Any
    ) -> Iterator[CompletionChunk]: ...
    def complete(
        self, prompt: Prompt, *, steering: Steered = None, stream: bool = False, **more: Any
    ) -> Completion | Iterator[CompletionChunk]:
        """What the model makes of a prompt: `client.complete("Once", steering={"ops": [{"feature": "m/3-tiny/99", "strength": 2}]})`.

        With `stream=True` its pieces as they come; the last one says what steering did.
        """
        body = _body({"prompt": prompt, "steering": steering, **more})
        if stream:
            return self._transport.stream("/completions", CompletionChunk, {**body, "stream": True})
        return self._post("/completions", Completion, body)

    @overload
    def chat(
        self, messages: Messages, *, steering: Steered = None, stream: Literal[False] = False, **more: Any
    ) -> ChatCompletion: ...
    @overload
    def chat(
        self, messages: Messages, *, steering: Steered = None, stream: Literal[True], **more: Any
    ) -> Iterator[ChatChunk]: ...
    def chat(
        self, messages: Messages, *, steering: Steered = None, stream: bool = False, **more: Any
    ) -> ChatCompletion | Iterator[ChatChunk]:
        """The model's answer to a conversation, in its own chat template. Otherwise as `complete`."""
        body = _body({"messages": messages, "steering": steering, **more})
        if stream:
            return self._transport.stream("/chat/completions", ChatChunk, {**body, "stream": True})
        return self._post("/chat/completions", ChatCompletion, body)


def _body(fields: Mapping[str, Any]) -> dict[str, Any]:
    steering = fields["steering"]
    if isinstance(steering, Steering):
        steering = steering.model_dump(mode="json", exclude_unset=True)
    return {name: value for name, value in {**fields, "steering": steering}.items() if value is not None}
