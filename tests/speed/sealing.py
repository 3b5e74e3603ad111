"""Profiles of 28 layers merged from the parts of 1,000 shards: what a run of 32 million tokens waits for when all is encoded.

Parts are invented as counts, not activation by activation, and written by the real writer: features fire log-normally often (a tenth
never, the median on 6 of 10,000 tokens, as many a token as k), values spread over a few half-octaves around a scale of the feature's own.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from indexer.fold import FAN_IN, fold
from indexer.seal import merged_profile
from indexer.shard import part_row
from schema.layout import PARTS, sample_key
from schema.packing import N_BINS, VALUE_OF_BITS
from schema.publish import publish, write
from schema.records import Profile
from schema.store import Store
from tests.speed.harness import FOLDER, Table, folder_bytes, fresh

D_SAE, K = 32_768, 50
N_PAIRS, N_SHARDS = 28, 1_000
N_SAMPLES, N_TOKENS = 256, 32_768
"""Of a shard, as `indexer.survey` cuts them on a CPU; on a GPU they are eight times as large."""
N_DRAWN = 56
"""Parts that are drawn; pairs and shards share them, each under a key of its own."""
SCALES = (-2.0, 1.0)
"""Mean and spread of a feature's typical value, as a power of two."""


def rates(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """(D_SAE, N_BINS) on how many tokens of a shard each feature fires with a value of each half-octave, expected."""
    often = rng.lognormal(0, 1.36, D_SAE) * (rng.random(D_SAE) > 0.1)
    often = np.minimum(often * K / often.sum(), 0.28) * N_TOKENS
    middle = 30 + 2 * rng.normal(*SCALES, D_SAE)  # 1.0 is in bin 30
    away = np.arange(N_BINS) - middle[:, None]
    shape = np.exp(-0.5 * (away / 1.5) ** 2) * (np.abs(away) < 5)
    found: npt.NDArray[np.float64] = often[:, None] * shape / shape.sum(axis=1, keepdims=True)
    return found


def drawn(rng: np.random.Generator, expected: npt.NDArray[np.float64]) -> Profile:
    """What one shard might count."""
    profile = Profile(D_SAE, n_samples=N_SAMPLES, n_tokens=N_TOKENS, narrow=True)
    somewhere = expected > 0
    profile.histogram[somewhere] = rng.poisson(expected[somewhere])
    profile.tokens[:] = profile.histogram.sum(axis=1)
    profile.samples_any[:] = np.minimum(np.ceil(profile.tokens * 0.4), N_SAMPLES)
    profile.samples_last[:] = rng.binomial(profile.samples_any, 1 / 128)
    bits = (np.arange(N_BINS) << 9) + 256
    profile.sums[:] = profile.histogram @ np.nan_to_num(VALUE_OF_BITS[bits], posinf=0)
    top = N_BINS - 1 - np.argmax(profile.histogram[:, ::-1] > 0, axis=1)
    profile.maxima[:] = np.where(profile.tokens > 0, bits[top], 0)
    return profile


def made(n_pairs: int, n_shards: int) -> Iterator[list[pa.Table]]:
    """The parts of a run, one table a shard with n pairs each, FAN_IN shards at a time."""
    rng = np.random.default_rng(3)
    expected = [rates(rng) for _ in range(7)]
    pool = [part_row(0, 0, drawn(rng, expected[number % 7])) for number in range(N_DRAWN)]

    def shard(number: int) -> pa.Table:
        keys = [pa.array([sample_key(pair + 1, number)], pa.int64()) for pair in range(n_pairs)]
        rows = [
            pool[(7 * number + pair) % N_DRAWN].set_column(0, PARTS.field("key"), key) for pair, key in enumerate(keys)
        ]
        return pa.Table.from_batches(rows)

    for first in range(0, n_shards, FAN_IN):
        yield [shard(number) for number in range(first, min(first + FAN_IN, n_shards))]


def grown(store: Store, n_pairs: int, n_shards: int) -> tuple[float, float]:
    """A run's parts as its worker leaves them: CPU seconds of writing them, and of folding on the way."""
    wrote = folded = 0.0
    widths = {pair + 1: D_SAE for pair in range(n_pairs)}
    for shards in made(n_pairs, n_shards):
        wrote += _cpu(lambda shards=shards: _land(store, shards))
        folded += _cpu(lambda: fold(store, widths, set))
        store.latest("parts").cleanup_old_versions(
            older_than=timedelta(0)
        )  # room on this disk; a run waits until its end
    return wrote, folded


def _land(store: Store, shards: list[pa.Table]) -> None:
    for rows in shards:
        fragments = write(store, "parts", rows)
        publish(store, "parts", lambda fragments=fragments: fragments)


def _cpu(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def measure(args: argparse.Namespace) -> list[Table]:
    """What each shard pays on the way, and what is left when all is encoded."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    store = Store(str(fresh("sealing")))
    store.create("sealing")
    wrote, folded = grown(store, N_PAIRS, N_SHARDS)
    left = store.latest("parts").count_rows("key >= 0")
    begin = time.perf_counter()
    merging = _cpu(lambda: [merged_profile(store, pair + 1, D_SAE) for pair in range(N_PAIRS)])
    wall = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    table = Table(
        f"Profiles of {N_PAIRS} layers from the parts of {N_SHARDS:,} shards, d_sae {D_SAE:,}, k {K}; one process",
        ["step", "CPU seconds", "CPU ms a shard and layer"],
        [
            [name, f"{seconds:.1f}", f"{seconds * 1000 / N_PAIRS / N_SHARDS:.2f}"]
            for name, seconds in (
                ("parts written", wrote),
                ("folded on the way", folded),
                ("merged at the end", merging),
            )
        ],
        f"At the end {left:,} rows are left of {N_PAIRS * N_SHARDS:,}; all profiles took {wall:.1f} s by the clock, the process "
        f"{peak:,.0f} MB at most; the store holds {folder_bytes(Path(store.url)) / 1e9:.2f} GB of parts.",
    )
    return [table]
