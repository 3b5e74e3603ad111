"""`schema.generation.Generator` over the embedded engine: what is asked is checked here, in the caller's thread, before it is queued."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import psutil
import torch

from indexer.live import Live, Loaded, Streams, load_known_model
from indexer.progress import Progress
from indexer.saes import Release, open_release
from indexer.subject import Described
from schema.errors import BeyondContext, InputError
from schema.generation import Choice, Event, Sampling
from schema.home import Home
from schema.names import parse_feature
from steering.batch import Passes
from steering.cache import token_bytes
from steering.conditions import features
from steering.engine import Engine, Limits
from steering.hooks import Program, Steerer
from steering.prompts import PromptReader
from steering.queue import Line, Work
from steering.sampler import Draw
from steering.scoring import check_texts, score_texts
from steering.spelling import Spelling
from steering.writing import Writer

MEMORY_SHARE = 0.25
"""Of the memory that is free when the model is loaded, for keys and values; on a GPU three times that."""


class Runs(Protocol):
    """An engine: the thread that owns the model, and what waits for it. `steering.engine.Engine` is one."""

    limits: Limits

    @property
    def run(self) -> Callable[..., Future[Any]]: ...
    @property
    def put(self) -> Callable[[Sequence[Line]], None]: ...
    def fault(self) -> str | None: ...
    def close(self, seconds: float) -> None: ...


class EngineGenerator(Live):
    """A model of the home that reads and generates, whatever engine runs it. See `schema.generation.Generator` for its promises."""

    def __init__(
        self,
        home: Home,
        name: str,
        described: Described,
        subject: Streams,
        dtype: str,
        engine: Runs,
        steerer: Steerer,
        releases: Sequence[Release] = (),
        chat_template: str | None = None,
    ) -> None:
        self._engine, self._steerer, self._device = engine, steerer, subject.device
        self._prompts = PromptReader(described.tokenizer, name, chat_template)
        self._spelling = Spelling(described.tokenizer.fast, described.tokenizer.special_ids.tolist())
        self._vocabulary = described.tokenizer.vocabulary
        super().__init__(home, name, described, subject, dtype, releases, run=engine.run)

    @property
    def context(self) -> int | None:
        """See `schema.generation.Generator.context`."""
        return self._described.card.context

    def tokenize(self, prompt: str | Sequence[int]) -> list[int]:
        """See `schema.generation.Generator.tokenize`."""
        return self._prompts.tokenize(prompt)

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """See `schema.generation.Generator.chat`."""
        return self._prompts.chat(messages, **options)

    def submit(self, choices: Sequence[Choice], deliver: Callable[[Event], None]) -> Work:
        """See `schema.generation.Generator.submit`."""
        if not choices:
            raise InputError("give at least one choice to generate")
        for choice in choices:
            self._check(choice)
        for name in {name for choice in choices for name in _saes(choice)}:
            self.encoder(name)  # loaded here, so that the batch need not wait for it
        work = Work(deliver)
        if any(choice.ops for choice in choices):  # programs are the model's thread's
            self._engine.run(self._enlist, work, choices).result()
        else:
            self._enlist(work, choices)
        return work

    def _enlist(self, work: Work, choices: Sequence[Choice]) -> None:
        first: tuple[Choice, Program] | None = None
        for place, choice in enumerate(choices):
            program = None
            if choice.ops:
                like = first[1] if first is not None and _begins_alike(first[0], choice) else None
                program = self._steerer.program(choice, like)
                first = (choice, program)
            work.lines.append(self._line(work, choice, place, program))
        self._engine.put(work.lines)

    def fault(self) -> str | None:
        """See `schema.generation.Generator.fault`."""
        return self._engine.fault()

    def close(self, seconds: float = 5.0) -> None:
        """See `schema.generation.Generator.close`."""
        self._engine.close(seconds)

    def _line(self, work: Work, choice: Choice, place: int, program: Program | None) -> Line:
        draw = Draw(choice.sampling, self._vocabulary, self._device)
        pieces = self._described.tokenizer.pieces
        speller = self._spelling.speller(list(choice.ids))
        writer = Writer(place, speller, choice.sampling.stop, lambda id_: pieces([id_])[0])
        return Line(work, choice, program, draw, writer, place)

    def _check(self, choice: Choice) -> None:
        if not choice.ids:
            raise InputError("the prompt has no token; give at least one character")
        self._prompts.checked(list(choice.ids))
        _check_sampling(choice.sampling, self._vocabulary)
        n, most = len(choice.ids), choice.sampling.max_tokens
        if self.context is not None and n + most > self.context:
            raise BeyondContext(
                f"the prompt's {n:,} tokens and {most:,} to generate are {n + most:,}, but model {self.name} has a context of "
                f"{self.context:,}; shorten the prompt or lower max_tokens"
            )
        rows = 2 if choice.ops and choice.kl != "off" else 1
        limits = self._engine.limits
        if rows * (n + most) > limits.columns:
            raise BeyondContext(
                f"the prompt's {n:,} tokens and {most:,} to generate need memory for {rows * (n + most):,}, but there is memory "
                f"for {limits.columns:,}; shorten the prompt or lower max_tokens"
            )
        if rows > limits.rows:
            raise InputError(
                "the divergence needs a second row, but the batch has one; ask with kl off, or raise --max-rows"
            )


class TorchGenerator(EngineGenerator):
    """Over the embedded engine and a plain model of transformers."""

    engine = "torch"

    def __init__(
        self,
        home: Home,
        described: Described,
        loaded: Loaded,
        releases: Sequence[Release] = (),
        limits: Limits | None = None,
        chat_template: str | None = None,
    ) -> None:
        subject, self._model = loaded.subject, loaded.subject.model
        steerer = Steerer(subject, self.encoder, described.tokenizer.special_ids.tolist())
        engine = Engine(
            Passes(self._model, steerer, subject.device), limits or Limits(), end_tokens(described, self._model)
        )
        super().__init__(home, loaded.name, described, subject, loaded.dtype, engine, steerer, releases, chat_template)
        engine.run(steerer.check).result()

    def score(self, texts: Sequence[Sequence[int]], firsts: Sequence[int]) -> list[npt.NDArray[np.float32]]:
        """See `schema.generation.Generator.score`."""
        check_texts(texts, firsts, self._vocabulary, self.context)
        found: list[npt.NDArray[np.float32]] = self._engine.run(
            score_texts, self._model, self._device, texts, firsts, self._vocabulary
        ).result()
        return found


def open_generator(
    home: Home,
    model: str,
    *,
    sae_places: Sequence[str] = (),
    device: str = "auto",
    dtype: str = "auto",
    max_rows: int | None = None,
    max_queue: int = 64,
    chat_template: str | None = None,
    progress: Progress | None = None,
) -> TorchGenerator:
    """Loads a model that the home knows, whole.

    Args:
        model: hub id or directory.
        sae_places: where SAEs lie, if not where they were indexed from.
        dtype: `auto` is what the newest run of the model was made in.
        max_rows: rows of the batch; 16 on a CPU and 64 on a GPU unless given.
        max_queue: requests that may wait.
        chat_template: in Jinja, in place of the model's own.

    Raises:
        InputError: the model cannot be loaded or batched, or the home knows no such model.
        WorkFailed: steering does not arrive in it.
    """
    described = Described(model)
    loaded = load_known_model(home, described, device, dtype, progress=progress)
    releases = [open_release(place) for place in sae_places]
    gpu = loaded.subject.device.type == "cuda"
    limits = Limits(
        rows=max_rows or (64 if gpu else 16),
        queue=max_queue,
        columns=_columns(described, loaded),
        chunk=2048 if gpu else 256,
        prompts=16_384 if gpu else 1024,
    )
    return TorchGenerator(home, described, loaded, releases, limits, chat_template)


def end_tokens(described: Described, model: Any) -> frozenset[int]:
    """The tokens that end a text: those that the model's files name, wherever they do."""
    named = [
        getattr(model.generation_config, "eos_token_id", None),
        described.config.get_text_config().eos_token_id,
        described.tokenizer.fast.eos_token_id,
    ]
    return frozenset(
        int(id_) for each in named if each is not None for id_ in (each if isinstance(each, list) else [each])
    )


