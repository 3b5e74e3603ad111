"""Writing to the store so that every shard lands exactly once, whoever dies when.

A worker writes Lance *fragments*: data files that no manifest names, so that no reader sees them. The SQL ledger takes their description
(`Shard.staged`). A committer then names the fragments of all staged shards in one manifest. A plain Lance append would accept the same
fragments twice; so each commit also replaces the table's one-row *fence* fragment, which makes it a compare-and-set: of two committers that
looked at the same manifest, one wins and the other looks again, and finds the files already there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
from lance.commit import CommitConflictError
from lance.fragment import FragmentMetadata, write_fragments

from schema.bucket import fault_of
from schema.durable import check_whole, disk_is_full, fsync_files
from schema.errors import ScopebaseError, WorkFailed
from schema.layout import FENCE, fence_row, schema_of
from schema.store import Store
from schema.tracing import carried

Staged = dict[str, list[str]]
"""Table -> its new fragments, each as Lance's JSON."""

PAGE_BYTES = 1 << 20
"""What a column collects before it is written; Lance's 8 MiB hold 50 MB more memory and save nothing."""
FAULTS = (CommitConflictError, OSError, RuntimeError, pa.ArrowInvalid)
"""What Lance raises where a table is changed under it, and for real faults too; `overtaken` tells them apart."""
ATTEMPTS = 20
"""How often a commit that was overtaken looks again before the fault is taken for a damaged store."""


def write(store: Store, table: str, rows: pa.Table | Iterable[pa.RecordBatch]) -> list[str]:
    """Writes rows as fragments that nothing names yet, and forces them to the disk.

    Raises:
        WorkFailed: the disk is full, or the store cannot be written.
    """
    reader = rows if isinstance(rows, pa.Table) else pa.RecordBatchReader.from_batches(schema_of(table), carried(rows))
    with storage_faults(store):
        fragments = write_fragments(
            reader,
            store.uri(table),
            schema=schema_of(table),
            data_storage_version="2.2",
            data_cache_bytes=PAGE_BYTES,
            storage_options=store.options,
        )
        if store.local:
            fsync_files(_files(store, table, fragments))
    return [json.dumps(fragment.to_json()) for fragment in fragments]


def size(staged: Staged) -> int:
    """Bytes of the staged files."""
    return sum(
        file["file_size_bytes"] or 0
        for fragments in staged.values()
        for f in fragments
        for file in json.loads(f)["files"]
    )


def file_names(fragments: Iterable[str]) -> set[str]:
    """The data files of staged fragments, by which a manifest names them."""
    return {file["path"] for fragment in fragments for file in json.loads(fragment)["files"]}


def discard(store: Store, staged: Staged) -> None:
    """Removes fragments that will never be published. What a bucket that is away keeps of them, `schema.upkeep` sweeps."""
    for table, fragments in staged.items():
        found = [FragmentMetadata.from_json(f) for f in fragments]
        if store.local:
            for path in _files(store, table, found):
                path.unlink(missing_ok=True)
        else:
            with suppress(ScopebaseError):
                store.bucket.delete(f"{table}.lance/data/{file.path}" for f in found for file in f.files)


def publish(store: Store, table: str, staged: Callable[[], list[str]]) -> int:
    """Names the staged fragments of a table in its manifest; those that it names already are left alone.

    Args:
        staged: reads the ledger. It is called after the manifest was read, never before, so that a shard which another committer
            has published meanwhile is either seen as committed or makes this commit conflict.

    Returns:
        How many fragments were new.
    """
    for attempt in range(ATTEMPTS):
        with storage_faults(store):
            try:
                return _publish(store, table, staged)
            except FAULTS as error:
                if not overtaken(error):
                    raise
        time.sleep(0.01 * attempt)
    raise WorkFailed(f"the table {store.uri(table)} names files that are not there; restore the store from a backup")


