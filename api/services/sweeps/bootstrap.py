"""Intervals of a sweep: prompts are drawn again with replacement, the same draws for every point, so that differences are paired."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from schema.wire.sweeps import Estimate

DRAWS = 4_000
Floats = npt.NDArray[np.float64]
NONE = Estimate(value=None, low=None, high=None)


class Bootstrap:
    """Draws of n prompts from a seed."""

    def __init__(self, n: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        rows = rng.integers(n, size=(DRAWS, n)) + n * np.arange(DRAWS)[:, None]
        self.weights = np.bincount(rows.ravel(), minlength=DRAWS * n).reshape(DRAWS, n).astype(np.float64)

    def mean(self, values: Floats, level: float = 0.95) -> Estimate:
        """Of one number a prompt, NaN where it has none."""
        has = ~np.isnan(values)
        if not has.any():
            return NONE
        return self._estimate(np.where(has, values, 0.0), has.astype(np.float64), level)

    def perplexity(self, nll: Floats, n_tokens: Floats) -> Estimate:
        """exp of all negative log-likelihood over all tokens.

        Args:
            nll, n_tokens: (n_prompts,) sums over each prompt's texts.
        """
        if not n_tokens.sum():
            return NONE
        found = self._estimate(nll, n_tokens, 0.95)
        return Estimate(value=_exp(found.value), low=_exp(found.low), high=_exp(found.high))

    def perplexity_ratio(self, one: tuple[Floats, Floats], two: tuple[Floats, Floats]) -> Estimate:
        """Of two points over the same prompts, each as for `perplexity`."""
        if not one[1].sum() or not two[1].sum():
            return NONE
        rates = [nll.sum() / n.sum() for nll, n in (one, two)]
        drawn = [_ratio(self.weights @ nll, self.weights @ n) for nll, n in (one, two)]
        low, high = _ends(drawn[0] - drawn[1], 0.95)
        return Estimate(value=_exp(float(rates[0] - rates[1])), low=_exp(low), high=_exp(high))

    def _estimate(self, values: Floats, counts: Floats, level: float) -> Estimate:
        low, high = _ends(_ratio(self.weights @ values, self.weights @ counts), level)
        return Estimate(value=float(values.sum() / counts.sum()), low=low, high=high)


def enough_prompts(level: float) -> int:
    """The fewest prompts that can show an effect: all n on one side has probability 2^-n each way without one."""
    return math.ceil(math.log2(2 / (1 - level)))


def _ratio(values: Floats, counts: Floats) -> Floats:
    return np.divide(values, counts, out=np.full(len(values), np.nan), where=counts > 0)


def _ends(drawn: Floats, level: float) -> tuple[float, float]:
    """Draws that hit no text count for nothing."""
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _exp(value: float | None) -> float | None:
    return None if value is None else math.exp(min(value, 700.0))
