"""What the services read: the home's stores, with the counts of finished runs kept in memory.

A finished run never changes, so its counts can be kept as long as there is room. New runs and compactions are seen because the
handles are opened anew when the snapshot moves, and at the latest after REFRESH_SECONDS.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, is_dataclass
from itertools import repeat
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from api.services.held import Held, Shelf
from api.services.written import Written
from schema.errors import WorkFailed
from schema.home import Home
from schema.layout import SAMPLE_BITS, flat_column, sample_key
from schema.lookup import NEWEST, newest_snapshot
from schema.meaning import Meaning
from schema.packing import VALUE_OF_BITS
from schema.records import Pool

REFRESH_SECONDS = 30.0
TOGETHER = 32
"""Profiles read at once."""
COUNTS_BYTES = 1 << 30
"""28 layers of 20 datasets at d_sae 32,768 take half of it."""
HELD_BYTES = 1 << 30
"""Of token counts and decoder directions."""
ANSWERS_BYTES = 256 << 20
SMALL_BYTES = 16 << 10
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Counts:
    """The part of a pair's profile that set questions read; arrays are d_sae long."""

    n_samples: int
    n_tokens: int
    samples_any: npt.NDArray[np.int64]
    samples_last: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    """Tokens on which it fires."""
    largest: npt.NDArray[np.float32]

    def samples(self, pool: Pool) -> npt.NDArray[np.int64]:
        return self.samples_any if pool == "any" else self.samples_last

    def footprint(self, pool: Pool, min_samples: int) -> npt.NDArray[np.bool_]:
        """(d_sae,) True for the features that fire in at least so many samples."""
        return self.samples(pool) >= min_samples

    @property
    def nbytes(self) -> int:
        return n_bytes(self)


class Library:
    """A home as the services see it. Safe for several threads."""

    def __init__(self, home: Home, meaning: Meaning | None = None) -> None:
        self.home = home
        self.meaning = meaning
        self.store = home.store
        self._counts = Held(COUNTS_BYTES)
        self.held = Held(HELD_BYTES)
        self._pages, self._wholes = Shelf(ANSWERS_BYTES), Shelf(ANSWERS_BYTES)
        self._opened: dict[str, tuple[object, Any]] = {}
        self._lock = threading.Lock()
        self._seen = (-1, 0.0)

    def refresh(self) -> None:
        """Sees what was committed since; called once a request."""
        snapshot = self.home.database.scalar(NEWEST) or 0
        moment = time.monotonic()
        with self._lock:
            known, when = self._seen
            if snapshot == known and moment - when < REFRESH_SECONDS:
                return
            self._seen = (snapshot, moment)
        self.store.refresh()

    def opened(self, table: str, state: object) -> Any:
        """A handle of a table that changes often, kept with its caches until the state is another."""
        with self._lock:
            if self._opened.get(table, (None, None))[0] != state:
                self._opened[table] = (state, self.store.open(table))
            return self._opened[table][1]

    def check_store(self) -> str:
        """'ok', or 'empty' where nothing is indexed yet.

        Raises:
            OSError, ValueError: the store cannot be read.
        """
        with self.home.database.reading() as session:
            if not newest_snapshot(session) and not self.store.has("profiles"):
                return "empty"
        self.store.table("profiles").count_rows()
        return "ok"

    def counts(self, pair: int) -> Counts:
        """The counts of a pair of a finished run."""
        return self._counts.get(pair, lambda: self._read([pair])[pair])

    def expect(self, pairs: Iterable[int]) -> None:
        """Reads the counts that are not held yet, many pairs in one read: of a bucket every read is a wait of its own."""
        lacking = [pair for pair in dict.fromkeys(pairs) if not self._counts.holds(pair)]
        for begin in range(0, len(lacking), TOGETHER):
            for pair, counts in self._read(lacking[begin : begin + TOGETHER]).items():
                self._counts.put(pair, counts)

    def _read(self, pairs: Sequence[int]) -> dict[int, Counts]:
        columns = ["n_samples", "n_tokens", "samples_any", "samples_last", "tokens", "maxima"]
        rows = self.store.rows("profiles", [sample_key(pair) for pair in pairs], columns)
        found = {
            row.column("key")[0].as_py() >> SAMPLE_BITS: _counts(row)
            for row in map(rows.slice, range(len(rows)), repeat(1))
        }
        for pair in pairs:
            if pair not in found:
                raise WorkFailed(
                    f"the activation store has no profile of pair {pair}, which the database lists; restore one from a backup"
                )
        return found

    def remembered(self, key: object, compute: Callable[[], Answer]) -> Answer:
        """The result of a computation over finished runs, kept for the next pages of the same question.

        Arrays and bytes: of answers `Written` ones, because a million small objects cost the service half a second now and then.
        Those have a shelf of their own, from which the large results that they are pages of do not push them out.
        """
        for shelf in (self._pages, self._wholes):
            found = shelf.find(key)
            if found is not None:
                return found
        answer = compute()
        size = n_bytes(answer)
        (self._pages if isinstance(answer, Written) or size < SMALL_BYTES else self._wholes).put(key, answer, size)
        return answer


def _counts(row: pa.Table) -> Counts:
    """Those of one row of `profiles`; copies, which hold no more of what was read than themselves."""
    lists = {name: flat_column(row.column(name))[0] for name in ("samples_any", "samples_last", "tokens", "maxima")}
    return Counts(
        n_samples=row.column("n_samples")[0].as_py(),
        n_tokens=row.column("n_tokens")[0].as_py(),
        samples_any=lists["samples_any"].copy(),
        samples_last=lists["samples_last"].copy(),
        tokens=lists["tokens"].copy(),
        largest=VALUE_OF_BITS[lists["maxima"]].astype(np.float32),
    )


def n_bytes(answer: object) -> int:
    """What an answer holds in memory, about: its arrays, and a little for everything else."""
    if isinstance(answer, np.ndarray):
        return answer.nbytes
    if isinstance(answer, bytes):
        return len(answer)
    if isinstance(answer, dict):
        return sum(map(n_bytes, answer.values()))
    if isinstance(answer, list | tuple):
        return sum(map(n_bytes, answer))
    return sum(map(n_bytes, vars(answer).values())) if is_dataclass(answer) else 64
