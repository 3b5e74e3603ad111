"""In how many samples of each group every feature fires, in one pass over a pair's forward rows."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from api.services import firing
from api.services.library import Library
from schema.lookup import Source
from schema.records import Pool

Counts = npt.NDArray[np.int32]


def count_groups(
    library: Library, source: Source, d_sae: int, pool: Pool, groups: npt.NDArray[Any], n_groups: int
) -> Counts:
    """(n_ways, n_groups, d_sae) samples of each group that fire each feature.

    Args:
        groups: (n_ways, n_samples) each sample's group, in several ways of grouping; below 0 for none.
    """
    key = ("rule counts", source.pair, pool, n_groups, hashlib.sha256(groups.tobytes()).hexdigest())
    return library.remembered(key, lambda: _count(library, source, d_sae, pool, groups, n_groups))


def _count(library: Library, source: Source, d_sae: int, pool: Pool, groups: npt.NDArray[Any], n_groups: int) -> Counts:
    counts = np.zeros((len(groups), n_groups * d_sae), np.int32)
    wanted = np.flatnonzero((groups >= 0).any(axis=0))
    for block in firing.scan(library.store, source.pair, pool, wanted if len(wanted) < source.n_samples else None):
        lengths = np.diff(block.offsets)
        for way, group in enumerate(groups):
            own = np.repeat(group[block.ordinals].astype(np.int64), lengths)
            kept = own >= 0
            cells = own[kept] * d_sae + block.features[kept]
            counts[way] += np.bincount(cells, minlength=n_groups * d_sae).astype(np.int32)
    return counts.reshape(len(groups), n_groups, d_sae)


def largest(difference: npt.NDArray[np.float64], n: int) -> npt.NDArray[np.int64]:
    """Indices of the n largest differences above 0, falling; ties to the lower index."""
    n = min(n, len(difference))
    bound = max(float(np.partition(difference, -n)[-n]), np.finfo(np.float64).tiny) if n else np.inf
    able = np.flatnonzero(difference >= bound)
    return able[np.lexsort((able, -difference[able]))][:n]
