"""What the service needs of a model that generates. `steering` has the real one; `scopebase` joins them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from schema.live import LiveModel
from schema.wire.expressions import Expression
from schema.wire.steering import Mode, SteeringApplied, Unit, Where

Finish = Literal["stop", "length"]
"""`stop`: an end token or a stop string; `length`: the most tokens asked for."""


@dataclass(frozen=True)
class Op:
    """One operation, its names looked up."""

    place: int
    """In the request's `ops`."""
    target: str
    layer: int
    mode: Mode
    strength: float
    unit: Unit
    vector: npt.NDArray[np.float32]
    """(d_model,) as stored, not normalised; a feature's decoder column."""
    sae: str | None = None
    """Of a feature, with `feature`: modes that need its activation ask the encoder."""
    feature: int | None = None
    largest: float | None = None
    """Of a feature: its largest activation in the index, for unit `feature_max`."""
    where: Where = field(default_factory=Where)


@dataclass(frozen=True)
class Condition:
    """When operations are let through."""

    name: str
    expression: Expression
    scope: Literal["after", "token", "prompt"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy: the likeliest, ties to the lower id."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: all."""
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    ignore_end: bool = False
    """Goes on after an end token."""
    logprobs: int | None = None
    """How many likeliest tokens are told beside each; 0 tells the chosen one alone."""


@dataclass(frozen=True)
class Choice:
    """One text to generate. A request with `n` choices, or with `compare`, is several of these."""

    ids: tuple[int, ...]
    """The prompt."""
    sampling: Sampling
    ops: tuple[Op, ...] = ()
    when: Condition | None = None
    kl: Literal["first", "every", "off"] = "off"


@dataclass(frozen=True)
class TokenLogprob:
    """A token's log-probability before temperature, and those of the likeliest."""

    id: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """More text of a choice. Text that may yet become a stop string is held back."""

    choice: int
    text: str
    ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Times:
    """Where a choice's time went, in seconds."""

    queue: float
    """Until it had its row."""
    prompt: float
    """From there to its first token."""
    decode: float
    """From there to its last."""


@dataclass(frozen=True)
class Stats:
    """What an engine has done since it began, and what it is at."""

    generated: int
    """Tokens."""
    read: int
    """Tokens of prompts."""
    rows: int
    """That its batch may have."""
    at_work: int
    """Rows that have a choice, or its unsteered shadow."""
    waiting: int
    """Choices that have no row yet."""
    dropped: int
    """Choices that lost their row before they were done: their clients left, or they failed."""


@dataclass(frozen=True)
class Ended:
    """A choice is done; nothing follows it."""

    choice: int
    finish: Finish
    n_generated: int
    applied: SteeringApplied | None
    """Of this choice alone; None where it has no operation."""
    times: Times | None = None
    """None where the engine does not measure them."""


@dataclass(frozen=True)
class Failed:
    """The whole request came to nothing; nothing follows it."""

    error: Exception
    """A ScopebaseError, with its sentence."""


Event = Piece | Ended | Failed


class Ticket(Protocol):
    """A request that was taken."""

    def cancel(self) -> None:
        """Gives its places in the batch back before the next step. No event follows. Safe from any thread, at any time."""


class Generator(LiveModel, Protocol):
    """A model and SAEs of the home, loaded, that reads and generates. Safe for several threads."""

    @property
    def context(self) -> int | None:
        """The most tokens of prompt and answer together."""

    @property
    def engine(self) -> str:
        """Its name, such as `torch`."""

    def tokenize(self, prompt: str | Sequence[int]) -> list[int]:
        """A prompt's token ids, special tokens added as the tokenizer does; ids are taken as they are.

        Raises:
            InputError: it has no token, or ids that the model does not have.
        """

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """The token ids of a conversation in the model's own template, up to where its answer begins.

        Raises:
            InputError: the tokenizer has no chat template, or it refuses these messages.
        """

    def submit(self, choices: Sequence[Choice], deliver: Callable[[Event], None]) -> Ticket:
        """Takes a request, and hands its events over from the engine's own thread as they come; `deliver` must not block.

        Raises:
            InputError: an operation or a prompt that this model cannot take: width, layer, context, conditions.
            TooMany: the queue is full.
            WorkFailed: the engine is closing, or its model is out of order.
        """

    def score(self, texts: Sequence[Sequence[int]], firsts: Sequence[int]) -> list[npt.NDArray[np.float32]]:
        """How likely the unsteered model finds texts: for each, the log-probability of its tokens from place `first` on, each given
        all before it. One call waits for its turn between the steps of what is being generated.

        Args:
            texts: token ids, prompts included.
            firsts: at least 1 each, for nothing stands before the first token.

        Raises:
            InputError: a text longer than the context, ids that the model does not have, or a `first` below 1.
            WorkFailed: see `submit`.
        """

    def fault(self) -> str | None:
        """Why it cannot generate, in one sentence; None while it can."""

    def stats(self) -> Stats:
        """Its counts. Safe for any thread, at any time, and cheap."""

    def close(self, seconds: float = 5.0) -> None:
        """Takes no more requests, lets those at work finish for so long, then ends them with `Failed`."""
