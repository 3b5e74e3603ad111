"""Folding changes nothing of a profile, keeps parts few, and gives way to whoever else commits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from lance.optimize import Compaction

from indexer import fold as folding
from indexer.fold import fold
from indexer.seal import MOST_NARROW, merged_profile
from indexer.shard import part_row
from schema.layout import PARTS
from schema.publish import fence_id, file_names, publish, write
from schema.records import Profile
from schema.store import Store
from schema.upkeep import giving_way

D_SAE = 40
WIDTHS = {1: D_SAE, 2: D_SAE}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(folding, "FAN_IN", 3)
    made = Store(str(tmp_path / "store"))
    made.create("abc")
    return made


def counted(seed: int, n_tokens: int = 1000) -> Profile:
    """What a shard might count: a third of the features fire."""
    rng = np.random.default_rng(seed)
    profile = Profile(D_SAE, n_samples=10, n_tokens=n_tokens, narrow=True)
    profile.histogram[:] = rng.poisson(2, (D_SAE, 64)) * (rng.random(D_SAE) < 0.3)[:, None]
    profile.tokens[:] = profile.histogram.sum(axis=1)
    profile.samples_any[:] = np.minimum(profile.tokens, 10)
    profile.samples_last[:] = rng.integers(0, profile.samples_any + 1)
    profile.sums[:] = profile.tokens * rng.integers(1, 1 << 20, D_SAE) * 2.0**-24
    profile.maxima[:] = np.where(profile.tokens, rng.integers(1, 31_000, D_SAE), 0)
    return profile


def staged(store: Store, shard: int, pairs: Sequence[int] = (1, 2), n_tokens: int = 1000) -> list[str]:
    rows = [part_row(pair, shard, counted(100 * shard + pair, n_tokens)) for pair in pairs]
    return write(store, "parts", pa.Table.from_batches(rows, schema=PARTS))


def land(store: Store, shards: Sequence[int], **given: object) -> None:
    for shard in shards:
        new = staged(store, shard, **given)  # type: ignore[arg-type]
        publish(store, "parts", lambda new=new: new)  # type: ignore[misc]


def expected(pair: int, shards: Sequence[int]) -> dict[str, bytes]:
    """The sums over the shards, feature by feature."""
    parts = [counted(100 * shard + pair) for shard in shards]
    found = {
        name: np.sum([getattr(part, name) for part in parts], axis=0)
        for name in ("samples_any", "samples_last", "tokens", "sums", "histogram")
    }
    found["maxima"] = np.max([part.maxima for part in parts], axis=0)
    return {name: values.tobytes() for name, values in found.items()}


def arrays(store: Store, pair: int) -> dict[str, bytes]:
    profile = merged_profile(store, pair, D_SAE)
    return {name: getattr(profile, name).tobytes() for name in expected(pair, [0])}


def n_rows(store: Store) -> int:
    return int(store.latest("parts").count_rows("key >= 0"))


@pytest.mark.parametrize("n", [2, 3, 10, 31])
def test_profiles_stay_and_parts_are_few(store: Store, n: int) -> None:
    for shard in range(n):
        land(store, [shard])
        while fold(store, WIDTHS, set):
            pass
    assert n_rows(store) <= 2 * 2 * 4, "two pairs; two parts at most of each weight"
    assert [arrays(store, pair) for pair in WIDTHS] == [expected(pair, range(n)) for pair in WIDTHS]
    profile = merged_profile(store, 1, D_SAE)
    assert (profile.n_samples, profile.n_tokens) == (10 * n, 1000 * n)


def test_what_waits_for_publication_keeps_its_name(store: Store) -> None:
    """A committer died between the manifest and the ledger: whoever repairs it knows the shard by its file."""
    land(store, range(2))
    new = staged(store, 2)
    publish(store, "parts", lambda: new)
    assert fold(store, WIDTHS, lambda: file_names(new)) == 0
    assert publish(store, "parts", lambda: new) == 0
    assert arrays(store, 1) == expected(1, range(3))


def test_a_commit_on_the_way_is_kept_and_folding_left_to_the_next(store: Store) -> None:
    land(store, range(3))

    def meanwhile() -> set[str]:
        land(store, [3])
        return set()

    files = {path.name for path in Path(store.uri("parts"), "data").iterdir()}
    assert fold(store, WIDTHS, meanwhile) == 0
    assert arrays(store, 2) == expected(2, range(4))
    left = {path.name for path in Path(store.uri("parts"), "data").iterdir()} - files
    assert len(left) <= 3, "the shard and two fences; what was folded in vain is gone"
    assert fold(store, WIDTHS, set) == 3
    assert arrays(store, 2) == expected(2, range(4))


@pytest.mark.parametrize("first", ["folding", "merging"])
def test_merging_at_the_same_time_loses_and_doubles_nothing(store: Store, first: str) -> None:
    land(store, range(4))
    snapshot = store.latest("parts")
    options = {"target_rows_per_fragment": 1000, "excluded_fragment_ids": [fence_id(snapshot)]}
    merged = [task.execute(snapshot) for task in Compaction.plan(snapshot, options).tasks]

    def commit() -> set[str]:
        with giving_way():
            Compaction.commit(store.latest("parts") if first == "merging" else snapshot, merged, options)
        return set()

    fold(store, WIDTHS, commit if first == "merging" else set)
    if first == "folding":
        commit()
    assert [arrays(store, pair) for pair in WIDTHS] == [expected(pair, range(4)) for pair in WIDTHS]


def test_parts_of_other_runs_stay_as_they_are(store: Store) -> None:
    land(store, range(3), pairs=(1, 5))
    assert fold(store, WIDTHS, set) == 0
    assert fold(store, {**WIDTHS, 5: D_SAE}, set) == 3


def test_more_tokens_than_int32_counts(store: Store) -> None:
    land(store, range(4), n_tokens=MOST_NARROW // 2)
    assert fold(store, WIDTHS, set) == 0
    profile = merged_profile(store, 1, D_SAE)
    assert profile.n_tokens == 4 * (MOST_NARROW // 2)
    assert arrays(store, 1) == expected(1, range(4))
