"""Sealing a pair: its profile from the shards' parts, and its postings from the forward rows, one segment at a time.

Memory is bounded by a block of features (about a million postings), not by the run: a segment's rows are read once for each of its
blocks. Everything is derived, so sealing twice gives the same bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schema.layout import PARTS, POSTINGS, PROFILES, feature_key, flat_column, list_column, sample_key
from schema.packing import N_BINS, accumulate, differences
from schema.records import Profile
from schema.store import Store

_CODE_BITS = 9
_SAMPLE_BITS = 31
BLOCK_POSTINGS = 1_000_000
BLOCK_ROWS = 1024
MOST_NARROW = 2**31 - 1
"""Tokens that a histogram of int32 can count."""
LISTS = [field.name for field in PARTS if pa.types.is_list(field.type)]


def merged_profile(store: Store, pair: int, d_sae: int) -> Profile:
    """The sum of the parts of a pair's shards."""
    profile = Profile(d_sae)
    for some in summed(store.span("parts", sample_key(pair), sample_key(pair + 1)), d_sae):
        profile.merge(some)
    return profile


def summed(batches: Iterable[pa.RecordBatch], d_sae: int) -> Iterator[Profile]:
    """The sum of rows of `parts`, mostly as one profile; as several where they count more tokens than int32 can."""
    some = Profile(d_sae, narrow=True)
    for batch in batches:
        for row in range(len(batch)):
            part = batch.slice(row, 1)
            if some.n_tokens + part.column("n_tokens")[0].as_py() > MOST_NARROW:
                yield some
                some = Profile(d_sae, narrow=True)
            _add_part(some, part)
    yield some


def _add_part(profile: Profile, part: pa.RecordBatch) -> None:
    """One row of `parts`."""
    values = {name: flat_column(part.column(name))[0] for name in LISTS}
    profile.n_samples += part.column("n_samples")[0].as_py()
    profile.n_tokens += part.column("n_tokens")[0].as_py()
    fires = np.cumsum(values["features"], dtype=np.int32)
    profile.samples_any[fires] += values["samples_any"]
    profile.samples_last[fires] += values["samples_last"]
    profile.tokens[fires] += values["tokens"]
    profile.sums[fires] += values["sums"]
    profile.maxima[fires] = np.maximum(profile.maxima[fires], values["maxima"])
    bins = np.cumsum(values["bins"], dtype=np.int32)
    np.add.at(profile.histogram.reshape(-1), bins, values["bin_counts"])


def profile_row(pair: int, profile: Profile) -> pa.Table:
    """The row of `profiles`."""
    whole = np.array([0, profile.d_sae])
    arrays: dict[str, npt.NDArray[Any]] = {
        "samples_any": profile.samples_any,
        "samples_last": profile.samples_last,
        "tokens": profile.tokens,
        "sums": profile.sums,
        "maxima": profile.maxima,
    }
    columns = [
        pa.array([sample_key(pair)], pa.int64()),
        pa.array([profile.n_samples], pa.int64()),
        pa.array([profile.n_tokens], pa.int64()),
        *(list_column(PROFILES, name, values, whole) for name, values in arrays.items()),
        list_column(PROFILES, "histogram", profile.histogram.reshape(-1), whole * N_BINS),
    ]
    return pa.Table.from_arrays(columns, schema=PROFILES)


@dataclass(frozen=True)
class Source:
    """The rows of `forward` that one segment of a pair inverts."""

    store: Store
    pair: int
    segment: int
    first: int
    stop: int

    def batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        first, stop = (sample_key(self.pair, ordinal) for ordinal in (self.first, self.stop))
        yield from self.store.span("forward", first, stop, ["key", *columns])


def postings(source: Source, profile: Profile) -> Iterator[pa.RecordBatch]:
    """The rows of `postings` of one segment: every feature has one, those that never fire an empty one."""
    for begin, end in blocks(profile, source.stop - source.first):
        pooled = _inverted(source, ("features", "maxima"), begin, end)
        last = _inverted(source, ("last_features", "last_values"), begin, end)
        for row in range(begin, end, BLOCK_ROWS):
            stop = min(row + BLOCK_ROWS, end)
            columns = [
                pa.array(np.arange(feature_key(source.segment, row), feature_key(source.segment, stop)), pa.int64())
            ]
            columns += pooled.columns(row - begin, stop - begin, ("samples", "maxima"))
            columns += last.columns(row - begin, stop - begin, ("last_samples", "last_values"))
            yield pa.RecordBatch.from_arrays(columns, schema=POSTINGS)


def blocks(profile: Profile, n_samples: int) -> list[tuple[int, int]]:
    """Ranges of features that hold about BLOCK_POSTINGS each among n of the pair's samples, judged by the pair's profile."""
    until = np.cumsum(profile.samples_any + profile.samples_last) * (n_samples / max(1, profile.n_samples))
    cuts = np.searchsorted(until, np.arange(BLOCK_POSTINGS, until[-1], BLOCK_POSTINGS)) + 1
    edges = np.unique([0, *cuts, profile.d_sae]).tolist()
    return list(itertools.pairwise(edges))


@dataclass(frozen=True)
class Inverted:
    """One pool of a block of features, turned from samples to features."""

    keys: npt.NDArray[np.int64]
    """(n,) feature | sample | code, sorted."""
    offsets: npt.NDArray[np.int64]
    """(n_features + 1,) where each of the block's features begins."""

    def columns(self, begin: int, end: int, names: tuple[str, str]) -> list[pa.ListArray]:
        """The samples and codes of the block's features [begin, end) as list columns."""
        rows = self.offsets[begin : end + 1]
        block, rows = self.keys[rows[0] : rows[-1]], rows - rows[0]
        sample = (block >> _CODE_BITS & ((1 << _SAMPLE_BITS) - 1)).astype(np.int32)
        code = block & ((1 << _CODE_BITS) - 1)
        return [
            list_column(POSTINGS, names[0], differences(sample, rows), rows),
            list_column(POSTINGS, names[1], code, rows),
        ]


def _inverted(source: Source, names: tuple[str, str], begin: int, end: int) -> Inverted:
    pieces = [_postings_of(batch, source, *names, begin, end) for batch in source.batches([*names])]
    keys = np.concatenate(pieces) if pieces else np.empty(0, np.int64)
    keys.sort()
    firsts = np.arange(begin, end + 1, dtype=np.int64) << (_SAMPLE_BITS + _CODE_BITS)
    return Inverted(keys, np.searchsorted(keys, firsts))


def _postings_of(
    batch: pa.RecordBatch, source: Source, features: str, codes: str, begin: int, end: int
) -> npt.NDArray[np.int64]:
    """feature | sample | code as one int64 each, of features [begin, end)."""
    differing, offsets = flat_column(batch.column(features))
    feature = accumulate(differing.astype(np.int64), offsets)
    sample = np.repeat(batch.column("key").to_numpy() - sample_key(source.pair, source.first), np.diff(offsets))
    code = flat_column(batch.column(codes))[0].astype(np.int64)
    keys = feature << (_SAMPLE_BITS + _CODE_BITS) | sample << _CODE_BITS | code
    return keys[(feature >= begin) & (feature < end)]
