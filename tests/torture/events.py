"""The instants at which something can happen to a process that writes.

An *event* is the entry to or the return from anything that touches a store: writing fragments, fsync, a Lance commit, a ledger
transaction, making tables, maintenance, removal, backup.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import lance

import scopebase  # noqa: F401
from indexer import fold, worker
from indexer import run as running
from schema import backup, catalog, home, ledger, publish, removals, upkeep
from schema.bucket import Bucket
from schema.store import Store

TOUCHING: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (publish, ("write_fragments", "fsync_files")),
    (upkeep, ("fsync_files", "_sweep")),
    (upkeep.Compaction, ("plan", "commit")),
    (lance.LanceDataset, ("delete", "create_scalar_index", "cleanup_old_versions")),
    (ledger.Ledger, ("lease", "stage", "commit", "reclaim")),
    (home, ("upgrade",)),
    (Store, ("create",)),
    (Bucket, ("check_writable", "delete")),
    (running, ("register_model", "register_sae", "register_dataset", "register_run", "maintain")),
    (worker, ("publish_staged", "fold")),
    (removals, ("remove_rows", "_forget")),
    (backup, ("_dump", "_copy_table", "_fetch", "_put", "_set_sequences", "upgrade")),
)
IN_TRANSACTIONS = (
    "flush",
    "_forget",
    "register_model",
    "register_sae",
    "register_dataset",
    "register_run",
    "upgrade",
    "_set_sequences",
)
"""Of these, those that a transaction is open around."""


class Events:
    """Counts events, and lets something happen at the chosen one."""

    def __init__(self, at: int | None, happens: Callable[[], None], outside: bool = False) -> None:
        self.at, self.happens, self.outside, self.n = at, happens, outside, 0

    def event(self) -> None:
        if self.n == self.at:
            self.n += 1
            self.happens()
        else:
            self.n += 1

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.event()
            result = function(*args, **kwargs)
            self.event()
            return result

        return counted

    def watch(self, put: Callable[[Any, str, Any], None] = setattr) -> None:
        """Puts the counters in place, for good in a process of its own; `put` may be pytest's `monkeypatch.setattr`."""
        put(upkeep, "MANY_FRAGMENTS", 3)  # merge at this size too
        put(worker, "MERGE_EVERY", 4)
        put(fold, "FAN_IN", 3)
        put(worker, "FAN_IN", 3)
        for where, names in TOUCHING:
            for name in names:
                if not (self.outside and name in IN_TRANSACTIONS):
                    put(where, name, self.around(getattr(where, name)))
        put(lance.LanceDataset, "commit", staticmethod(self.around(lance.LanceDataset.commit)))
        if not self.outside:
            put(catalog.Session, "flush", self.around(catalog.Session.flush))
