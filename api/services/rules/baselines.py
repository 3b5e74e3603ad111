"""What trained heads reach on the same features: a logistic probe and the difference of class means (scikit-learn)."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, issparse, vstack

from api.services import firing
from api.services.library import Library
from api.services.rules.counting import largest
from api.services.rules.expressions import Bools
from api.services.rules.metrics import measure
from api.services.rules.split import Split
from schema import deadline
from schema.errors import InputError
from schema.lookup import Source
from schema.packing import value_of_code
from schema.records import Pool
from schema.wire.discovery import Baseline, BaselineResult

MOST_FEATURES = 4096
"""Baselines over a whole layer read the features whose rates differ most, so that they fit in memory."""
MOST_SAMPLES = 20_000
"""Baselines over a whole layer learn from so many samples and are measured on so many."""


@contextmanager
def trained_heads(names: Sequence[Baseline]) -> Iterator[None]:
    """Where heads are trained: on one thread, because on so few numbers several wait for each other.

    Raises:
        InputError: heads are asked for and scikit-learn is missing.
    """
    if not names:
        yield
        return
    if importlib.util.find_spec("sklearn") is None:
        raise InputError(
            "baselines need scikit-learn; install it with: pip install 'scopebase[probe]', or ask without them (baselines: [])"
        )
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield


def baselines_over(
    X: Any, split: Split, names: Sequence[Baseline], over: str, seed: int, rows: npt.NDArray[np.int64] | None = None
) -> list[BaselineResult]:
    """Learnt on the discovery part, measured on the held-out part.

    Args:
        X: (n_rows, n_features) pooled activations, dense or sparse.
        rows: the samples that the rows of X are; all of the dataset unless given.
    """
    here = np.arange(len(split.state)) if rows is None else rows
    learn, test, positive = split.discovery[here], split.held_out[here], split.positive[here]
    results = []
    for name in names:
        deadline.check()
        metrics = measure(_predicted(name, X[learn], positive[learn], X[test]), positive[test], seed)
        results.append(BaselineResult(name=name, over=over, n_features=X.shape[1], metrics=metrics))  # type: ignore[arg-type]
    return results


def _predicted(name: Baseline, X: Any, positive: Bools, test: Any) -> Bools:
    """What a head learnt on X says of the test rows. Each feature is scaled by its largest activation, which keeps 0 at 0."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import MaxAbsScaler

    scaler = MaxAbsScaler().fit(X)
    X, test = scaler.transform(X), scaler.transform(test)
    if name == "difference_of_means":
        return nearer_mean(X, positive, test)
    solver = "lbfgs" if issparse(X) else "newton-cholesky"
    return np.asarray(LogisticRegression(max_iter=1000, solver=solver).fit(X, positive).predict(test), np.bool_)


def nearer_mean(X: Any, positive: Bools, test: Any) -> Bools:
    """True where a row lies on the positive side of the plane halfway between the class means."""
    yes, no = (np.asarray(X[own].mean(axis=0)).ravel() for own in (positive, ~positive))
    return np.asarray(test @ (yes - no) > (yes + no) @ (yes - no) / 2)


def whole_layer(
    library: Library, source: Source, split: Split, difference: npt.NDArray[np.float64], pool: Pool
) -> tuple[Any, npt.NDArray[np.int64]]:
    """(X, rows): pooled activations of the features whose rates differ most, (n_rows, n_features) in sparse rows."""
    features = np.sort(largest(np.abs(difference), MOST_FEATURES))
    column = np.full(len(difference), -1, np.int64)
    column[features] = np.arange(len(features))
    wanted = np.sort(np.concatenate([_some(np.flatnonzero(part), split) for part in (split.discovery, split.held_out)]))
    parts, rows = [], []
    for block in firing.scan(library.store, source.pair, pool, wanted):
        at = column[block.features]
        row = np.repeat(np.arange(len(block.ordinals)), np.diff(block.offsets))[at >= 0]
        data = value_of_code(block.codes[at >= 0])
        parts.append(csr_matrix((data, (row, at[at >= 0])), shape=(len(block.ordinals), len(features))))
        rows.append(block.ordinals)
    return vstack(parts, format="csr"), np.concatenate(rows)


def _some(ordinals: npt.NDArray[np.int64], split: Split) -> npt.NDArray[np.int64]:
    """All of them, or MOST_SAMPLES drawn with the split's seed."""
    if len(ordinals) <= MOST_SAMPLES:
        return ordinals
    return np.random.default_rng(split.seed).choice(ordinals, MOST_SAMPLES, replace=False)
