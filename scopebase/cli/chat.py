"""`scopebase chat`: a conversation in the terminal, with steering that can be switched off and on while it goes on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Optional

import typer

from schema.errors import ScopebaseError
from schema.wire.chat import ChatBody, ChatChunk
from schema.wire.steering import Steering, SteeringApplied
from scopebase.cli.console import ERRORS, OUT
from scopebase.cli.generate import Source, source_of
from scopebase.cli.live import ChatTemplateOption, DeviceOption, SaeDirOption
from scopebase.cli.options import Home, checked
from scopebase.cli.side_by_side import lines, show_applied
from scopebase.cli.steer import ModeOption, SteerJsonOption, SteerOption, UnitOption, read_steering

HELP = "/plain and /steered switch, /applied tells what steering did, /new begins anew, /end or Ctrl-D ends"
MaybeText = Optional[str]  # noqa: UP045


@dataclass
class Talk:
    """A conversation so far."""

    source: Source
    asked: dict[str, Any]
    steering: Steering | None
    first: list[dict[str, str]]
    messages: list[dict[str, str]] = field(default_factory=list)
    steered: bool = True
    applied: SteeringApplied | None = None

    def say(self, text: str) -> Iterator[str]:
        """The answer as it comes. It joins the conversation once it is whole."""
        said = {"role": "user", "content": text}
        steering = self.steering if self.steered else None
        body = checked(ChatBody, {**self.asked, "messages": [*self.first, *self.messages, said], "steering": steering})
        found: list[str] = []
        self.applied = None
        for chunk in self.source.chunks(body):
            assert isinstance(chunk, ChatChunk)
            found.append("".join(choice.delta.content or "" for choice in chunk.choices))
            self.applied = chunk.steering_applied or self.applied
            yield found[-1]
        self.messages += [said, {"role": "assistant", "content": "".join(found)}]


def chat(
    model: Annotated[
        MaybeText, typer.Option("--model", help="Load this model (hub id or directory).", show_default=False)
    ] = None,
    steer: SteerOption = None,
    steer_json: SteerJsonOption = None,
    mode: ModeOption = None,
    unit: UnitOption = None,
    system: Annotated[
        MaybeText, typer.Option("--system", help="What the model is told before all else.", show_default=False)
    ] = None,
    chat_template: ChatTemplateOption = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Most tokens of an answer.")] = 256,
    temperature: Annotated[float, typer.Option("--temperature", help="0 takes the likeliest token.")] = 1.0,
    seed: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--seed", help="The same seed gives the same answers; drawn unless given.", show_default=False),
    ] = None,
    url: Annotated[
        MaybeText,
        typer.Option("--url", help="Ask this running service, such as http://localhost:8000.", show_default=False),
    ] = None,
    sae_dir: SaeDirOption = None,
    device: DeviceOption = "auto",
    home: Home = None,
) -> None:
    """Talk with a chat model, steered; /plain shows what it says without. Loads the model, or asks a service with --url."""
    steering = read_steering(steer, steer_json, mode, unit, {"compare": False, "kl": "off"})
    asked = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    first = [] if system is None else [{"role": "system", "content": system}]
    with source_of(url, model, home, sae_dir, device, chat_template) as source:
        talk = Talk(source, asked, steering, first)
        ERRORS.print(HELP, style="dim")
        for line in _lines_typed():
            if line.startswith("/"):
                if not _order(talk, line):
                    break
            elif line:
                _answer(talk, line)


def _answer(talk: Talk, line: str) -> None:
    """Prints it as it comes. On a terminal what goes wrong is told, and the conversation stands as before."""
    try:
        for piece in talk.say(line):
            OUT.out(lines(piece), end="", highlight=False)
            OUT.file.flush()
    except ScopebaseError as error:
        if not sys.stdin.isatty():
            raise
        ERRORS.print(str(error), style="red")
    except KeyboardInterrupt:
        ERRORS.print(" (broken off, and forgotten)", style="dim")
    OUT.out("")


def _order(talk: Talk, line: str) -> bool:
    """Whether the conversation goes on."""
    word = line.strip()
    if word in ("/plain", "/steered"):
        talk.steered = word == "/steered"
        what = "steered" if talk.steered and talk.steering else "unsteered"
        ERRORS.print(f"answers are {what} from here on", style="dim")
    elif word == "/new":
        talk.messages.clear()
        ERRORS.print("the conversation is forgotten", style="dim")
    elif word == "/applied":
        show_applied(talk.applied) if talk.applied else ERRORS.print("the last answer was not steered", style="dim")
    elif word != "/end":
        ERRORS.print(HELP, style="dim")
    return word != "/end"


def _lines_typed() -> Iterator[str]:
    """From a terminal with a prompt, or from a file."""
    while True:
        if sys.stdin.isatty():
            ERRORS.print("> ", style="bold", end="")
        line = sys.stdin.readline()
        if not line:
            return
        yield line.strip()
