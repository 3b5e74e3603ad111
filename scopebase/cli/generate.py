"""`scopebase generate`: steered beside unsteered text, from a model loaded here or a running service."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, Protocol

import typer

from schema.errors import InputError
from schema.wire.chat import ChatBody, ChatChunk, ChatCompletion
from schema.wire.completions import Completion, CompletionBody, CompletionChunk
from scopebase.cli.answers import library
from scopebase.cli.console import OUT
from scopebase.cli.live import ChatTemplateOption, DeviceOption, SaeDirOption, load_generator
from scopebase.cli.options import Home, Json, checked, wants_json
from scopebase.cli.side_by_side import Sheet, show_answer
from scopebase.cli.steer import ModeOption, SteerJsonOption, SteerOption, UnitOption, read_steering

if TYPE_CHECKING:
    from api.services.library import Library
    from schema.generation import Generator

Body = CompletionBody | ChatBody
Answer = Completion | ChatCompletion
Chunk = CompletionChunk | ChatChunk


def generate(
    prompt: Annotated[str, typer.Argument(help="What to go on with; - reads it from standard input.")],
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--model", help="Load this model (hub id or directory).", show_default=False),
    ] = None,
    steer: SteerOption = None,
    steer_json: SteerJsonOption = None,
    mode: ModeOption = None,
    unit: UnitOption = None,
    when: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--when", help="Steer only from where this stored rule holds.", show_default=False),
    ] = None,
    kl: Annotated[
        Optional[Literal["first", "every", "off"]],  # noqa: UP045
        typer.Option(
            "--kl", help="Divergence from the unsteered next token: at the first, at each, or not.", show_default=False
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare/--no-compare", help="The unsteered text of the same seed beside it.")
    ] = True,
    chat: Annotated[bool, typer.Option("--chat", help="The prompt is a user's message to a chat model.")] = False,
    chat_template: ChatTemplateOption = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Most tokens of each text.")] = 64,
    temperature: Annotated[float, typer.Option("--temperature", help="0 takes the likeliest token.")] = 1.0,
    top_p: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--top-p", help="Only the likeliest tokens of this probability together.", show_default=False),
    ] = None,
    top_k: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--top-k", help="Only so many of the likeliest tokens.", show_default=False),
    ] = None,
    seed: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--seed", help="The same seed gives the same texts; drawn unless given.", show_default=False),
    ] = None,
    stop: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--stop", help="Ends before this string. Repeat for more.", show_default=False),
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Texts.")] = 1,
    stream: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option(
            "--stream/--no-stream",
            help="Show the text as it comes; with --json one chunk a line.  [default: on a terminal]",
            show_default=False,
        ),
    ] = None,
    url: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--url", help="Ask this running service, such as http://localhost:8000.", show_default=False),
    ] = None,
    sae_dir: SaeDirOption = None,
    device: DeviceOption = "auto",
    home: Home = None,
    json: Json = False,
) -> None:
    """Generate text, steered beside unsteered; loads the model, or asks a service with --url."""
    steering = read_steering(steer, steer_json, mode, unit, {"kl": kl, "compare": compare, "when": _rule(when)})
    if (when or kl) and steering is None:
        raise InputError("--when and --kl are about steering; give --steer too")
    asked: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k}
    asked |= {"seed": seed, "stop": stop, "n": n, "steering": steering}
    text = sys.stdin.read() if prompt == "-" else prompt
    body: Body = (
        checked(ChatBody, {**asked, "messages": [{"role": "user", "content": text}]})
        if chat
        else checked(CompletionBody, {**asked, "prompt": text})
    )
    with source_of(url, model, home, sae_dir, device, chat_template) as source:
        _print(source, body, stream, wants_json(json))


def _print(source: Source, body: Body, stream: bool | None, json: bool) -> None:
    if json and not stream:
        OUT.out(source.answer(body).model_dump_json(indent=2, exclude_unset=True), highlight=False)
    elif json:
        for chunk in source.chunks(body):
            OUT.out(chunk.model_dump_json(exclude_unset=True), highlight=False)
    else:
        sheet = Sheet(prompt=body.prompt if isinstance(body, CompletionBody) else "")  # type: ignore[arg-type]
        with sheet.drawn(OUT.is_terminal if stream is None else stream):
            for chunk in source.chunks(body):
                sheet.take(chunk)
        show_answer(sheet)


def _rule(when: str | None) -> dict[str, str] | None:
    return None if when is None else {"rule": when}


class Source(Protocol):
    """Where texts come from."""

    def answer(self, body: Body) -> Answer:
        """The whole answer."""

    def chunks(self, body: Body) -> Iterator[Chunk]:
        """The answer as it comes."""


@dataclass
class Here:
    """A model loaded in this process."""

    books: Library
    generator: Generator

    def answer(self, body: Body) -> Answer:
        from api.services.generation.arriving import complete

        return complete(self.generator, *self._prepared(body))

    def chunks(self, body: Body) -> Iterator[Chunk]:
        from api.services.generation.arriving import generate as go

        return go(self.generator, *self._prepared(body))

    def _prepared(self, body: Body) -> tuple[Any, Any]:
        from api.services.generation.forms import ChatForm, CompletionForm
        from api.services.generation.prepared import prepare_chat, prepare_completion

        if isinstance(body, ChatBody):
            return prepare_chat(self.books, self.generator, body), ChatForm()
        return prepare_completion(self.books, self.generator, body), CompletionForm()


@dataclass
class There:
    """A running service."""

    client: Any

    def answer(self, body: Body) -> Answer:
        return self._ask(body, stream=False)

    def chunks(self, body: Body) -> Iterator[Chunk]:
        return self._ask(body, stream=True, stream_options={"include_usage": True})

    def _ask(self, body: Body, **more: Any) -> Any:
        fields = body.model_dump(mode="json", exclude_unset=True, exclude_none=True)
        if isinstance(body, ChatBody):
            return self.client.chat(fields.pop("messages"), **fields, **more)
        return self.client.complete(fields.pop("prompt"), **fields, **more)


@contextmanager
def source_of(
    url: str | None,
    model: str | None,
    home: Path | None,
    sae_dir: list[str] | None,
    device: str,
    chat_template: Path | None,
) -> Iterator[Source]:
    """A service, or a model that is loaded here and let go at the end."""
    if (url is None) == (model is None):
        raise InputError("give either --model, which is loaded here, or --url of a running service")
    if url is not None:
        from scopebase.client import Client

        with Client(url, timeout=600) as client:
            yield There(client)
        return
    assert model is not None
    with library(home) as books:
        generator = load_generator(books.home, model, sae_dir, device, chat_template=chat_template)
        try:
            yield Here(books, generator)
        finally:
            generator.close(0)
