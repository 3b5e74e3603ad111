"""A slow and plain generator for tests: one text at a time, the whole text read anew for each token, vectors added by a hook."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from indexer.live import open_live
from schema.errors import WorkFailed
from schema.generation import Choice, Ended, Event, Op, Piece, Stats
from schema.home import Home
from schema.wire.steering import SteeringApplied


class Nothing:
    def cancel(self) -> None: ...


class PlainGenerator:
    """Adds along directions and nothing else. `fails_at` lets it break down after so many texts."""

    engine = "plain"
    context = 256

    def __init__(self, home: Home, folder: Path, fails_at: int | None = None) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._live = open_live(home, str(folder))
        self.name, self.tokenizer_sha256 = self._live.name, self._live.tokenizer_sha256
        self._model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self.fails_at, self.n_texts = fails_at, 0
        self.told: list[Choice] = []

    def read(self, texts: Sequence[Any], saes: Sequence[str], *, mask: str, max_tokens: int) -> Any:
        return self._live.read(texts, saes, mask=mask, max_tokens=max_tokens)

    def tokenize(self, prompt: str | Sequence[int]) -> list[int]:
        return list(self._tokenizer(prompt)["input_ids"]) if isinstance(prompt, str) else list(prompt)

    def chat(self, messages: Sequence[Any], **options: Any) -> list[int]:
        return self.tokenize("".join(message["content"] for message in messages))

    def submit(self, choices: Sequence[Choice], deliver: Callable[[Event], None]) -> Nothing:
        for place, choice in enumerate(choices):
            if self.fails_at is not None and self.n_texts >= self.fails_at:
                raise WorkFailed("the engine broke down")
            self.n_texts += 1
            self.told.append(choice)
            ids = self._write(choice)
            deliver(Piece(place, self._tokenizer.decode(ids), tuple(ids)))
            none = SteeringApplied(
                ops=[], condition_tokens=None, kl_first=None, kl_mean=None, engine="plain", version="1"
            )
            deliver(Ended(place, "stop" if ids[-1:] == [1] else "length", len(ids), none if choice.ops else None))
        return Nothing()

    def score(self, texts: Sequence[Sequence[int]], firsts: Sequence[int]) -> list[Any]:
        return [self._logprobs(text, first) for text, first in zip(texts, firsts, strict=True)]

    def stats(self) -> Stats:
        return Stats(generated=0, read=0, rows=1, at_work=0, waiting=0, dropped=0)

    def fault(self) -> None:
        return None

    def close(self, seconds: float = 5.0) -> None: ...

    @torch.inference_mode()
    def _write(self, choice: Choice) -> list[int]:
        hooks = [self._model.model.layers[op.layer].register_forward_hook(adding(op)) for op in choice.ops]
        draw, made = torch.Generator().manual_seed(choice.sampling.seed), list[int]()
        try:
            while len(made) < choice.sampling.max_tokens and made[-1:] != [1]:
                logits = self._model(input_ids=torch.tensor([[*choice.ids, *made]])).logits[0, -1]
                if choice.sampling.temperature:
                    shares = torch.softmax(logits / choice.sampling.temperature, dim=-1)
                    made.append(int(torch.multinomial(shares, 1, generator=draw)))
                else:
                    made.append(int(logits.argmax()))
        finally:
            for hook in hooks:
                hook.remove()
        return made

    @torch.inference_mode()
    def _logprobs(self, text: Sequence[int], first: int) -> Any:
        logits = self._model(input_ids=torch.tensor([list(text)])).logits[0]
        found = torch.log_softmax(logits, dim=-1)[torch.arange(len(text) - 1), torch.tensor(list(text[1:]))]
        return found[first - 1 :].numpy().astype(np.float32)


def adding(op: Op) -> Callable[[Any, Any, Any], Any]:
    vector = torch.tensor(op.vector)

    def hook(_block: Any, _inputs: Any, output: Any) -> Any:
        size: Any = op.strength
        if op.unit == "residual_norm":
            size = op.strength * output.norm(dim=-1, keepdim=True) / vector.norm()
        elif op.unit == "unit":
            size = op.strength / vector.norm()
        elif op.unit == "feature_max":
            assert op.largest is not None
            size = op.strength * op.largest
        return output + size * vector

    return hook
