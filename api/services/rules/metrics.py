"""How well predictions agree with labels, with bootstrap intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from api.services.rules.expressions import Bools
from schema.wire.discovery import Estimate, Metrics

N_BOOTSTRAP = 2000

Floats = npt.NDArray[np.float64]
MEASURES = ("f1", "precision", "recall", "accuracy")


def confusion(predicted: Bools, positive: Bools) -> npt.NDArray[np.int64]:
    """(4,) true positives, false positives, false negatives, true negatives."""
    cell = np.where(predicted, np.where(positive, 0, 1), np.where(positive, 2, 3))
    return np.bincount(cell, minlength=4)


def measures(cells: npt.NDArray[Any]) -> dict[str, Floats]:
    """The four measures of confusion cells (..., 4); NaN for a share of nothing."""
    tp, fp, fn, tn = np.moveaxis(cells.astype(np.float64), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "f1": 2 * tp / (2 * tp + fp + fn),
            "precision": tp / (tp + fp),
            "recall": tp / (tp + fn),
            "accuracy": (tp + tn) / (tp + fp + fn + tn),
        }


def f1_of(predicted: Bools, positive: Bools) -> float:
    """F1 of the positive class, 0 where nothing is or is called positive."""
    return float(np.nan_to_num(measures(confusion(predicted, positive))["f1"]))


def measure(predicted: Bools, positive: Bools, seed: int) -> Metrics:
    """Metrics with 95 % percentile intervals over N_BOOTSTRAP resamples of the samples.

    Resampling n samples with replacement draws the four confusion cells from a multinomial distribution, which is what is drawn here.
    """
    cells = confusion(predicted, positive)
    n = int(cells.sum())
    drawn = np.random.default_rng(seed).multinomial(n, cells / n, N_BOOTSTRAP) if n else np.zeros((1, 4), np.int64)
    values, draws = measures(cells), measures(drawn)
    return Metrics(
        n=n,
        n_positive=int(cells[0] + cells[2]),
        true_positive=int(cells[0]),
        false_positive=int(cells[1]),
        false_negative=int(cells[2]),
        true_negative=int(cells[3]),
        **{name: _estimate(values[name], draws[name]) for name in MEASURES},
    )


def always(positive: Bools, seed: int) -> Metrics:
    """Of the trivial predictor that calls every sample positive."""
    return measure(np.ones(len(positive), np.bool_), positive, seed)


def _estimate(value: Floats, draws: Floats) -> Estimate:
    if np.isnan(value):
        return Estimate(value=None, interval=None)
    known = draws[~np.isnan(draws)]
    low, high = np.quantile(known, [0.025, 0.975])
    return Estimate(value=float(value), interval=(float(low), float(high)))


def mean(values: list[float | None]) -> float | None:
    """The mean of those that are known."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
