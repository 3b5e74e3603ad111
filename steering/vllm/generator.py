"""`schema.generation.Generator` over vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import GenerationConfig

from indexer.live import known_model
from indexer.progress import Progress, Silent
from indexer.saes import Release, open_release
from indexer.subject import Described
from schema.errors import InputError, WorkFailed
from schema.generation import Choice, Op, Sampling
from schema.home import Home
from schema.wire.steering import Where
from steering.engine import Limits
from steering.generator import EngineGenerator, end_tokens
from steering.hooks import Program, Row, Steerer
from steering.queue import Work
from steering.sampler import Draw
from steering.scoring import check_texts
from steering.selftest import N_TOKENS
from steering.vllm.engine import VllmEngine, VllmLine
from steering.vllm.passes import through
from steering.vllm.start import load_vllm, start_vllm
from steering.writing import Writer

SLACK = 0.02
"""Of the residual's length, by which a stream may differ whose parts were joined; rounding to bfloat16 is a quarter of it."""


class VllmGenerator(EngineGenerator):
    """A model that vLLM runs."""

    engine = "vllm"

    def __init__(
        self,
        home: Home,
        name: str,
        described: Described,
        llm: Any,
        dtype: str,
        limits: Limits,
        releases: Sequence[Release] = (),
        chat_template: str | None = None,
    ) -> None:
        from vllm import SamplingParams

        card = described.card
        engine = VllmEngine(
            llm, SamplingParams, card.n_layers, card.d_model, limits, end_tokens(described, _Ends(described))
        )
        special = described.tokenizer.special_ids.tolist()
        steerer = Steerer(engine, self.encoder, special, through=through, packed=True)
        self._longest = int(llm.model_config.max_model_len) - 1
        self._runs = engine
        super().__init__(home, name, described, engine, dtype, engine, steerer, releases, chat_template)
        engine.start(steerer)
        try:
            engine.run(self._check_steering).result()
            engine.run(engine.warm).result()
        except BaseException:
            engine.close(0)
            raise

    @property
    def context(self) -> int | None:
        """See `schema.generation.Generator.context`. What memory lasts for, where that is less than the model's."""
        return min(self._longest, self._described.card.context or self._longest)

    def score(self, texts: Sequence[Sequence[int]], firsts: Sequence[int]) -> list[npt.NDArray[np.float32]]:
        """See `schema.generation.Generator.score`."""
        check_texts(texts, firsts, self._vocabulary, self.context)
        found: list[Tensor] = self._runs.run(self._runs.score, texts, firsts).result()
        return [scores.cpu().numpy() for scores in found]

    def _line(self, work: Work, choice: Choice, place: int, program: Program | None) -> VllmLine:
        pieces = self._described.tokenizer.pieces
        speller = self._spelling.speller(list(choice.ids))
        writer = Writer(place, speller, choice.sampling.stop, lambda id_: pieces([id_])[0])
        draw = Draw(Sampling(choice.sampling.max_tokens), self._vocabulary, torch.device("cpu"))  # vLLM draws
        return VllmLine(work, choice, program, draw, writer, place)

    def _check(self, choice: Choice) -> None:
        super()._check(choice)
        if choice.ops and choice.kl == "every":
            raise InputError(
                "the divergence at every token (kl 'every') needs --engine torch; here it is measured at the first, or not at all"
            )

    def _check_steering(self) -> None:
        """The proof that steering works on this model, in this vLLM; on the engine's thread.

        Raises:
            WorkFailed: it does not.
        """
        self._steerer.check(self._streams)
        ids = tuple(range(self._vocabulary // 2, self._vocabulary // 2 + N_TOKENS))
        direction = np.ones(self._described.card.d_model, np.float32)
        ops = tuple(
            Op(0, "self-test", layer, "add", 1e-30, "residual_norm", direction, where=Where(skip_special=False))
            for layer in range(self._described.card.n_layers)
        )
        joined = Row(self._steerer.program(Choice(ids, Sampling(1), ops)), ids, 0, N_TOKENS)
        check_joined(self._streams([joined, Row(None, ids, 0, N_TOKENS)]))

    def _streams(self, rows: Sequence[Row]) -> dict[int, Tensor]:
        found = self._runs.streams(rows, range(self._described.card.n_layers))
        return {layer: stream.float() for layer, stream in found.items()}


def check_joined(streams: dict[int, Tensor]) -> None:
    """Whether blocks read nothing but the sum of what the one before returns: of two rows, the first had its parts joined after each.

    Raises:
        WorkFailed: they do, so that what was steered is not the residual stream.
    """
    for layer, (joined, apart) in streams.items():
        missed = ((joined - apart).norm(dim=1) / apart.norm(dim=1)).max()
        if not missed < SLACK:
            raise WorkFailed(
                f"what reaches block {layer} is not the sum of what the block before it returns ({float(missed):.1%} beside it), "
                "so that steering it would be something else; use --engine torch"
            )


class _Ends:
    """The part of a model of transformers that names tokens that end a text."""

    def __init__(self, described: Described) -> None:
        try:
            self.generation_config = GenerationConfig.from_pretrained(described.folder, local_files_only=True)
        except OSError:  # not every model has one
            self.generation_config = None


def open_vllm_generator(
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
) -> VllmGenerator:
    """Loads a model that the home knows into vLLM. For arguments see `steering.generator.open_generator`.

    Raises:
        InputError: vLLM is missing or does not have the model, or the home knows no such model.
        WorkFailed: steering does not arrive in it.
    """
    kind = load_vllm()
    if device not in ("auto", kind):
        raise InputError(f"--device {device!r}: this vLLM runs on {kind}; choose among GPUs with CUDA_VISIBLE_DEVICES")
    described = Described(model)
    on = torch.device(kind)
    name, precision = known_model(home, described, on, dtype)
    shown = str(precision).removeprefix("torch.")
    (progress or Silent()).say(f"loading {name} into vLLM ({shown}, {kind})")
    # columns: vLLM finds the memory itself
    limits = Limits(rows=max_rows or (64 if kind == "cuda" else 16), queue=max_queue, columns=1 << 40)
    releases = [open_release(place) for place in sae_places]
    llm = start_vllm(described, on, precision, limits)
    return VllmGenerator(home, name, described, llm, shown, limits, releases, chat_template)
