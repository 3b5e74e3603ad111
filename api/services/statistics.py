"""The mathematics of the answers, vectorised over features. Sources: docs/explanation/measures.md."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer[Any]]

Reals = npt.NDArray[Any]
"""Whole or not: a standardised rate stands for a number of samples that need not be whole."""

Z_95 = 1.959963984540054


def rank_data(values: Reals) -> Floats:
    """Ranks from 1, equal values sharing the middle of theirs: `scipy.stats.rankdata`, whose module takes half a second to import."""
    _, place, n = np.unique(values, return_inverse=True, return_counts=True)
    middles: Floats = np.cumsum(n) - (n - 1) / 2
    return middles[place]


def inclusion(fires: Ints, n_samples: int, n: int, at_least: int = 1) -> Floats:
    """P(a random subset of n samples fires a feature at least so often), without replacement.

    1 - C(N - m, n) / C(N, n) for once; in general the upper tail of the hypergeometric distribution.

    Args:
        fires: (d_sae,) m, samples of all N that fire the feature.
    """
    values = np.flatnonzero(np.bincount(fires))
    if at_least == 1:
        above = 1.0 - np.exp(_log_hypergeometric(np.zeros(len(values), np.int64), values, n_samples, n))
    else:
        from scipy.stats import hypergeom  # slow to import, and seldom asked for

        above = hypergeom.sf(min(at_least, n_samples + 1) - 1, n_samples, values, n)
    by_count = np.zeros(values[-1] + 1 if len(values) else 1)
    by_count[values] = np.clip(above, 0.0, 1.0)
    return by_count[fires]


def _log_hypergeometric(hits: Ints, marked: Ints, total: int, drawn: int) -> Floats:
    """log P(hits marked ones among the drawn); -inf where it cannot be."""
    possible = (hits <= marked) & (hits <= drawn) & (drawn - hits <= total - marked)
    safe = np.where(possible, hits, np.clip(hits, np.maximum(0, drawn - (total - marked)), np.minimum(marked, drawn)))
    log = (
        _log_choose(marked, safe)
        + _log_choose(total - marked, drawn - safe)
        - _log_choose(np.array(total), np.array(drawn))
    )
    return np.where(possible, log, -np.inf)


def _log_choose(n: Ints, k: Ints) -> Floats:
    return np.asarray(gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(n - k + 1.0))


def redundancy(fires: Ints, n_samples: int) -> float | None:
    """(N + 1) / |F|^2 * sum over f of m / (m + 1), which equals (sum over n of c_n) / |F|; None for an empty footprint."""
    m = fires[fires > 0].astype(np.float64)
    if not len(m):
        return None
    return float((n_samples + 1) / len(m) ** 2 * np.sum(m / (m + 1)))


def coverage_curve(fires: Ints, n_samples: int, points: int = 24) -> list[tuple[int, float]]:
    """(n, c_n) at log-spaced n up to N: the share of the footprint that n random samples cover, expected."""
    footprint = fires[fires > 0]
    if not len(footprint):
        return []
    grid = np.unique(np.geomspace(1, n_samples, points).round().astype(int))
    return [(int(n), float(inclusion(footprint, n_samples, int(n)).mean())) for n in grid]


def fisher_exact(a: Ints, n_a: int, b: Ints, n_b: int) -> Floats:
    """Two-sided p-values of Fisher's exact test for a of n_a against b of n_b, as `scipy.stats.fisher_exact` defines them.

    Both tails are summed term by term from where they begin; the far one begins where the probability falls to the observed one's.
    """
    tables, where = np.unique(np.stack([a, b], axis=1), axis=0, return_inverse=True)
    hits, marked = tables[:, 0], tables.sum(axis=1)
    total = n_a + n_b
    low, high = np.maximum(0, marked - n_b), np.minimum(marked, n_a)
    mode = np.clip((marked + 1) * (n_a + 1) // (total + 2), low, high)

    def log_p(x: Ints) -> Floats:
        return _log_hypergeometric(x, marked, total, n_a)

    observed = log_p(hits)
    bound = observed + 1e-7  # probabilities this close count as equal, as in scipy and R
    lower = np.where(hits >= mode, _last_below(log_p, low - 1, mode, bound), hits)
    upper = np.where(hits >= mode, hits, _first_above(log_p, mode, high + 1, bound))
    p = _tail(log_p, lower, low, marked, n_a, n_b, -1) + _tail(log_p, upper, high, marked, n_a, n_b, +1)
    p[observed >= log_p(mode) - 1e-7] = 1.0
    return np.minimum(p, 1.0)[where.reshape(-1)]


def _last_below(log_p: Any, low: Ints, mode: Ints, bound: Floats) -> Ints:
    """The largest x in [low, mode) with log p(x) <= bound, taking p(low) as 0; log p rises up to the mode."""
    below, above = low.copy(), mode.copy()
    while np.any(open_ := above - below > 1):
        middle = (below + above) // 2
        small = log_p(middle) <= bound
        below, above = np.where(open_ & small, middle, below), np.where(open_ & ~small, middle, above)
    return below


def _first_above(log_p: Any, mode: Ints, high: Ints, bound: Floats) -> Ints:
    """The smallest x in (mode, high] with log p(x) <= bound, taking p(high) as 0."""
    below, above = mode.copy(), high.copy()
    while np.any(open_ := above - below > 1):
        middle = (below + above) // 2
        small = log_p(middle) <= bound
        above, below = np.where(open_ & small, middle, above), np.where(open_ & ~small, middle, below)
    return above


def _tail(log_p: Any, begin: Ints, end: Ints, marked: Ints, n_a: int, n_b: int, step: int) -> Floats:
    """Sum of p(x) from `begin` outwards to `end`, by the ratio of neighbours, until the terms do not count any more."""
    inside = (begin <= end) if step > 0 else (begin >= end)
    total = np.where(inside, np.exp(log_p(begin)), 0.0)
    active = np.flatnonzero(inside & (begin != end) & (total > 0))
    term, x, m = total[active], begin[active].astype(np.float64), marked[active].astype(np.float64)
    while len(active):
        if step > 0:
            term = term * (n_a - x) * (m - x) / ((x + 1) * (n_b - m + x + 1))
        else:
            term = term * x * (n_b - m + x) / ((n_a - x + 1) * (m - x + 1))
        x = x + step
        total[active] += term
        goes_on = (term > total[active] * 1e-17) & (x != end[active])
        active, term, x, m = active[goes_on], term[goes_on], x[goes_on], m[goes_on]
    return total


def benjamini_hochberg(p: Floats) -> Floats:
    """q-values: the smallest false discovery rate at which each would be called."""
    if not len(p):
        return p
    order = np.argsort(p)
    ranked = p[order] * len(p) / np.arange(1, len(p) + 1)
    q = np.empty(len(p))
    q[order] = np.minimum(np.minimum.accumulate(ranked[::-1])[::-1], 1.0)
    return q


def wilson(hits: Reals, n: float | Reals) -> tuple[Floats, Floats]:
    """95 % score interval of a rate."""
    rate = hits / n
    centre = (rate + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
    half = Z_95 / (1 + Z_95**2 / n) * np.sqrt(rate * (1 - rate) / n + Z_95**2 / (4 * n * n))
    return np.where(hits > 0, np.maximum(centre - half, 0.0), 0.0), np.where(
        hits < n, np.minimum(centre + half, 1.0), 1.0
    )


def rate_difference_interval(a: Reals, n_a: float | Reals, b: Reals, n_b: float | Reals) -> tuple[Floats, Floats]:
    """95 % interval of a/n_a - b/n_b, Newcombe 1998, method 10."""
    rate_a, rate_b = a / n_a, b / n_b
    (low_a, high_a), (low_b, high_b) = wilson(a, n_a), wilson(b, n_b)
    difference = rate_a - rate_b
    return (
        difference - np.hypot(rate_a - low_a, high_b - rate_b),
        difference + np.hypot(high_a - rate_a, rate_b - low_b),
    )


def lift(a: Ints, n_a: int, b: Ints, n_b: int) -> tuple[Floats, Floats, Floats]:
    """The rate of a over that of b and its 95 % interval, half a sample added to each of the four cells, so always finite.

    The interval is on the logarithm: variance 1/(a + 1/2) - 1/(n_a + 1) + 1/(b + 1/2) - 1/(n_b + 1).
    """
    ratio = (a + 0.5) / (n_a + 1) / ((b + 0.5) / (n_b + 1))
    spread = Z_95 * np.sqrt(1 / (a + 0.5) - 1 / (n_a + 1) + 1 / (b + 0.5) - 1 / (n_b + 1))
    return ratio, ratio * np.exp(-spread), ratio * np.exp(spread)
