"""Ranking a layer's features by the difference of their firing rates, and the OR rules made of the first k (paper, section 5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from api.services.library import Library
from api.services.rules.counting import Counts, count_groups, largest
from api.services.rules.expressions import Bools
from api.services.rules.ground import Ground
from api.services.rules.metrics import f1_of
from api.services.rules.split import (
    DISCOVERY_NEGATIVE,
    DISCOVERY_POSITIVE,
    HELD_OUT_NEGATIVE,
    HELD_OUT_POSITIVE,
    Split,
)
from schema.errors import InputError
from schema.records import Pool


@dataclass(frozen=True)
class Ranked:
    """One layer's features, those that fire more often in the positive class first."""

    sae: str
    features: npt.NDArray[np.int64]
    """The first of them, at most as many as were asked for."""
    difference: npt.NDArray[np.float64]
    """(d_sae,) Delta."""
    counts: Counts
    """(4, d_sae) samples of each part and class that fire each feature."""

    @property
    def top1(self) -> float:
        """d_l: the largest difference."""
        return float(self.difference.max())


@dataclass(frozen=True)
class Chosen:
    """An OR rule before it is measured: features, each with its SAE, and what it says of every sample of each dataset."""

    features: list[tuple[str, int]]
    k: int | None
    m: int | None
    discovery_f1: float

    @property
    def saes(self) -> list[str]:
        return [*dict.fromkeys(sae for sae, _ in self.features)]


def rank_layers(library: Library, ground: Ground, place: int, split: Split, pool: Pool, most: int) -> list[Ranked]:
    """Every layer ranked on the discovery part of one dataset.

    Args:
        place: of the dataset in the question.
        most: features kept a layer.
    """
    ranked = []
    for layer in ground.layers:
        counts = count_groups(library, layer.sources[place], layer.sae.d_sae, pool, split.state[None], 4)[0]
        difference = rate_difference(counts, split)
        ranked.append(Ranked(layer.sae.name, largest(difference, most), difference, counts))
    return ranked


def rate_difference(counts: Counts, split: Split, *, held_out: bool = False) -> npt.NDArray[np.float64]:
    """(d_sae,) P(fires | positive) - P(fires | negative) on the discovery part, or on the held-out one."""
    positive = HELD_OUT_POSITIVE if held_out else DISCOVERY_POSITIVE
    negative = HELD_OUT_NEGATIVE if held_out else DISCOVERY_NEGATIVE
    return np.asarray(counts[positive] / split.sizes[positive] - counts[negative] / split.sizes[negative])


def by_top1(ranked: Sequence[Ranked]) -> list[Ranked]:
    """Layers that have a feature to offer, by falling d_l; ties to the one named first."""
    return sorted((each for each in ranked if len(each.features)), key=lambda each: -each.top1)


def best_layer(ranked: Sequence[Ranked], dataset: str, pool: Pool) -> Ranked:
    """l*: the layer with the largest d_l.

    Raises:
        InputError: no feature of any layer fires more often in the positive class.
    """
    offering = by_top1(ranked)
    if not offering:
        raise InputError(
            f"no feature fires in a larger share of the positive samples of {dataset} than of the negative ones (pool {pool}); "
            "try the other pool or another layer"
        )
    return offering[0]


def layer_rules(ranked: Ranked, fires: Bools, positive: Bools, on: Bools, sizes: Sequence[int]) -> Iterator[Chosen]:
    """The OR of a layer's first k features, for each k.

    Args:
        fires: (n_features, n_samples) of the ranked features.
        on: the samples that the rule may be chosen on.
    """
    for k in sizes:
        predicted = np.logical_or.reduce(fires[:k])
        features = [(ranked.sae, int(feature)) for feature in ranked.features[:k]]
        yield Chosen(features, k, None, f1_of(predicted[on], positive[on]))


def multi_layer_rules(
    ranked: Sequence[Ranked], fires: dict[str, Bools], positive: Bools, on: Bools, sizes: Sequence[int]
) -> Iterator[Chosen]:
    """The OR of the best feature of each of the m layers with the largest d_l, for each m that there are layers for."""
    order = by_top1(ranked)
    for m in sizes:
        if m <= len(order):
            predicted = np.logical_or.reduce([fires[each.sae][0] for each in order[:m]])
            features = [(each.sae, int(each.features[0])) for each in order[:m]]
            yield Chosen(features, None, m, f1_of(predicted[on], positive[on]))


def first_best(rules: Sequence[Chosen]) -> Chosen:
    """The rule with the best F1 where it was chosen; ties to the smaller one."""
    return max(rules, key=lambda rule: (rule.discovery_f1, -len(rule.features)))
