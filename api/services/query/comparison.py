"""Two columns compared, feature by feature: lift, rate difference, tests, and the same within samples of like length."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from api.services.columns import Column
from api.services.library import Library
from api.services.query.length import Controlled, control, stratify
from api.services.statistics import benjamini_hochberg, fisher_exact, lift, rate_difference_interval

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Compared:
    """A against B; arrays are d_sae long. Features that fire in neither have p and q of 1."""

    difference: Floats
    low: Floats
    high: Floats
    lift: Floats
    lift_low: Floats
    lift_high: Floats
    p: Floats
    q: Floats
    tested: npt.NDArray[np.bool_]
    """Fires in A or B: the family of the q-values."""


def compare(library: Library, a: Column, b: Column) -> Compared:
    """Tests every feature that fires in either."""
    return library.remembered(("compare", a.key, b.key), lambda: _compare(a, b))


def _compare(a: Column, b: Column) -> Compared:
    x, y, n_a, n_b = a.fires, b.fires, a.n_samples, b.n_samples
    tested = x + y > 0
    p = np.ones(len(x))
    p[tested] = fisher_exact(x[tested], n_a, y[tested], n_b)
    low, high = rate_difference_interval(x, n_a, y, n_b)
    ratio, ratio_low, ratio_high = lift(x, n_a, y, n_b)
    return Compared(
        x / n_a - y / n_b, low, high, ratio, ratio_low, ratio_high, p, false_discovery_rate(p, tested), tested
    )


def compare_alike(library: Library, a: Column, b: Column) -> Controlled | None:
    """The length-controlled comparison; None where no length is common to both."""

    def make() -> list[Controlled]:
        size = len(a.fires)
        found = control(stratify(library, a, size), stratify(library, b, size))
        return [] if found is None else [found]

    return next(iter(library.remembered(("compare alike", a.key, b.key), make)), None)


def false_discovery_rate(p: Floats, tested: npt.NDArray[np.bool_]) -> Floats:
    """q-values within a family; 1 outside of it."""
    q = np.ones(len(p))
    q[tested] = benjamini_hochberg(p[tested])
    return q
