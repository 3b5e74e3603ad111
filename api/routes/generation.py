"""Texts from the loaded model, steered or not, in OpenAI's shapes: its official clients work unchanged."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from api.deps import Books, Generating, Spend
from api.services.generation.arriving import Arriving, collect, stream
from api.services.generation.assembly import Assembly
from api.services.generation.forms import ChatForm, CompletionForm
from api.services.generation.prepared import Prepared, prepare_chat, prepare_completion
from api.streams import ClientLeft, EventStream, unless_left
from schema.errors import TooMany
from schema.generation import Generator
from schema.wire.chat import ChatBody, ChatChunk, ChatCompletion
from schema.wire.completions import Completion, CompletionBody, CompletionChunk
from schema.wire.sampling import GenerationBody

router = APIRouter(tags=["generation"])
LEFT = 499
"""Nobody reads this answer; the log does."""


def _streamed(shape: type[Any]) -> dict[int | str, dict[str, Any]]:
    """How a stream is described: each `data:` line is a chunk, the last one `[DONE]`."""
    said = f"One JSON answer; with `stream`, events whose data is a `{shape.__name__}` each, and `[DONE]` at the end"
    event = {
        "type": "object",
        "required": ["data"],
        "properties": {"data": {"type": "string", "description": f"A `{shape.__name__}` as JSON, or `[DONE]`"}},
    }
    return {200: {"description": said, "content": {"text/event-stream": {"schema": event}}}}


@router.post(
    "/completions",
    summary="Go on with a text",
    response_model=Completion,
    response_model_exclude_unset=True,
    responses=_streamed(CompletionChunk),
)
async def post_completions(
    http: Request, library: Books, generator: Generating, spend: Spend, body: CompletionBody
) -> Any:
    """Prompts, and what the model makes of them; with `steering` its residual stream is changed, and the answer says how.

    OpenAI's legacy completions, of which `suffix`, `best_of` and `echo` with `logprobs` are refused.
    """
    prepared = await run_in_threadpool(prepare_completion, library, generator, body)
    return await _answer(http, generator, prepared, CompletionForm(), body, spend)


@router.post(
    "/chat/completions",
    summary="Go on with a conversation",
    response_model=ChatCompletion,
    response_model_exclude_unset=True,
    responses=_streamed(ChatChunk),
)
async def post_chat_completions(
    http: Request, library: Books, generator: Generating, spend: Spend, body: ChatBody
) -> Any:
    """Messages in the model's own chat template, and its answer; with `steering` as for completions.

    OpenAI's chat completions of texts; tools, pictures, sound and formats are refused.
    """
    prepared = await run_in_threadpool(prepare_chat, library, generator, body)
    return await _answer(http, generator, prepared, ChatForm(), body, spend)


async def _answer(
    http: Request, generator: Generator, prepared: Prepared, form: Any, body: GenerationBody, spend: Spend
) -> Any:
    """The whole answer, or a stream that begins once its first token is there: until then a failure has a status of its own."""
    settle = spend(prepared.most_tokens)
    arriving = Arriving()
    metrics = http.app.state.metrics
    asked = time.perf_counter()
    tells_usage = bool(body.stream_options and body.stream_options.include_usage)
    assembly: Assembly[Any, Any] = Assembly(prepared, form, keeps=not body.stream, tells_usage=tells_usage)
    taken = handed_on = False

    def close() -> None:
        metrics.unfinished.inc(taken and not assembly.done)
        arriving.close()
        settle(assembly.n_tokens if taken else 0)

    async def begin() -> None:
        nonlocal taken
        try:
            await arriving.submit(generator, prepared.choices)
        except TooMany:
            metrics.refused.inc()
            raise
        taken = True
        http.state.handed_over()
        await arriving.begun()
        metrics.first_token.observe(time.perf_counter() - asked)
        http.state.under_way()

    try:
        await unless_left(http, begin())
        if body.stream:
            handed_on = True
            return EventStream(stream(arriving, assembly), close)
        return await unless_left(http, collect(arriving, assembly))
    except ClientLeft:
        return Response(status_code=LEFT)
    finally:
        if not handed_on:
            close()
