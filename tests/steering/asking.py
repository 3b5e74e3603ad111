"""Generators over models of tests, and callers that wait for them."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from indexer.encoder import Encoder, make_encoder
from indexer.live import Loaded
from indexer.saes import Sae
from indexer.subject import Described
from schema.generation import Choice, Ended, Event, Failed, Op, Piece, Sampling
from schema.wire.steering import Mode, Unit, Where
from steering.engine import Limits
from steering.generator import TorchGenerator
from tests.making import sae_tensors

EVERYWHERE = Where()


class Heard:
    """What came of one request."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ended = threading.Event()
        self.changed = threading.Condition()
        self._open = 0

    def expect(self, choices: int) -> Heard:
        self._open = choices
        return self

    def __call__(self, event: Event) -> None:
        with self.changed:
            self.events.append(event)
            self._open -= isinstance(event, Ended)
            if isinstance(event, Failed) or self._open == 0:
                self.ended.set()
            self.changed.notify_all()

    def wait(self, seconds: float = 30) -> Heard:
        assert self.ended.wait(seconds), f"no end after {len(self.events)} events"
        return self

    def wait_for_pieces(self, n: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.pieces(0)) >= n, 30)

    def pieces(self, choice: int) -> list[Piece]:
        return [event for event in self.events if isinstance(event, Piece) and event.choice == choice]

    def ids(self, choice: int = 0) -> list[int]:
        return [id_ for piece in self.pieces(choice) for id_ in piece.ids]

    def text(self, choice: int = 0) -> str:
        return "".join(piece.text for piece in self.pieces(choice))

    def end(self, choice: int = 0) -> Ended:
        return next(event for event in self.events if isinstance(event, Ended) and event.choice == choice)

    @property
    def failure(self) -> Exception | None:
        return next((event.error for event in self.events if isinstance(event, Failed)), None)


class Unlisted(TorchGenerator):
    """A generator over a model and SAEs that no home knows."""

    encoders: dict[str, Encoder]
    saes: Sequence[Sae]

    def encoder(self, name: str) -> Encoder:
        return self.encoders[name]


def load(folder: Path, limits: Limits | None = None, saes: Sequence[Sae] = ()) -> Unlisted:
    """A generator over them."""
    described = Described(str(folder))
    subject = described.load(0, torch.device("cpu"), torch.float32, whole=True)
    home: Any = None
    made = Unlisted(home, described, Loaded(described.card.name, subject, "float32"), limits=limits)
    made.saes = saes
    made.encoders = {name_of(sae): make_encoder(sae, subject.device) for sae in saes}
    return made


def name_of(sae: Sae) -> str:
    return f"tiny/{sae.layer}-random"


def random_sae(layer: int, d_model: int, d_sae: int = 256, k: int = 16) -> Sae:
    """A top-k SAE, half of whose features fire at some tokens or other."""
    return Sae(layer=layer, activation="topk", k=k, **sae_tensors(layer, d_model, d_sae))


def steer(
    sae: Sae,
    feature: int,
    mode: Mode,
    strength: float,
    unit: Unit = "absolute",
    place: int = 0,
    where: Where = EVERYWHERE,
) -> Op:
    """One operation with a feature."""
    return Op(
        place=place,
        target=f"{name_of(sae)}/{feature}",
        layer=sae.layer,
        mode=mode,
        strength=strength,
        unit=unit,
        vector=sae.W_dec[:, feature].float().numpy(),
        sae=name_of(sae),
        feature=feature,
        largest=4.0,
        where=where,
    )


def ask(generator: TorchGenerator, *choices: Choice) -> Heard:
    """One request, not waited for."""
    heard = Heard().expect(len(choices))
    generator.submit(choices, heard)
    return heard


def prompts(n: int, seed: int = 0, lengths: Sequence[int] = (1, 3, 7, 12, 20, 33)) -> list[tuple[int, ...]]:
    """Random prompts of the 400 tokens that models of tests have."""
    rng = random.Random(seed)
    return [tuple(rng.randrange(2, 400) for _ in range(rng.choice(lengths))) for _ in range(n)]


def greedy(max_tokens: int, **changes: Any) -> Sampling:
    return Sampling(**{"max_tokens": max_tokens, "temperature": 0.0, "ignore_end": True, **changes})
