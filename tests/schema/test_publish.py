"""The Lance half of exactly-once: fragments land once, whoever commits them, however often."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from lance.commit import CommitConflictError
from lance.fragment import FragmentMetadata

from schema import durable, upkeep
from schema import publish as publishing
from schema.errors import WorkFailed
from schema.layout import FENCE, SAMPLES, TABLES, schema_of
from schema.publish import discard, file_names, publish, size, storage_faults, write
from schema.store import Store
from schema.upkeep import maintain, merge, remove_rows


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(str(tmp_path / "store"))
    made.create("abc")
    return made


def rows(first: int, n: int) -> pa.Table:
    keys = range(first, first + n)
    return pa.table({"key": list(keys), "id": [f"s{k}" for k in keys], "record": ["{}"] * n}, schema=SAMPLES)


def land(store: Store, first: int, n: int) -> None:
    fragments = write(store, "samples", rows(first, n))
    publish(store, "samples", lambda: fragments)


def keys(store: Store, table: str = "samples") -> list[int]:
    found: list[int] = store.latest(table).to_table(columns=["key"]).column("key").to_pylist()
    return sorted(key for key in found if key != FENCE)


def test_written_fragments_are_invisible_until_published(store: Store) -> None:
    fragments = write(store, "samples", rows(0, 5))
    assert keys(store) == []
    assert publish(store, "samples", lambda: fragments) == 1
    assert keys(store) == [0, 1, 2, 3, 4]


def test_publishing_twice_publishes_once(store: Store) -> None:
    fragments = write(store, "samples", rows(0, 5))
    publish(store, "samples", lambda: fragments)
    assert publish(store, "samples", lambda: fragments) == 0
    assert keys(store) == [0, 1, 2, 3, 4]


def test_a_committer_that_was_overtaken_looks_again(store: Store) -> None:
    """Both read the same manifest; the slow one asks the ledger, is overtaken, and must not add the rows again."""
    fragments = write(store, "samples", rows(0, 5))
    asked = []

    def staged() -> list[str]:
        if not asked:
            asked.append(True)
            publish(store, "samples", lambda: fragments)  # the fast one
        return fragments

    assert publish(store, "samples", staged) == 0
    assert keys(store) == [0, 1, 2, 3, 4]


def test_a_stale_commit_is_refused_by_the_fence(store: Store) -> None:
    """Without the fence Lance would accept it: appends are rebased."""
    import lance

    stale = store.latest("samples")
    land(store, 0, 2)
    late = [FragmentMetadata.from_json(f) for f in write(store, "samples", rows(0, 2))]
    change = lance.LanceOperation.Update(removed_fragment_ids=[publishing.fence_id(stale)], new_fragments=late)
    with pytest.raises(CommitConflictError):
        lance.LanceDataset.commit(store.uri("samples"), change, read_version=stale.version, max_retries=0)


def test_a_committer_whose_past_was_removed_looks_again(store: Store) -> None:
    """Lance compares a commit with those since; where maintenance removed them it compares with none, and the fence must be looked at."""
    fragments = write(store, "samples", rows(0, 5))
    asked = []

    def staged() -> list[str]:
        if not asked:
            asked.append(True)
            before = set(Path(store.uri("samples"), "_versions").iterdir())
            publish(store, "samples", lambda: fragments)  # the fast one
            fast = set(Path(store.uri("samples"), "_versions").iterdir()) - before
            land(store, 10, 1)
            for manifest in fast:
                manifest.unlink()  # a cleanup that died half way
        return fragments

    assert publish(store, "samples", staged) == 0
    assert keys(store) == [0, 1, 2, 3, 4, 10]


def test_a_version_cleaned_away_under_a_committer_is_no_fault(store: Store) -> None:
    fragments = write(store, "samples", rows(0, 5))
    asked = []

    def staged() -> list[str]:
        if not asked:
            asked.append(True)
            land(store, 10, 3)
            maintain(Store(store.url), "samples", lambda: True)
        return fragments

    assert publish(store, "samples", staged) == 1
    assert keys(store) == [0, 1, 2, 3, 4, 10, 11, 12]


def test_a_store_that_lost_its_files_is_one_sentence(store: Store) -> None:
    land(store, 0, 5)
    for path in Path(store.uri("samples"), "data").iterdir():
        path.unlink()
    with pytest.raises(WorkFailed, match=r"samples\.lance names files that are not there; restore the store"):
        land(store, 10, 5)


def test_what_maintenance_writes_is_forced_to_the_disk_before_anything_goes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for first in range(0, 200, 10):
        land(store, first, 10)
    forced: set[Path] = set()
    monkeypatch.setattr(upkeep, "fsync_files", lambda paths, **_: forced.update(paths))
    maintain(store, "samples", lambda: True)
    folder = Path(store.uri("samples"))
    fragments = store.latest("samples").get_fragments()
    merged = {folder / "data" / f.path for x in fragments if x.physical_rows > 10 for f in x.metadata.files}
    assert merged
    assert merged <= forced
    assert any("_indices" in path.parts for path in forced)
    assert any(path.parent.name == "_versions" for path in forced)


def test_two_that_maintain_one_table_at_the_same_moment_do_not_stumble_over_each_other(store: Store) -> None:
    """Each lists files that the other is just removing."""
    fragments = [write(store, "samples", rows(first, 10)) for first in range(0, 300, 10)]

    def work(mine: list[list[str]]) -> None:
        own = Store(store.url)
        for staged in mine:
            publish(own, "samples", lambda staged=staged: staged)
            maintain(own, "samples", lambda: True)

    with ThreadPoolExecutor(3) as pool:
        for job in [pool.submit(work, fragments[k::3]) for k in range(3)]:
            job.result()
    assert keys(store) == list(range(300))


@pytest.mark.parametrize("vanishing", ["_transactions", "_versions"])
def test_a_file_that_another_maintenance_removes_while_it_is_forced_is_no_fault(
    store: Store, monkeypatch: pytest.MonkeyPatch, vanishing: str
) -> None:
    land(store, 0, 10)
    real = os.open
    gone = []

    def racing(path: Path, flags: int) -> int:
        if Path(path).parent.name == vanishing and not gone:
            gone.append(path)
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return real(path, flags)

    monkeypatch.setattr(durable.os, "open", racing)
    maintain(store, "samples", lambda: True)
    fragments = write(store, "samples", rows(10, 5))
    publish(store, "samples", lambda: fragments)
    monkeypatch.undo()
    assert gone
    assert keys(store) == list(range(15))


def test_shards_of_one_row_are_not_taken_for_the_fence(store: Store) -> None:
    for first in range(5):
        land(store, first, 1)
    assert keys(store) == [0, 1, 2, 3, 4]


def test_compaction_waits_while_something_is_staged(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "MANY_FRAGMENTS", 2)
    for first in range(0, 40, 10):
        land(store, first, 10)
    before = len(store.latest("samples").get_fragments())
    maintain(store, "samples", lambda: False)
    assert len(store.latest("samples").get_fragments()) == before
    maintain(store, "samples", lambda: True)
    assert len(store.latest("samples").get_fragments()) < before
    assert keys(store) == list(range(40))
    assert store.latest("samples").describe_indices()
    land(store, 40, 3)
    store.refresh()
    assert store.rows("samples", [42, 7, 99, 0]).column("id").to_pylist() == ["s42", "s7", "s0"]
    assert store.rows("samples", [99]).num_rows == 0


def test_a_reader_of_a_version_that_was_cleaned_away_finds_the_rows(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "MANY_FRAGMENTS", 2)
    for first in range(0, 40, 10):
        land(store, first, 10)
    store.refresh()
    held = store.table("samples")
    files = set(Path(store.uri("samples"), "data").iterdir())
    maintain(Store(store.url), "samples", lambda: True)
    assert not files <= set(Path(store.uri("samples"), "data").iterdir())
    assert store.table("samples") is held
    assert store.rows("samples", [3, 31]).column("id").to_pylist() == ["s3", "s31"]


def test_orphans_are_swept_when_they_are_old_and_only_then(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import timedelta

    orphan = Path(
        store.uri("samples"), "data", FragmentMetadata.from_json(write(store, "samples", rows(0, 3))[0]).files[0].path
    )
    land(store, 10, 3)
    maintain(store, "samples", lambda: True)
    assert orphan.exists()
    monkeypatch.setattr(upkeep, "ORPHAN_AGE", timedelta(0))
    maintain(store, "samples", lambda: True)
    assert not orphan.exists()
    assert keys(store) == [10, 11, 12]


def test_discarded_fragments_leave_no_file(store: Store) -> None:
    before = set(Path(store.uri("samples"), "data").iterdir())
    staged = {"samples": write(store, "samples", rows(0, 3))}
    assert size(staged) > 0
    discard(store, staged)
    assert set(Path(store.uri("samples"), "data").iterdir()) == before


def test_rows_are_removed_by_range_and_the_fence_stays(store: Store) -> None:
    land(store, 0, 10)
    remove_rows(store, "samples", 0, 7)
    assert keys(store) == [7, 8, 9]
    land(store, 20, 1)
    assert keys(store) == [7, 8, 9, 20]


def test_a_full_disk_is_one_sentence(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publishing, "write_fragments", full)
    with pytest.raises(WorkFailed, match="is full; free some space and run the same command again"):
        write(store, "samples", rows(0, 1))


def test_lancedb_opens_the_store(store: Store) -> None:
    lancedb = pytest.importorskip("lancedb")
    land(store, 0, 10)
    opened = lancedb.connect(store.url)
    assert set(TABLES) <= set(opened.list_tables().tables)
    assert opened.open_table("samples").count_rows("key >= 0") == 10


def test_every_table_has_a_schema_and_a_fence(store: Store) -> None:
    store.create("abc", ["directions_32"])
    for name in (*TABLES, "directions_32"):
        table = store.latest(name).to_table()
        assert table.column("key").to_pylist() == [FENCE]
        assert schema_of(name).names == table.schema.names
    assert store.identity() == "abc"


@pytest.mark.parametrize("columns", [None, ["id"], ["key", "id"]])
def test_a_reader_goes_on_while_files_are_merged_and_removed(store: Store, columns: list[str] | None) -> None:
    """With the rows that it has not had yet, and none twice."""
    n_parts = 24
    for number in range(n_parts):
        land(store, 10 * ((7 * number) % n_parts), 10)
    land(store, 2000, 1)
    land(store, 2002, 1)
    before = set(Path(store.uri("samples"), "data").iterdir())
    reader = store.span("samples", 0, 10_000, columns)
    found = [next(reader)]
    maintain(store, "samples", lambda: True)
    assert len(before & set(Path(store.uri("samples"), "data").iterdir())) < 5, "the fence, and what had no neighbour"
    found += reader
    assert sorted(name for batch in found for name in batch.column("id").to_pylist()) == sorted(
        f"s{key}" for key in [*range(10 * n_parts), 2000, 2002]
    )
    assert {tuple(batch.schema.names) for batch in found} == {tuple(columns or SAMPLES.names)}


def test_a_reader_among_others_who_change_everything(store: Store) -> None:
    """Several at once, for as long as new rows come and old files go."""
    land(store, 0, 300)
    stop = threading.Event()

    def read() -> int:
        n = 0
        while not stop.is_set() or not n:
            keys = [
                key for batch in store.span("samples", 0, 10_000, ["key"]) for key in batch.column("key").to_pylist()
            ]
            assert len(keys) == len(set(keys)) >= 300
            assert set(range(300)) <= set(keys)
            n += 1
        return n

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        for number in range(30, 50):
            land(store, 10 * number, 10)
            if number % 4 == 0:
                maintain(store, "samples", lambda: True)
        stop.set()
        assert all(reader.result() for reader in readers)


def test_a_file_that_is_lost_is_a_fault(store: Store) -> None:
    land(store, 0, 10)
    for path in Path(store.uri("samples"), "data").iterdir():
        path.unlink()
    with pytest.raises((OSError, pa.ArrowInvalid), match=r"(?i)not found"):
        list(store.span("samples", 0, 100))


def test_what_waits_for_the_ledger_keeps_its_file_while_others_are_merged(store: Store) -> None:
    """Its committer died between manifest and ledger; who repairs that must find the name, or rows come twice."""
    for first in range(0, 300, 10):
        land(store, first, 10)
    waiting = write(store, "samples", rows(300, 10))
    publish(store, "samples", lambda: waiting)
    n = len(store.latest("samples").get_fragments())
    merge(store, "samples", lambda: None)
    assert len(store.latest("samples").get_fragments()) == n, "not the time to merge"
    merge(store, "samples", lambda: file_names(waiting))
    assert len(store.latest("samples").get_fragments()) < 5
    assert publish(store, "samples", lambda: waiting) == 0
    assert keys(store) == list(range(310))


def test_a_file_that_was_read_by_half_is_told_with_the_mend(tmp_path: Path) -> None:
    """As a bucket serves it whose connection was cut; Lance takes it for a damaged one."""
    fault = OSError("LanceError(Arrow): Parser error: Arrow file does not contain correct footer")
    told = "correct footer; run the same command again, and scopebase verify --deep"
    with pytest.raises(WorkFailed, match=told), storage_faults(Store(str(tmp_path))):
        raise fault
