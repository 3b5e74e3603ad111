"""Comparing only samples of like length: long texts fire more features, so a rate difference may be one of length alone.

Strata are half-octaves of the number of tokens that count: 1, 2, 3, 4-5, 6-7, 8-11, 12-15, 16-22, ... They do not depend on what is
compared, so a run's counts by stratum are made in one pass and serve every comparison. Source: docs/explanation/measures/queries.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import chdtrc

from api.services import firing
from api.services.columns import Column
from api.services.library import Library
from api.services.statistics import rate_difference_interval
from schema.layout import SAMPLE_BITS, sample_key
from schema.lookup import Source

Floats = npt.NDArray[np.float64]
EDGES = np.unique(np.ceil(2.0 ** (np.arange(64) / 2)).astype(np.int64))
"""Where each band after the first begins; band 0 are samples without a token that counts."""
METHOD = "Mantel-Haenszel over half-octaves of the number of tokens that count"


@dataclass(frozen=True)
class Stratified:
    """A column's counts by band of length."""

    n_samples: npt.NDArray[np.int64]
    """(n_bands,)"""
    fires: npt.NDArray[np.int32]
    """(n_bands, d_sae), the bands that hold samples only; `rows` says where."""
    rows: dict[int, int]


@dataclass(frozen=True)
class Controlled:
    """A against B within samples of like length; arrays are d_sae long."""

    bands: list[tuple[int, int]]
    n_a: int
    n_b: int
    difference: Floats
    low: Floats
    high: Floats
    lift: Floats
    """nan where B's part of the ratio is 0."""
    p: Floats


def stratify(library: Library, column: Column, d_sae: int) -> Stratified:
    """A column's counts by band, made in one pass and kept."""

    def make() -> Stratified:
        band = _bands(library, column.source)
        if column.ordinals is not None:
            outside = np.ones(len(band), bool)
            outside[column.ordinals] = False
            band = np.where(outside, -1, band)
        used = np.unique(band[band >= 0])
        group = np.where(band >= 0, np.searchsorted(used, band), -1)
        fires = firing.count_groups(library.store, column.source.pair, d_sae, column.pool, group, len(used))
        n = np.bincount(band[band >= 0], minlength=len(EDGES) + 1)
        return Stratified(n, fires, {int(b): i for i, b in enumerate(used)})

    return library.remembered(("lengths", *column.key), make)


def _bands(library: Library, source: Source) -> npt.NDArray[np.int64]:
    """(n_samples,) each sample's band."""
    band = np.zeros(source.n_samples, np.int64)
    first, stop = sample_key(source.pair), sample_key(source.pair + 1)
    for batch in library.store.span("forward", first, stop, ["key", "n_tokens"], settled=True):
        ordinals = batch.column("key").to_numpy() & ((1 << SAMPLE_BITS) - 1)
        band[ordinals] = np.searchsorted(EDGES, batch.column("n_tokens").to_numpy(), side="right")
    return band


def control(a: Stratified, b: Stratified) -> Controlled | None:
    """The Mantel-Haenszel rate difference and ratio and the Cochran-Mantel-Haenszel test over the bands that both have.

    The interval is Newcombe's over the standardised rates, each with the number of samples that would give it the same variance at
    equal rates in all bands: n = (sum of w)^2 / sum of w^2 / n_s. With one band it is the plain interval.

    Returns:
        None where no band has samples of both.
    """
    common = [band for band in a.rows if band in b.rows]
    if not common:
        return None
    size = a.fires.shape[1]
    rate_a, rate_b, above, below, excess, variance = (np.zeros(size) for _ in range(6))
    weights, inverse_a, inverse_b = 0.0, 0.0, 0.0
    for band in common:
        x, y = a.fires[a.rows[band]].astype(np.float64), b.fires[b.rows[band]].astype(np.float64)
        n_a, n_b = int(a.n_samples[band]), int(b.n_samples[band])
        n, weight = n_a + n_b, n_a * n_b / (n_a + n_b)
        rate_a += weight * x / n_a
        rate_b += weight * y / n_b
        above += x * n_b / n
        below += y * n_a / n
        excess += x - (x + y) * n_a / n
        variance += (x + y) * (n - x - y) * n_a * n_b / (n * n * (n - 1.0))
        weights, inverse_a, inverse_b = weights + weight, inverse_a + weight**2 / n_a, inverse_b + weight**2 / n_b
    rate_a, rate_b = rate_a / weights, rate_b / weights
    low, high = _interval(rate_a, weights**2 / inverse_a, rate_b, weights**2 / inverse_b)
    tested = np.divide(excess**2, variance, where=variance > 0, out=np.zeros(size))
    return Controlled(
        bands=[(int(EDGES[band - 1]) if band else 0, int(EDGES[band]) - 1) for band in common],
        n_a=int(a.n_samples[common].sum()),
        n_b=int(b.n_samples[common].sum()),
        difference=rate_a - rate_b,
        low=low,
        high=high,
        lift=np.divide(above, below, where=below > 0, out=np.full(size, np.nan)),
        p=np.asarray(chdtrc(1, tested)),
    )


def _interval(rate_a: Floats, n_a: float, rate_b: Floats, n_b: float) -> tuple[Floats, Floats]:
    """Rounding may leave a rate a hair above 1, where the interval is not defined."""
    return rate_difference_interval(np.clip(rate_a, 0, 1) * n_a, n_a, np.clip(rate_b, 0, 1) * n_b, n_b)