def _publish(store: Store, table: str, staged: Callable[[], list[str]]) -> int:
    """One attempt."""
    snapshot = store.latest(table)
    fence = fence_id(snapshot)
    named = {file.path for fragment in snapshot.get_fragments() for file in fragment.metadata.files}
    fragments = [FragmentMetadata.from_json(f) for f in staged()]
    new = [f for f in fragments if not any(file.path in named for file in f.files)]
    if not new:
        return 0
    _commit(store, table, snapshot, fence, [], new)
    return len(new)


def replace(store: Store, table: str, snapshot: Any, old: Iterable[int], new: Iterable[str]) -> None:
    """Names new fragments in the place of old ones, as one commit.

    Args:
        snapshot: the version that was read to make them.
        old: ids of its fragments. None of them may belong to a staged shard, for by its files' names that would be published again.

    Raises:
        CommitConflictError, or another of FAULTS that `overtaken` knows: somebody has committed since; the table is as it was.
    """
    fragments = [FragmentMetadata.from_json(text) for text in new]
    _commit(store, table, snapshot, fence_id(snapshot), list(old), fragments)


def _commit(
    store: Store, table: str, snapshot: Any, fence: int, removed: list[int], new: list[FragmentMetadata]
) -> None:
    """One manifest after the snapshot's, or a conflict."""
    next_fence = write_fragments(
        fence_row(table),
        store.uri(table),
        schema=schema_of(table),
        data_storage_version="2.2",
        storage_options=store.options,
    )
    if store.local:
        check_whole(_files(store, table, next_fence))
    change = lance.LanceOperation.Update(removed_fragment_ids=[fence, *removed], new_fragments=[*next_fence, *new])
    # Lance compares with the commits since `snapshot`; those that maintenance has removed meanwhile it takes for none.
    if fence_id(store.latest(table)) != fence:
        raise CommitConflictError("the fence was replaced")
    done = lance.LanceDataset.commit(
        store.uri(table), change, read_version=snapshot.version, max_retries=0, storage_options=store.options
    )
    if store.local:  # who has overtaken this commit since may have removed its manifest and fence
        fsync_files([*_files(store, table, next_fence), *_manifest(store, table, done.version)], missing_ok=True)


def fence_id(snapshot: Any) -> int:
    """The fragment that holds the fence row. It is the newest of the one-row fragments but for shards of one row."""
    for fragment in reversed(snapshot.get_fragments()):
        if fragment.physical_rows == 1 and fragment.to_table(columns=["key"]).column("key")[0].as_py() == FENCE:
            return int(fragment.fragment_id)
    raise WorkFailed(f"the table {snapshot.uri} has lost its fence row; restore the store from a backup")


def _files(store: Store, table: str, fragments: Iterable[FragmentMetadata]) -> list[Path]:
    return [Path(store.uri(table), "data", file.path) for fragment in fragments for file in fragment.files]


def _manifest(store: Store, table: str, version: int) -> list[Path]:
    """The file that names version n; Lance counts its names down so that the newest sorts first."""
    return [Path(store.uri(table), "_versions", f"{(1 << 64) - 1 - version}.manifest")]


def overtaken(error: BaseException) -> bool:
    """Whether another process changed the table, or removed the version that was being read."""
    text = str(error).lower()
    return "nosuchbucket" not in text and (
        isinstance(error, CommitConflictError | FileNotFoundError) or "not found" in text or "commit conflict" in text
    )


@contextmanager
def storage_faults(store: Store) -> Any:
    """A full or vanished disk, or a bucket that fails, in one sentence."""
    try:
        yield
    except CommitConflictError:  # an OSError, but no fault: the caller looks again
        raise
    except (OSError, RuntimeError, ValueError) as error:
        text = str(error)
        known = None if store.local else fault_of(store.url, error)
        if known is not None:
            raise known from error
        if disk_is_full(error):
            raise WorkFailed(
                f"the disk of {store.url} is full; free some space and run the same command again, it goes on where it stopped"
            ) from error
        if isinstance(error, OSError) or "LanceError(IO)" in text:
            raise WorkFailed(
                f"the activation store {store.url} failed: {text.splitlines()[0][:200]}; run the same command again, "
                "and scopebase verify --deep if it fails again"
            ) from error
        raise
