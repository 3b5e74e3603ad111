"""How the activations of a batch become rows, and rows become activations again.

Values are float16 throughout: 3 digits, and clamped so that what fires still fires (at least 2^-24) and nothing is infinite.
Where a value only ranks (a sample's maximum), the upper 9 bits of its float16 are kept, its *code*: monotone, at most 3 % off.

On the way in, an activation is one int64 key, sample | feature | position | float16, so that a single sort groups everything.
A row's `detail` is one zstd blob of byte planes: tokens per feature (uint16), positions (uint16, differences inside a feature),
values (float16 bits), each split into its low and high bytes because the high ones repeat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Int16s = npt.NDArray[np.int16]

SMALLEST = 2.0**-24
LARGEST = 65_504.0
VALUE_BITS = 15  # a positive float16 without its sign
POSITION_BITS = 16
FEATURE_BITS = 20
MOST_FEATURES = 1 << FEATURE_BITS
MAX_BATCH_SAMPLES = 1 << (63 - VALUE_BITS - POSITION_BITS - FEATURE_BITS)
_PAIR_SHIFT = VALUE_BITS + POSITION_BITS
_SAMPLE_SHIFT = _PAIR_SHIFT + FEATURE_BITS
CODE_SHIFT = 6
BIN_SHIFT = 9  # half-octave bins of the histogram
N_BINS = 64

VALUE_OF_BITS: npt.NDArray[np.float64] = np.arange(1 << VALUE_BITS, dtype=np.uint16).view(np.float16).astype(np.float64)
"""float64 value of each non-negative float16, by its bits."""

_ZSTD = pa.Codec("zstd", compression_level=1)


def value_of_code(codes: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """The middle of each code's range of values."""
    bits = np.asarray(codes, dtype=np.int64) << CODE_SHIFT | 1 << (CODE_SHIFT - 1)
    return np.minimum(VALUE_OF_BITS[bits], LARGEST).astype(np.float32)


@dataclass(frozen=True)
class Packed:
    """The activations of a batch's samples in one SAE, sorted by sample, feature and position.

    A *run* of activations is one feature in one sample. Offsets have one entry more than there are samples.
    """

    run_offsets: Int64s
    """(n_samples + 1,) where each sample's runs begin."""
    feature: Int32s
    """(n_runs,)"""
    count: Int64s
    """(n_runs,) tokens the feature fires on."""
    maximum: Int16s
    """(n_runs,) float16 bits."""
    total: npt.NDArray[np.float64]
    """(n_runs,) sum of its activations."""
    bits: Int16s
    """(n_activations,) float16 bits."""
    position: Int32s
    """(n_activations,)"""
    last_offsets: Int64s
    last_feature: Int32s
    last_bits: Int16s
    """What fires at each sample's last unmasked token."""

    @property
    def n_samples(self) -> int:
        return len(self.run_offsets) - 1

    @property
    def activation_offsets(self) -> Int64s:
        """(n_samples + 1,) where each sample's activations begin."""
        ends = np.concatenate([[0], np.cumsum(self.count)])
        return ends[self.run_offsets]


def token_part(sample: Int64s, position: Int64s) -> Int64s:
    """The part of a key that a token decides."""
    return sample << _SAMPLE_SHIFT | position << VALUE_BITS


Bits = TypeVar("Bits")
"""Anything that shifts: an array of either library."""


def feature_part(feature: Bits) -> Bits:
    """The part that a feature decides."""
    return feature << _PAIR_SHIFT  # type: ignore[operator, return-value]


