"""Scans that outlive the files they began on.

Maintenance merges files and removes the old ones while somebody reads them. Rows never change, so a scan whose files are gone opens the
newest version and goes on with the rows that it has not handed over yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

OPENINGS = 10
"""How often one scan opens a newer version before it takes the fault for a damaged store."""


class Handed:
    """The keys that a scan has handed over: mostly stretches without a gap, of which only the ends are kept."""

    def __init__(self) -> None:
        self._stretches: list[tuple[int, int]] = []
        self._single: list[npt.NDArray[np.int64]] = []

    def add(self, keys: npt.NDArray[np.int64]) -> None:
        if not len(keys):
            return
        first, last = int(keys.min()), int(keys.max())
        if last - first + 1 != len(keys):
            self._single.append(keys.copy())
        elif self._stretches and self._stretches[-1][1] + 1 == first:
            self._stretches[-1] = (self._stretches[-1][0], last)
        else:
            self._stretches.append((first, last))

    def fresh(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows that were not handed over."""
        keys = batch.column("key").to_numpy()
        known = np.isin(keys, np.concatenate(self._single)) if self._single else np.zeros(len(keys), bool)
        for first, last in self._stretches:
            known |= (keys >= first) & (keys <= last)
        return batch if not known.any() else batch.filter(pa.array(~known))


def lasting(
    handle: Any, newest: Callable[[], Any], columns: Sequence[str] | None, **asked: Any
) -> Iterator[pa.RecordBatch]:
    """Batches of a scan, each row once, whatever maintenance does meanwhile.

    Args:
        handle: where it begins.
        newest: opens the newest version.
        columns: as of the scanner; None for all of them.
        asked: what else the scanner is told.
    """
    handed = Handed()
    names = None if columns is None else [*dict.fromkeys(["key", *columns])]
    for opening in range(OPENINGS):
        try:
            for read in handle.scanner(columns=names, **asked).to_batches():
                batch = handed.fresh(read) if opening else read
                handed.add(batch.column("key").to_numpy())
                if len(batch):
                    yield batch if columns is None or "key" in columns else batch.select([*columns])
            return
        except (OSError, pa.ArrowInvalid) as error:
            if "not found" not in str(error).lower() or opening == OPENINGS - 1:
                raise
            handle = newest()
