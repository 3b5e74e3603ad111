"""How well subsets of a dataset keep the order of the models (Qwen-Scope, section 4.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schema import deadline
from schema.errors import InputError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

POINTS = 40
RESAMPLES = 1_000
BATCHES = 20
MOST_SUMS = 4_000_000_000
"""Scores added up in one question, some 20 seconds."""
LEAST_MODELS = 3


def kendall_tau(x: Floats, y: Floats) -> Floats:
    """Kendall's tau-b along the last axis; 0 where either side ties everywhere, which keeps no order.

    Args:
        x, y: (..., n_models), broadcast against each other.
    """
    one, two = np.triu_indices(x.shape[-1], 1)
    a, b = np.sign(x[..., one] - x[..., two]), np.sign(y[..., one] - y[..., two])
    whole = np.sqrt(np.square(a).sum(axis=-1) * np.square(b).sum(axis=-1))
    return np.asarray(np.divide((a * b).sum(axis=-1), whole, out=np.zeros_like(whole), where=whole > 0))


def means(scores: Floats, samples: Ints | None = None) -> Floats:
    """(n_models,) mean scores; rounded, so that equal means tie whatever the order of the sum."""
    chosen = scores if samples is None else scores[:, samples]
    return np.round(chosen.mean(axis=1), 12)


@dataclass(frozen=True)
class Curve:
    """Kendall's tau of random subsets of growing size."""

    sizes: Ints
    taus: Floats
    """(draws, n_sizes); each draw is one permutation, so its subsets are nested."""
    n_samples: int

    @property
    def redundancy(self) -> Floats:
        """(draws,) (1/N) sum over n = 1..N of tau_n, linear between the sizes."""
        each = np.arange(1, self.n_samples + 1)
        return np.array([np.interp(each, self.sizes, taus).mean() for taus in self.taus])


def sizes_up_to(n: int) -> Ints:
    """About POINTS sizes from 1 to n in even steps of log n."""
    return np.unique(np.geomspace(1, n, POINTS).round().astype(np.int64))


def tau_curve(scores: Floats, draws: int, seed: int, sizes: Ints | None = None) -> Curve:
    """Random subsets without replacement.

    Args:
        scores: (n_models, n_samples) without gaps.

    Raises:
        InputError: more to add up than a question may take.
    """
    if draws * scores.size > MOST_SUMS:
        raise InputError(
            f"{draws} draws of {scores.shape[1]:,} samples and {len(scores)} models are too many; "
            f"ask for at most {MOST_SUMS // scores.size} draws"
        )
    n = scores.shape[1]
    sizes = sizes_up_to(n) if sizes is None else sizes
    rng = np.random.default_rng(seed)
    whole, by_sample = means(scores), np.ascontiguousarray(scores.T)
    taus = np.empty((draws, len(sizes)))
    for draw in range(draws):
        deadline.check()
        taken = by_sample[rng.permutation(n)[: sizes[-1]]]
        sums = np.add.reduceat(taken, np.concatenate([[0], sizes[:-1]]), axis=0).cumsum(axis=0)
        taus[draw] = kendall_tau(np.round(sums / sizes[:, None], 12), whole)
    return Curve(sizes, taus, n)


def bootstrap(n: int, seed: int, statistic: Callable[[Ints], Floats]) -> tuple[float, float] | None:
    """95 % percentile interval over resamples of n models; None where the statistic is not defined for enough of them.

    Args:
        statistic: of (some, n) indices, one value each, NaN where it is not defined.
    """
    picks = np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))
    values = np.concatenate([statistic(some) for some in np.array_split(picks, BATCHES)])
    values = values[np.isfinite(values)]
    if len(values) < RESAMPLES // 2:
        return None
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
