"""What samples fire, read from the forward table (all features of some samples) or from postings (all samples of some features).

Both stream in blocks of bounded size. Few features: read postings, a fraction of a millisecond each. Every feature of a slice: scan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schema.layout import FEATURE_BITS, SAMPLE_BITS, feature_key, flat_column, sample_key
from schema.packing import accumulate
from schema.records import Pool
from schema.store import Store
from schema.tables import Segment

FEW = 2_000
"""Up to so many samples are looked up by their keys; more are filtered out of a scan."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Block:
    """Some samples and the features that each fires, as rows of a sparse matrix."""

    ordinals: Ints
    """(n,) the samples' places in their dataset."""
    offsets: Ints
    """(n + 1,) where each sample's features begin."""
    features: Ints
    """Ascending within a sample."""
    codes: npt.NDArray[np.int16]
    """Each one's pooled activation, see `schema.packing.value_of_code`."""


@dataclass(frozen=True)
class Posting:
    """One feature and the samples that fire it."""

    ordinals: Ints
    """Ascending."""
    codes: npt.NDArray[np.int16]


def scan(store: Store, pair: int, pool: Pool, ordinals: Ints | None = None) -> Iterator[Block]:
    """Blocks of samples with every feature that they fire, in no particular order.

    Args:
        ordinals: the samples wanted, ascending; all of the pair's unless given.
    """
    names = ("features", "maxima") if pool == "any" else ("last_features", "last_values")
    columns = ["key", *names]
    if ordinals is not None and len(ordinals) <= FEW:
        tables = [store.rows("forward", [sample_key(pair, int(o)) for o in ordinals], columns)] if len(ordinals) else []
    else:
        tables = store.span("forward", sample_key(pair), sample_key(pair + 1), columns, settled=True)
    for table in tables:
        here = table.column("key").to_numpy() & ((1 << SAMPLE_BITS) - 1)
        if ordinals is not None:
            kept = np.flatnonzero(np.isin(here, ordinals, assume_unique=True))
            if len(kept) < len(here):
                table, here = table.take(kept), here[kept]
        differences, offsets = flat_column(table.column(names[0]))
        codes, _ = flat_column(table.column(names[1]))
        yield Block(here, offsets, accumulate(differences.astype(np.int64), offsets), codes)


def count(store: Store, pair: int, d_sae: int, pool: Pool, ordinals: Ints) -> Ints:
    """(d_sae,) in how many of these samples each feature fires."""
    counts = np.zeros(d_sae, np.int64)
    for block in scan(store, pair, pool, ordinals):
        counts += np.bincount(block.features, minlength=d_sae)
    return counts


def count_places(store: Store, places: Mapping[int, Ints], d_sae: int, pool: Pool) -> Ints:
    """(d_sae,) in how many of some samples of several pairs each feature fires.

    Args:
        places: pair -> ordinals.
    """
    column = "features" if pool == "any" else "last_features"
    keys = [sample_key(pair, int(ordinal)) for pair, ordinals in places.items() for ordinal in ordinals]
    counts = np.zeros(d_sae, np.int64)
    for begin in range(0, len(keys), FEW):
        differences, offsets = flat_column(store.rows("forward", keys[begin : begin + FEW], [column]).column(column))
        counts += np.bincount(accumulate(differences.astype(np.int64), offsets), minlength=d_sae)
    return counts


def count_groups(store: Store, pair: int, d_sae: int, pool: Pool, group: Ints, n_groups: int) -> npt.NDArray[np.int32]:
    """(n_groups, d_sae) in how many samples of each group each feature fires, in one pass.

    Args:
        group: (n_samples,) each sample's group; -1 where it is in none.
    """
    counts = np.zeros(n_groups * d_sae, np.int32)
    chosen = np.flatnonzero(group >= 0)
    for block in scan(store, pair, pool, None if len(chosen) == len(group) else chosen):
        of_feature = np.repeat(group[block.ordinals], np.diff(block.offsets))
        np.add.at(counts, of_feature * d_sae + block.features, 1)
    return counts.reshape(n_groups, d_sae)


def postings(store: Store, segments: Sequence[Segment], features: Sequence[int], pool: Pool) -> dict[int, Posting]:
    """For each feature the samples that fire it, over all segments of a pair."""
    by_pair = postings_by_pair(store, segments, features, pool)
    return next(iter(by_pair.values()), {feature: _joined([]) for feature in features})


def postings_by_pair(
    store: Store, segments: Sequence[Segment], features: Sequence[int], pool: Pool
) -> dict[int, dict[int, Posting]]:
    """Pair -> feature -> the samples that fire it, of several pairs of one SAE in one read.

    Args:
        segments: all of each pair's.
    """
    found: dict[int, dict[int, list[Posting]]] = {s.run_sae_id: {feature: [] for feature in features} for s in segments}
    for segment, feature, posting in _read(store, segments, features, pool):
        found[segment.run_sae_id][feature].append(posting)
    return {pair: {f: _joined(parts) for f, parts in by_feature.items()} for pair, by_feature in found.items()}


def _read(
    store: Store, segments: Sequence[Segment], features: Sequence[int], pool: Pool
) -> Iterator[tuple[Segment, int, Posting]]:
    """(segment, feature, samples) of every posting, segments in the order given."""
    names = ("samples", "maxima") if pool == "any" else ("last_samples", "last_values")
    keys = [feature_key(segment.id, feature) for segment in segments for feature in dict.fromkeys(features)]
    rows = store.rows("postings", keys, names)
    by_id = {segment.id: segment for segment in segments}
    (differences, offsets), (codes, _) = (flat_column(rows.column(name)) for name in names)
    for i, key in enumerate(rows.column("key").to_pylist()):
        row, segment = slice(offsets[i], offsets[i + 1]), by_id[key >> FEATURE_BITS]
        ordinals = np.cumsum(differences[row], dtype=np.int64) + segment.first
        yield segment, key & ((1 << FEATURE_BITS) - 1), Posting(ordinals, codes[row])


def _joined(parts: list[Posting]) -> Posting:
    if not parts:
        return Posting(np.empty(0, np.int64), np.empty(0, np.int16))
    return Posting(np.concatenate([p.ordinals for p in parts]), np.concatenate([p.codes for p in parts]))
