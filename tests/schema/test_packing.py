from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schema.packing import (
    CODE_SHIFT,
    FEATURE_BITS,
    LARGEST,
    SMALLEST,
    VALUE_OF_BITS,
    accumulate,
    detail_blobs,
    differences,
    feature_part,
    pack,
    read_detail,
    token_part,
    value_of_code,
)

Activation = tuple[int, int, int, int]  # sample, feature, position, float16 bits
activations = st.sets(
    st.tuples(st.integers(0, 4), st.integers(0, (1 << FEATURE_BITS) - 1), st.integers(0, 65_535)), max_size=60
).flatmap(
    lambda places: st.tuples(
        st.just(sorted(places)), st.lists(st.integers(1, 0x7BFF), min_size=len(places), max_size=len(places))
    )
)


def keys_of(found: list[Activation]) -> np.ndarray:
    columns = (
        [np.array(column, np.int64) for column in zip(*found, strict=True)] if found else [np.empty(0, np.int64)] * 4
    )
    return token_part(columns[0], columns[2]) | feature_part(columns[1]) | columns[3]


@given(activations, st.randoms())
@settings(max_examples=150, deadline=None)
def test_what_is_packed_is_read_back(drawn: tuple[list[tuple[int, int, int]], list[int]], rng: object) -> None:
    places, bits = drawn
    found: list[Activation] = [(*place, bit) for place, bit in zip(places, bits, strict=True)]
    shuffled = keys_of(found)
    np.random.default_rng(0).shuffle(shuffled)
    last = np.array([max((p for s, _, p in places if s == sample), default=-1) for sample in range(5)])
    packed = pack(shuffled, last)
    blobs = detail_blobs(packed)
    again: list[Activation] = []
    for sample in range(5):
        runs = slice(packed.run_offsets[sample], packed.run_offsets[sample + 1])
        detail = read_detail(blobs[sample], packed.feature[runs].astype(np.int64))
        again += [
            (sample, int(f), int(p), v) for f, p, v in zip(detail.feature, detail.position, detail.value, strict=True)
        ]
        expected_last = {f for s, f, p in places if s == sample and p == last[sample]}
        ends = slice(packed.last_offsets[sample], packed.last_offsets[sample + 1])
        assert set(packed.last_feature[ends].tolist()) == expected_last
    assert again == [(s, f, p, np.float32(VALUE_OF_BITS[b])) for s, f, p, b in sorted(found)]
    assert packed.total.sum() == pytest.approx(VALUE_OF_BITS[bits].sum() if bits else 0.0)
    assert packed.count.sum() == len(found)


@given(st.lists(st.lists(st.integers(0, 1 << 20), max_size=8, unique=True).map(sorted), max_size=8))
def test_differences_and_accumulate_are_inverse(groups: list[list[int]]) -> None:
    flat = np.array([value for group in groups for value in group], np.int32)
    offsets = np.cumsum([0, *map(len, groups)])
    assert accumulate(differences(flat, offsets).astype(np.int64), offsets).tolist() == flat.tolist()


def test_codes_are_monotone_and_within_three_percent() -> None:
    values = np.geomspace(2.0**-13, LARGEST, 5000).astype(np.float16)
    codes = values.view(np.int16) >> CODE_SHIFT
    assert (np.diff(codes) >= 0).all()
    assert np.abs(value_of_code(codes) / values.astype(np.float64) - 1).max() < 0.032


def test_every_positive_value_stays_positive_and_finite() -> None:
    for extreme in (1e-30, SMALLEST, LARGEST, 1e30):
        stored = np.float16(np.clip(extreme, SMALLEST, LARGEST))
        assert 0 < float(stored) < np.inf


def test_a_blob_is_plain_zstd_of_byte_planes() -> None:
    """What the documentation promises to readers in other languages."""
    packed = pack(keys_of([(0, 5, 2, 0x3C00), (0, 5, 300, 0x4000), (0, 9, 1, 0x3800)]), np.array([300]))
    raw = pa.CompressedInputStream(pa.BufferReader(detail_blobs(packed)[0]), "zstd").read()
    counts, positions, values = bytes([2, 1, 0, 0]), bytes([2, 42, 1, 0, 1, 0]), bytes([0, 0, 0, 0x3C, 0x40, 0x38])
    assert raw == counts + positions + values
    assert (packed.maximum >> CODE_SHIFT).tolist() == [0x4000 >> CODE_SHIFT, 0x3800 >> CODE_SHIFT]


def test_nothing_fires() -> None:
    packed = pack(np.empty(0, np.int64), np.array([-1, 3]))
    assert packed.run_offsets.tolist() == [0, 0, 0]
    assert len(read_detail(detail_blobs(packed)[1], np.empty(0, np.int64)).value) == 0