def _begins_alike(one: Choice, other: Choice) -> bool:
    """Whether the same is done to the same prompt."""
    return one.ops is other.ops and one.when is other.when and one.ids == other.ids


def _saes(choice: Choice) -> set[str]:
    """The SAEs whose features are read or steered."""
    named = {op.sae for op in choice.ops if op.sae is not None}
    watched = features(choice.when.expression) if choice.when is not None and choice.ops else ()
    return named | {parse_feature(feature)[0] for feature in watched}


def _columns(described: Described, loaded: Loaded) -> int:
    """Tokens of keys and values for which there is memory."""
    subject = loaded.subject
    if subject.device.type == "cuda":
        free = torch.cuda.mem_get_info(subject.device)[0] * 3 * MEMORY_SHARE
    else:
        free = psutil.virtual_memory().available * MEMORY_SHARE
    each = token_bytes(described.config.get_text_config(), getattr(torch, loaded.dtype))
    return max(int(free) // max(each, 1), 1)


def _check_sampling(sampling: Sampling, vocabulary: int) -> None:
    if sampling.max_tokens < 1:
        raise InputError(f"max_tokens {sampling.max_tokens}: at least 1")
    numbers = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }
    wrong = next((name for name, value in numbers.items() if not math.isfinite(value)), None)
    if wrong is not None:
        raise InputError(f"{wrong} {numbers[wrong]}: a finite number")
    if sampling.temperature < 0 or not 0 <= sampling.top_p <= 1 or sampling.top_k < 0:
        raise InputError("temperature and top_k are 0 or more, and top_p is between 0 and 1")
    for id_, bias in sampling.logit_bias.items():
        if not 0 <= id_ < vocabulary:
            raise InputError(f"logit_bias: token id {id_:,} is none of the model's, which are 0 to {vocabulary - 1:,}")
        if not math.isfinite(bias):
            raise InputError(f"logit_bias of token {id_:,} is {bias}; give a finite number")
    if "" in sampling.stop:
        raise InputError("a stop string is empty; give at least one character")
