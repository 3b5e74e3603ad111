"""Files that a full disk cut off, and clocks that differ: nothing that counts is lost, and no file is named that is not whole."""

# ruff: noqa: F811 - pytest hands fixtures over by their names
from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from schema import publish as publishing
from schema import upkeep
from schema.durable import fsync_files, is_cut
from schema.errors import HomeError, WorkFailed
from schema.publish import publish, write
from schema.store import Store
from schema.upkeep import maintain, merge
from tests.schema.test_publish import keys, land, rows, store  # noqa: F401

FULL = "is full; free some space and run the same command again"


def data(store: Store) -> set[Path]:
    return set(Path(store.uri("samples"), "data").iterdir())


def cut(path: Path) -> None:
    """What Lance leaves of a file where the disk had room for some of it."""
    os.truncate(path, path.stat().st_size * 2 // 3)


def test_all_that_lance_writes_ends_alike(store: Store) -> None:
    land(store, 0, 10)
    maintain(store, "samples", lambda: True)
    files = [path for ending in ("lance", "manifest") for path in Path(store.uri("samples")).rglob(f"*.{ending}")]
    assert {path.parent.name for path in files} > {"data", "_versions"}
    assert len(files) >= 5
    assert not any(is_cut(path) for path in files)


def test_rows_whose_file_was_cut_off_are_not_handed_over(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = publishing.write_fragments

    def short(*args: Any, **options: Any) -> Any:
        made = real(*args, **options)
        cut(Path(store.uri("samples"), "data", made[0].files[0].path))
        return made

    monkeypatch.setattr(publishing, "write_fragments", short)
    with pytest.raises(WorkFailed, match=FULL):
        write(store, "samples", rows(0, 100))


def test_a_fence_that_was_cut_off_is_not_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    land(store, 0, 5)
    fragments = write(store, "samples", rows(10, 5))
    before, real = data(store), publishing.write_fragments

    def short(*args: Any, **options: Any) -> Any:
        made = real(*args, **options)
        for path in data(store) - before:
            cut(path)
        return made

    with monkeypatch.context() as disk:
        disk.setattr(publishing, "write_fragments", short)
        with pytest.raises(WorkFailed, match=FULL):
            publish(store, "samples", lambda: fragments)
    assert keys(store) == list(range(5))
    assert publish(store, "samples", lambda: fragments) == 1


@contextmanager
def disk_that_cuts(monkeypatch: pytest.MonkeyPatch, pattern: str) -> Iterator[None]:
    """What maintenance writes meanwhile and matches is cut off, without a word."""
    real = upkeep.forced

    @contextmanager
    def short(store: Store, table: str) -> Iterator[None]:
        before = set(Path(store.uri(table)).rglob(pattern))
        with real(store, table):
            yield
            for path in set(Path(store.uri(table)).rglob(pattern)) - before:
                cut(path)

    with monkeypatch.context() as disk:
        disk.setattr(upkeep, "forced", short)
        yield


def test_a_merge_that_was_cut_off_replaces_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "MANY_FRAGMENTS", 2)
    for first in range(0, 40, 10):
        land(store, first, 10)
    with disk_that_cuts(monkeypatch, "data/*.lance"), pytest.raises(WorkFailed, match=FULL):
        merge(store, "samples", lambda: ())
    assert keys(store) == list(range(40))
    merge(store, "samples", lambda: ())
    assert len(store.latest("samples").get_fragments()) < 5
    assert keys(store) == list(range(40))


@pytest.mark.parametrize("before", [True, False], ids=["a new index", "one brought up to date"])
def test_an_index_that_was_cut_off_is_taken_out_and_made_anew(
    store: Store, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """Lance names it before anybody can look."""
    land(store, 0, 10)
    if not before:
        maintain(store, "samples", lambda: True)
        land(store, 10, 10)
    with disk_that_cuts(monkeypatch, "_indices/*/page_data.lance"), pytest.raises(WorkFailed, match=FULL):
        maintain(store, "samples", lambda: True)
    store.refresh()
    assert store.rows("samples", [7, 3]).column("id").to_pylist() == ["s7", "s3"]
    maintain(store, "samples", lambda: True)
    (index,) = store.latest("samples").describe_indices()
    assert index.num_rows_indexed == len(keys(store)) + 1
    store.refresh()
    assert store.rows("samples", [7, 3]).column("id").to_pylist() == ["s7", "s3"]


def test_a_file_that_the_store_names_and_that_was_cut_off_is_one_sentence(store: Store) -> None:
    land(store, 0, 10)
    for path in data(store):
        cut(path)
    with pytest.raises(WorkFailed, match=r"cannot be read .*; 'scopebase verify --deep' says what is damaged"):
        list(store.span("samples", 0, 100))


def test_what_somebody_is_writing_is_not_swept_by_whose_clock_is_ahead(store: Store) -> None:
    """The store's files tell the time: here they are all two hours behind the clock of who maintains it."""
    land(store, 0, 10)
    waiting = write(store, "samples", rows(10, 10))
    then = time.time() - 7200
    for path in Path(store.uri("samples")).rglob("*"):
        os.utime(path, (then, then))
    upkeep._sweep(store, "samples")
    assert publish(store, "samples", lambda: waiting) == 1
    assert keys(store) == list(range(20))


def test_what_is_new_is_forced_whatever_its_clock_says(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    forced: set[Path] = set()
    monkeypatch.setattr(upkeep, "fsync_files", lambda paths, **_: forced.update(paths))
    with upkeep.forced(store, "samples"):
        write(store, "samples", rows(0, 3))
        new = max(data(store), key=lambda path: path.stat().st_mtime)
        os.utime(new, (0, 0))
    assert new in forced


def test_files_that_are_not_of_lance_are_only_forced(tmp_path: Path) -> None:
    (tmp_path / "dump.jsonl").write_text("{}")
    (tmp_path / "a.lance").mkdir()
    fsync_files([tmp_path / "dump.jsonl", tmp_path / "a.lance"])
    with pytest.raises(FileNotFoundError):
        fsync_files([tmp_path / "gone.lance"])
    fsync_files([tmp_path / "gone.lance"], missing_ok=True)


def test_a_manifest_that_makes_lance_panic_is_one_sentence(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """As of Rust; it is no Exception."""

    def panics(*_args: object, **_options: object) -> None:
        raise PanicException("range end index 4286578692 out of range for slice of length 662")

    monkeypatch.setattr("schema.store.lance.dataset", panics)
    with pytest.raises(
        HomeError, match=r"cannot be opened \(Lance cannot read .*out of range.*; restore it from a backup"
    ):
        Store(store.url).identity()
