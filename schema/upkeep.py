"""Keeping the store small and quick: merging small fragments, key indexes, and removing what no version names.

Answers never depend on it. Whoever is overtaken by another process leaves the rest to the next run. What replaces synced files is synced
before they go, because Lance itself never asks for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from lance.optimize import Compaction

from schema.publish import FAULTS, fence_id, overtaken, storage_faults
from schema.store import Store, fsync_files

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
    with storage_faults(store), giving_way(), forced(store, table):
        snapshot = store.latest(table)
        if not quiet():
            return
        if snapshot.describe_indices():
            snapshot.optimize.optimize_indices()
        else:
            snapshot.create_scalar_index("key", "BTREE")
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


def remove_rows(store: Store, table: str, first: int, stop: int) -> None:
    """Deletes rows with first <= key < stop."""
    with storage_faults(store), giving_way(), forced(store, table):
        store.latest(table).delete(f"key >= {int(first)} AND key < {int(stop)}")


def _sweep(store: Store, table: str) -> None:
    """Removes data files that no version names and no living worker can still be writing."""
    snapshot = store.latest(table)
    files = [row for batch in snapshot.all_files() for row in batch.to_pylist()]
    tracked = {path for batch in snapshot.tracked_files() for path in batch.column("path").to_pylist()}
    # A bucket's clock need not be this machine's; its newest object, just written by maintenance, tells its time.
    now = datetime.now(UTC) if store.local else max(row["last_modified"] for row in files)
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
    begin = time.time() - 2.0  # file systems keep time in coarse steps
    yield
    if store.local:
        fsync_files(_written_since(Path(store.uri(table)), begin), missing_ok=True)


def _written_since(folder: Path, begin: float) -> list[Path]:
    """The files below a folder that changed since, as far as no other process has removed them meanwhile."""
    found = []
    for root, _folders, names in os.walk(folder):  # unlike Path.rglob it survives folders that go away under it
        for path in (Path(root, name) for name in names):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime >= begin:
                    found.append(path)
    return found
