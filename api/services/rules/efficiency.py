"""The data-efficiency curve: the same discovery with smaller parts of its data, measured on the same held-out part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from api.services.library import Library
from api.services.rules.counting import count_groups, largest
from api.services.rules.expressions import Bools
from api.services.rules.ground import Ground
from api.services.rules.holding import matrix
from api.services.rules.metrics import f1_of
from api.services.rules.split import DISCOVERY_NEGATIVE, DISCOVERY_POSITIVE, Split, ranks
from schema import deadline
from schema.wire.discovery import DiscoverBody, EfficiencyPoint

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Draws:
    """Nested parts of the discovery data: share i of draw j is what has level <= i."""

    levels: npt.NDArray[np.int16]
    """(n_draws, n_samples) the smallest share that holds each sample, -1 outside the discovery part."""
    sizes: Ints
    """(n_shares, 2) negative and positive samples of each share."""


@dataclass(frozen=True)
class Part:
    """One draw's best features of every layer."""

    features: dict[str, Ints]
    top1: dict[str, float]


def efficiency_curve(library: Library, ground: Ground, split: Split, body: DiscoverBody) -> list[EfficiencyPoint]:
    """Held-out F1 with each share of the discovery part, the largest share first."""
    assert body.efficiency is not None
    shares = sorted(set(body.efficiency.shares))
    draws = draw(library, ground, split, shares, body.efficiency.n_seeds)
    parts = _parts(library, ground, split, draws, body)
    scores = _scores(library, ground, split, draws, parts, body)
    full = scores[-1, :, 0].mean() if shares[-1] == 1.0 else None
    points = []
    for i, share in reversed(list(enumerate(shares))):
        f1 = scores[i, :, 0]
        points.append(
            EfficiencyPoint(
                share=share,
                n={"positive": int(draws.sizes[i, 1]), "negative": int(draws.sizes[i, 0])},
                f1=float(f1.mean()),
                f1_range=(float(f1.min()), float(f1.max())),
                relative=float(f1.mean() / full) if full else None,
                f1_oracle=float(scores[i, :, 1].mean()),
            )
        )
    return points


def draw(library: Library, ground: Ground, split: Split, shares: Sequence[float], n_draws: int) -> Draws:
    """Of each class the first samples in the order of `<seed>/<draw>`; at least one."""
    levels = np.full((n_draws, len(split.state)), -1, np.int16)
    classes = [np.flatnonzero(split.state == state) for state in (DISCOVERY_NEGATIVE, DISCOVERY_POSITIVE)]
    sizes = np.array([[max(1, round(share * len(own))) for own in classes] for share in shares])
    for number in range(n_draws):
        deadline.check()
        rank = ranks(library, ground.datasets[0], f"{split.seed}/{number}")
        for column, own in enumerate(classes):
            level = np.searchsorted(sizes[:, column], np.arange(len(own)), side="right")
            ordered = own[np.argsort(rank[own])]
            levels[number, ordered] = np.where(level < len(shares), level, -1)
    return Draws(levels, sizes)


def _parts(library: Library, ground: Ground, split: Split, draws: Draws, body: DiscoverBody) -> list[list[Part]]:
    """[share][draw] each layer's best features, from one pass over its rows."""
    n_shares = len(draws.sizes)
    parts = [[Part({}, {}) for _ in draws.levels] for _ in range(n_shares)]
    groups = np.where(draws.levels >= 0, draws.levels * 2 + split.positive, -1)
    for layer in ground.layers:
        counts = count_groups(library, layer.sources[0], layer.sae.d_sae, body.pool, groups, 2 * n_shares)
        for number, own in enumerate(counts.reshape(len(groups), n_shares, 2, -1)):
            for i, (negative, positive) in enumerate(own.cumsum(axis=0)):
                difference = positive / draws.sizes[i, 1] - negative / draws.sizes[i, 0]
                parts[i][number].features[layer.sae.name] = largest(difference, max(body.k))
                parts[i][number].top1[layer.sae.name] = float(difference.max())
    return parts


def _scores(
    library: Library, ground: Ground, split: Split, draws: Draws, parts: list[list[Part]], body: DiscoverBody
) -> npt.NDArray[np.float64]:
    """(n_shares, n_draws, 2) held-out F1 of the rule chosen on the data used, and of the best there is."""
    names = [layer.sae.name for layer in ground.layers]
    every = {name: sorted({int(f) for row in parts for part in row for f in part.features[name]}) for name in names}
    fires = matrix(library, ground, every, body.pool)[0]
    scores = np.zeros((len(parts), len(draws.levels), 2))
    for i, row in enumerate(parts):
        for number, part in enumerate(row):
            deadline.check()
            level = draws.levels[number]
            used = (level >= 0) & (level <= i)
            own = {name: fires[name][np.searchsorted(every[name], part.features[name])] for name in names}
            scores[i, number] = _score(part, own, used, split, body.k)
    return scores


def _score(part: Part, fires: dict[str, Bools], used: Bools, split: Split, sizes: Sequence[int]) -> tuple[float, float]:
    """Layer by top1-diff and k by F1 on the data used; and the best of all on the held-out part."""
    best_layer = max(part.top1, key=lambda name: part.top1[name])
    chosen, oracle = (-1.0, 0.0), 0.0
    for name, own in fires.items():
        for k in sizes:
            predicted = np.logical_or.reduce(own[:k])
            held_out = f1_of(predicted[split.held_out], split.positive[split.held_out])
            oracle = max(oracle, held_out)
            if name == best_layer:
                known = f1_of(predicted[used], split.positive[used])
                chosen = max(chosen, (known, held_out), key=lambda pair: pair[0])
    return chosen[1], oracle