def pack(keys: Int64s, last_position: Int64s) -> Packed:
    """Sorts the keys of a batch and finds its runs.

    Args:
        keys: (n_activations,) in any order; sorted in place.
        last_position: (n_samples,) position of each sample's last unmasked token, -1 where there is none.
    """
    n_samples = len(last_position)
    keys.sort()
    run_key = keys >> _PAIR_SHIFT
    start = np.flatnonzero(np.diff(run_key, prepend=-1))
    first = run_key[start]
    sample = first >> FEATURE_BITS
    bits = (keys & ((1 << VALUE_BITS) - 1)).astype(np.int16)
    position = (keys >> VALUE_BITS & ((1 << POSITION_BITS) - 1)).astype(np.int32)
    is_last = np.flatnonzero(position == last_position[keys >> _SAMPLE_SHIFT])
    last_key = run_key[is_last]
    samples = np.arange(n_samples + 1)
    return Packed(
        run_offsets=np.searchsorted(sample, samples),
        feature=(first & ((1 << FEATURE_BITS) - 1)).astype(np.int32),
        count=np.diff(start, append=len(keys)),
        maximum=np.maximum.reduceat(bits, start) if len(start) else bits,
        total=np.add.reduceat(VALUE_OF_BITS[bits], start) if len(start) else np.empty(0),
        bits=bits,
        position=position,
        last_offsets=np.searchsorted(last_key >> FEATURE_BITS, samples),
        last_feature=(last_key & ((1 << FEATURE_BITS) - 1)).astype(np.int32),
        last_bits=bits[is_last],
    )


def differences(values: Int32s, offsets: Int64s) -> Int32s:
    """Ascending values in groups as differences, each group's first absolute."""
    out = np.diff(values, prepend=np.int32(0))
    begins = offsets[:-1][np.diff(offsets) > 0]
    out[begins] = values[begins]
    return out


def accumulate(differences_: Int64s, offsets: Int64s) -> Int64s:
    """The inverse of `differences`."""
    totals = np.cumsum(differences_, dtype=np.int64)
    begins = offsets[:-1]
    before = np.where(begins > 0, totals[np.maximum(begins, 1) - 1], 0) if len(totals) else begins
    return totals - np.repeat(before, np.diff(offsets))


def detail_blobs(packed: Packed) -> list[bytes]:
    """Each sample's token detail as one zstd blob."""
    act = packed.activation_offsets
    run_start = np.concatenate([[0], np.cumsum(packed.count)])
    count = _planes(packed.count)
    position = _planes(differences(packed.position, run_start))
    value = _planes(packed.bits)
    blobs = []
    for sample in range(packed.n_samples):
        runs = slice(packed.run_offsets[sample], packed.run_offsets[sample + 1])
        acts = slice(act[sample], act[sample + 1])
        planes = (count[0, runs], count[1, runs], position[0, acts], position[1, acts], value[0, acts], value[1, acts])
        blobs.append(_ZSTD.compress(np.concatenate(planes), asbytes=True))
    return blobs


def _planes(values: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
    """(2, n) low and high bytes of 16-bit values."""
    return np.ascontiguousarray(values.astype("<u2").view(np.uint8).reshape(-1, 2).T)


@dataclass(frozen=True)
class Detail:
    """Every activation of one sample in one SAE, by feature and then by position."""

    feature: Int64s
    position: Int64s
    value: npt.NDArray[np.float32]


def read_detail(blob: bytes, features: Int64s) -> Detail:
    """Unpacks a row's blob.

    Args:
        blob: the row's `detail`.
        features: (n_runs,) its `features`, absolute.
    """
    n_runs = len(features)
    raw = np.frombuffer(pa.CompressedInputStream(pa.BufferReader(blob), "zstd").read(), np.uint8)
    n = (len(raw) - 2 * n_runs) // 4
    count = _join(raw[:n_runs], raw[n_runs : 2 * n_runs])
    rest = raw[2 * n_runs :].reshape(4, n)
    offsets = np.concatenate([[0], np.cumsum(count)])
    return Detail(
        feature=np.repeat(features, count),
        position=accumulate(_join(rest[0], rest[1]), offsets),
        value=VALUE_OF_BITS[_join(rest[2], rest[3])].astype(np.float32),
    )


def _join(low: npt.NDArray[np.uint8], high: npt.NDArray[np.uint8]) -> Int64s:
    return low.astype(np.int64) | high.astype(np.int64) << 8
