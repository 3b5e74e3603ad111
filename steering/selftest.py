"""The proof at start-up that steering works on this model: a known step after a block arrives, and moves what the next block returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from indexer.subject import Tap
from schema.errors import WorkFailed
from schema.generation import Choice, Op, Sampling
from schema.wire.steering import Where
from steering.plan import Row
from steering.program import Program

N_TOKENS = 8
STEP = 0.5
"""Of the residual's length: far above what any dtype rounds off."""
SLACK = 0.05
"""Of the residual's length, by which a step may miss."""


See = Callable[[Sequence[Row]], Mapping[int, Tensor]]
"""Runs rows of `N_TOKENS` tokens steered: layer -> the stream (n_rows, n_tokens, d_model) after it, float32, as its readers see it."""


class Model(Protocol):
    """What is to be known of it. `indexer.subject.Subject` is one."""

    @property
    def blocks(self) -> nn.ModuleList: ...
    @property
    def d_model(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...
    def read(self, ids: Tensor, taps: Mapping[int, Tap]) -> None: ...


def check(model: Model, program: Callable[[Choice], Program], see: See) -> dict[int, float]:
    """Steers one row after each block, all together beside an unsteered row.

    Returns:
        Layer -> median length of the unsteered residual, position 0 left out.

    Raises:
        WorkFailed: a step did not arrive, or what follows did not notice it.
    """
    n_layers = len(model.blocks)
    ids = tuple(int(id_) for id_ in np.linspace(model.vocabulary // 8, model.vocabulary * 7 // 8, N_TOKENS))
    direction = np.random.default_rng(0).standard_normal(model.d_model).astype(np.float32)
    direction /= np.linalg.norm(direction)
    where = Where(skip_special=False)
    rows = [
        Row(
            program(
                Choice(
                    ids, Sampling(1), (Op(0, "self-test", layer, "add", STEP, "residual_norm", direction, where=where),)
                )
            ),
            ids,
            0,
            N_TOKENS,
        )
        for layer in range(n_layers)
    ]
    seen = see([*rows, Row(None, ids, 0, N_TOKENS)])
    for layer in range(n_layers):
        _check_layer(layer, seen, torch.from_numpy(direction).to(seen[layer].device))
    return {layer: float(stream[-1, 1:].norm(dim=1).median()) for layer, stream in seen.items()}


def streams(model: Model, rows: Sequence[Row]) -> dict[int, Tensor]:
    """What `See` gives, of one pass over the rows' tokens."""
    seen: dict[int, Tensor] = {}

    def keep(layer: int) -> Tap:
        return lambda stream: seen.__setitem__(layer, stream.float())

    model.read(torch.tensor([row.ids for row in rows]), {layer: keep(layer) for layer in range(len(model.blocks))})
    return seen


def _check_layer(layer: int, seen: Mapping[int, Tensor], direction: Tensor) -> None:
    plain, steered = seen[layer][-1], seen[layer][layer]
    size = plain.norm(dim=1, keepdim=True)
    missed = ((steered - plain - STEP * size * direction).norm(dim=1) / size[:, 0]).max()
    if not missed < SLACK:
        raise WorkFailed(
            f"steering after block {layer} does not arrive: it is {float(missed):.1%} of the residual beside where it should be"
        )
    if layer + 1 in seen:
        moved = (seen[layer + 1][layer] - seen[layer + 1][-1]).norm(dim=1) / seen[layer + 1][-1].norm(dim=1)
        if not moved.min() > 0:
            raise WorkFailed(f"steering after block {layer} does not reach block {layer + 1}")
