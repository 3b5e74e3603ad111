"""The activation store: Lance tables in one directory or bucket, and how rows are read from them.

LanceDB opens the same directory: `lancedb.connect("scopebase-data/store").open_table("forward")`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa

from schema import deadline
from schema.bucket import Bucket, in_words, storage_options
from schema.durable import in_words_of_a_disk, without_panic
from schema.errors import HomeError
from schema.layout import FORMAT, TABLES, fence_row, schema_of
from schema.scanning import lasting
from schema.tracing import during, traced

_IDENTITY = b"scopebase.store"
_FORMAT = b"scopebase.format"
SCAN_CACHE = 8 << 20
"""What a handle that reads everything once keeps of the files' metadata. Lance's own default would grow with the number of files."""
REMOTE_METADATA, REMOTE_INDEXES = 128 << 20, 256 << 20
"""What all handles of a bucket keep together: manifests, footers and page tables, and pages of the key indexes. All of it never changes."""


RECENT_SECONDS = 2.0
REMOTE_BLOCK = 256 << 10
"""Reads of a bucket that lie so close are made as one: half the requests of Lance's 64 KiB, for twice the bytes, in the same time."""


class Store:
    """The tables of one activation store.

    Handles are kept open and see what was there when they were opened; `refresh` makes them see newer commits.

    Raises:
        HomeError: the URL or SCOPEBASE_STORE_OPTIONS is wrong; of whatever asks a bucket also as `schema.bucket.in_words`.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.local = "://" not in self.url
        self.options = None if self.local else storage_options(self.url)
        """Lance's `storage_options`."""
        self._open: dict[str, Any] = {}
        self._absent: set[str] = set()
        self._recents: dict[str, tuple[Any, float]] = {}
        self._lock = threading.Lock()

    @cached_property
    def bucket(self) -> Bucket:
        """What lies beside Lance's tables; of a store in a bucket only."""
        assert self.options is not None
        return Bucket(self.url, self.options)

    @cached_property
    def _session(self) -> Any:
        """Shared by a bucket's handles: one client, whose connections stay open, and one cache of what never changes."""
        return lance.Session(index_cache_size_bytes=REMOTE_INDEXES, metadata_cache_size_bytes=REMOTE_METADATA)

    def faults(self) -> AbstractContextManager[None]:
        """Says in one sentence what a bucket or a disk does not give."""
        return in_words_of_a_disk(self.url) if self.local else in_words(self.url)

    def uri(self, table: str) -> str:
        return f"{self.url}/{table}.lance"

    def has(self, table: str) -> bool:
        """Whether the table is there, on disk or in the bucket."""
        if self.local:
            return any(Path(self.uri(table), "_versions").glob("*.manifest"))  # its making may have failed before
        try:
            self.table(table)
        except (ValueError, FileNotFoundError):
            self._absent.add(table)
            return False
        return True

    def offers(self, table: str) -> bool:
        """Whether a table was there when it was last looked for; a bucket is asked again only after `refresh`."""
        return table not in self._absent and self.has(table)

    def lacking(self, tables: Iterable[str]) -> list[str]:
        """Those of the tables that are not there; a bucket tells in one request."""
        there = None if self.local else self.bucket.tables()
        return [name for name in tables if not (self.has(name) if there is None else name in there)]

    def identity(self) -> str | None:
        """The id that the store shares with its database, None where there is no store yet.

        Raises:
            HomeError: a newer Scopebase laid it out.
        """
        if not self.has("samples"):
            return None
        try:
            metadata = self.table("samples").schema.metadata or {}
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
            raise HomeError(
                f"the activation store {self.url} cannot be opened ({reason}); restore it from a backup, or mend its disk"
            ) from error
        layout = metadata.get(_FORMAT, b"").decode()
        if layout != FORMAT:
            raise HomeError(
                f"the activation store {self.url} has layout {layout or 'unknown'!r}, this Scopebase reads {FORMAT!r}; "
                "upgrade with: pip install -U scopebase"
            )
        return metadata.get(_IDENTITY, b"").decode()

    def create(self, identity: str, tables: Iterable[str] = TABLES) -> None:
        """Makes the tables that are missing. `samples` comes last: it stands for the whole."""
        if self.local:
            Path(self.url).mkdir(parents=True, exist_ok=True)
        for name in sorted(tables, key=lambda table: table == "samples"):
            if not self.has(name):
                row = fence_row(name).replace_schema_metadata({_IDENTITY: identity.encode(), _FORMAT: FORMAT.encode()})
                try:
                    self.save(name, row, "create")
                except OSError:
                    if not self.has(name):  # else another process has just made it
                        raise
            self._absent.discard(name)

    def save(self, name: str, rows: Any, mode: str) -> Any:
        """Writes a table at once, without a ledger: `create`, `append` or `overwrite`; the handle of what was written."""
        with self.faults():
            return lance.write_dataset(
                rows, self.uri(name), mode=mode, data_storage_version="2.2", storage_options=self.options
            )

    def table(self, name: str) -> Any:
        """An open handle of a table, a `lance.LanceDataset`."""
        with self._lock:
            if name not in self._open:
                self._open[name] = self.open(name)
            return self._open[name]

    def open(self, name: str) -> Any:
        """A handle of its own with caches for many questions."""
        if self.local:
            with without_panic(self.uri(name)):
                return lance.dataset(self.uri(name))
        with self.faults():
            return lance.dataset(
                self.uri(name), storage_options=self.options, session=self._session, block_size=REMOTE_BLOCK
            )

    def latest(self, name: str) -> Any:
        """A handle of its own that sees the newest commit, for scans and commits."""
        if self.local:
            return lance.dataset(self.uri(name), metadata_cache_size_bytes=SCAN_CACHE)
        return self.open(name)

    def sizes(self, name: str) -> dict[str, int]:
        """Path -> bytes of every file of a table, whether a version names it or not."""
        with self.faults():
            batches = [batch.to_pylist() for batch in self.latest(name).all_files()]
        return {row["path"]: row["size_bytes"] for rows in batches for row in rows}

    def refresh(self) -> None:
        """Forgets the open handles that do not see the newest commit; the others keep what they have read."""
        with self._lock:
            held = dict(self._open)
            self._absent.clear()
            self._recents.clear()
        stale = {name: handle for name, handle in held.items() if not _newest(handle)}
        with self._lock:
            for name, handle in stale.items():
                if self._open.get(name) is handle:
                    del self._open[name]

    @traced("store.rows", "table", "n_keys")
    def rows(self, table: str, keys: Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
        """The rows with these keys, in the order of the keys; keys that are not there are left out.

        Raises:
            TooSlow: nobody waits for the answer any more, see `schema.deadline`; of `span` too.
        """
        deadline.check()
        if not keys:
            return schema_of(table).empty_table()
        wanted = [*dict.fromkeys(keys)]
        names = None if columns is None else ["key", *(c for c in columns if c != "key")]
        asked = {"columns": names, "filter": f"key IN ({', '.join(str(int(k)) for k in wanted)})"}
        with self.faults():
            try:
                found = self.table(table).scanner(**asked).to_table()
            except (OSError, pa.ArrowInvalid) as error:
                if "not found" not in str(error).lower():
                    raise
                self.refresh()  # the version that was open has been cleaned away since
                found = self.table(table).scanner(**asked).to_table()
        place = {key: i for i, key in enumerate(found.column("key").to_pylist())}
        return found.take(pa.array([place[key] for key in keys if key in place], pa.int64()))

    def span(
        self, table: str, first: int, stop: int, columns: Sequence[str] | None = None, *, settled: bool = False
    ) -> Any:
        """Record batches of the rows with first <= key < stop as of now, in no particular order.

        Args:
            settled: the rows are a finished run's, so that a handle of some seconds ago has them too: many spans of a bucket look for
                the newest commit once.
        """
        handle = self._recent(table) if settled and not self.local else self.latest(table)
        batches = lasting(
            handle,
            lambda: self.latest(table),
            columns,
            filter=f"key >= {int(first)} AND key < {int(stop)}",
            batch_size=1024,
            batch_readahead=4,
            fragment_readahead=1,
        )
        return during("store.span", self._in_time(batches), table=table)

    def _recent(self, name: str) -> Any:
        now = time.monotonic()
        with self._lock:
            handle, when = self._recents.get(name, (None, 0.0))
        if handle is None or now - when > RECENT_SECONDS:
            handle = self.latest(name)
            with self._lock:
                self._recents[name] = (handle, now)
        return handle

    def _in_time(self, batches: Iterable[Any]) -> Iterator[Any]:
        with self.faults():
            for batch in batches:
                deadline.check()
                yield batch


def _newest(handle: Any) -> bool:
    try:
        return bool(handle.latest_version == handle.version)
    except (OSError, ValueError, pa.ArrowInvalid):
        return False
