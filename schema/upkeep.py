"""Keeping the store small and quick: merging small fragments, key indexes, and removing what no version names.

Answers never depend on it. Whoever is overtaken by another process leaves the rest to the next run. What replaces synced files is synced
before they go, because Lance itself never asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from lance.optimize import Compaction

from schema.durable import fsync_files, is_cut
from schema.publish import FAULTS, fence_id, overtaken, storage_faults
from schema.store import Store

MANY_FRAGMENTS = 16
"""Fewer are not worth merging."""
MERGED_ROWS = 1 << 17
"""Fragments of so many rows are left alone, so that a long run's rows are rewritten once."""
ORPHAN_AGE = timedelta(hours=1)
"""How old a file that no version names must be to be swept."""


def maintain(store: Store, table: str, quiet: Callable[[], bool]) -> None:
    """Merges small fragments, brings the key index up to date and removes what the newest version does not name.

    Who reads an older version finds its files gone and opens the newest (`Store.rows`).

    Args:
        quiet: whether nothing is leased or staged. What cannot be done now, the next run does.
    """
    merge(store, table, lambda: () if quiet() else None)
    with storage_faults(store), giving_way():
        drop_cut_indexes(store, table)
        snapshot = store.latest(table)
        if not quiet():
            return
        try:
            with forced(store, table):
                if snapshot.describe_indices():
                    snapshot.optimize.optimize_indices()
                else:
                    snapshot.create_scalar_index("key", "BTREE")
        finally:
            drop_cut_indexes(store, table)
    with storage_faults(store), giving_way():
        snapshot = store.latest(table)
        if quiet():
            snapshot.cleanup_old_versions(older_than=timedelta(0))
        if quiet():
            _sweep(store, table)


def merge(store: Store, table: str, staged: Callable[[], Collection[str] | None]) -> None:
    """Merges small fragments: a manifest of thousands is slow to commit and to read.

    Args:
        staged: files that wait for publication, asked after the manifest was read: they may be named there already, and merging would
            erase the names by which their shards are recognised. None where it is not the time to merge.
    """
    with storage_faults(store), giving_way():
        snapshot = store.latest(table)
        fragments = snapshot.get_fragments()
        waiting = staged() if len(fragments) > MANY_FRAGMENTS else None
        if waiting is None:
            return
        kept = [f.fragment_id for f in fragments if any(file.path in waiting for file in f.metadata.files)]
        options = {
            "target_rows_per_fragment": MERGED_ROWS,
            "compaction_mode": "try_binary_copy",
            "excluded_fragment_ids": [fence_id(snapshot), *kept],
        }
        plan = Compaction.plan(snapshot, options)
        with forced(store, table):
            merged = [task.execute(snapshot) for task in plan.tasks]
        with forced(store, table):
            Compaction.commit(snapshot, merged, options)


def drop_cut_indexes(store: Store, table: str) -> None:
    """Takes out indexes that Lance has named though a full disk cut them off; what they would find is found without them."""
    if not store.local or not store.has(table):
        return
    with storage_faults(store), giving_way():
        snapshot = store.latest(table)
        for index in snapshot.describe_indices():
            folders = (Path(store.uri(table), "_indices", str(segment.uuid)) for segment in index.segments)
            if any(is_cut(path) for folder in folders for path in folder.glob("*.lance")):
                snapshot.drop_index(index.name)


def remove_rows(store: Store, table: str, first: int, stop: int) -> None:
    """Deletes rows with first <= key < stop."""
    with storage_faults(store), giving_way(), forced(store, table):
        store.latest(table).delete(f"key >= {int(first)} AND key < {int(stop)}")


def _sweep(store: Store, table: str) -> None:
    """Removes data files that no version names and no living worker can still be writing."""
    snapshot = store.latest(table)
    files = [row for batch in snapshot.all_files() for row in batch.to_pylist()]
    tracked = {path for batch in snapshot.tracked_files() for path in batch.column("path").to_pylist()}
    # The store's own time: the clock of a bucket or of another machine may differ.
    now = max(row["last_modified"] for row in files)
    untracked = (row for row in files if row["path"].startswith("data/") and row["path"] not in tracked)
    lost = [row["path"] for row in untracked if row["last_modified"] < now - ORPHAN_AGE]
    if store.local:
        for path in lost:
            Path(store.uri(table), path).unlink(missing_ok=True)
    else:
        store.bucket.delete(f"{table}.lance/{path}" for path in lost)


@contextmanager
def giving_way() -> Iterator[None]:
    """Leaves the work undone where another process overtook it."""
    try:
        yield
    except FAULTS as error:
        if not overtaken(error):
            raise


@contextmanager
def forced(store: Store, table: str) -> Iterator[None]:
    """Forces every file of the table that was written meanwhile onto the disk."""
    before = _files(store, table)
    yield
    fsync_files((path for path in _files(store, table) if path not in before), missing_ok=True)


def _files(store: Store, table: str) -> set[Path]:
    """Of a table on a disk, which never changes a file that counts: not by its clock, which may be another machine's."""
    if not store.local:
        return set()
    walk = os.walk(store.uri(table))  # unlike Path.rglob it survives folders that go away under it
    return {Path(root, name) for root, _folders, names in walk for name in names}
