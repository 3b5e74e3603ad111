"""The scores of evaluations in the store: one row each, written before SQL lists it.

A row that SQL does not list is nobody's: an import that died left it, and the next one removes it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schema.errors import WorkFailed
from schema.home import Home
from schema.layout import SCORES, flat_column, list_column
from schema.publish import discard, publish, write
from schema.store import Store
from schema.upkeep import MANY_FRAGMENTS, maintain, remove_rows

TABLE = "scores"
ATTEMPTS = 5
Floats = npt.NDArray[np.float64]


def publish_scores(home: Home, evaluation: int, scores: Floats, listed: Collection[int]) -> None:
    """Writes the row of an evaluation whose transaction is open, and held alone.

    Args:
        listed: the ids that SQL lists, whether this transaction is committed or not; rows of others go.

    Raises:
        WorkFailed: the store cannot be written; the transaction must not be committed.
    """
    for _ in range(ATTEMPTS):
        keys = _latest(home.store).to_table(columns=["key"], filter="key >= 0").column("key").to_pylist()
        nobodys = [key for key in keys if key not in listed]
        if not nobodys:
            break
        for key in nobodys:
            remove_rows(home.store, TABLE, key, key + 1)
    else:
        raise WorkFailed("the table of scores is busy; run the same command again")
    rows = [pa.array([evaluation], pa.int64()), list_column(SCORES, "scores", scores, np.array([0, len(scores)]))]
    fragments = write(home.store, TABLE, pa.Table.from_arrays(rows, schema=SCORES))
    try:
        publish(home.store, TABLE, lambda: fragments)
    except WorkFailed:
        discard(home.store, {TABLE: fragments})
        raise


def read_scores(store: Store, evaluations: Sequence[int]) -> list[Floats]:
    """Each evaluation's scores by ordinal, NaN where a sample has none.

    Raises:
        WorkFailed: the store lacks a row that the database lists.
    """
    rows = store.rows(TABLE, evaluations)
    if len(rows) < len(evaluations):
        store.refresh()  # the table was opened before the newest of them was written
        rows = store.rows(TABLE, evaluations)
    if len(rows) < len(evaluations):
        raise WorkFailed("the activation store lacks scores that the database lists; restore one from a backup")
    values, offsets = flat_column(rows.column("scores"))
    return [values[offsets[i] : offsets[i + 1]] for i in range(len(evaluations))]


def drop_scores(home: Home, evaluations: Sequence[int]) -> None:
    """Removes rows that SQL does not list any more, and keeps the table small."""
    for evaluation in evaluations:
        remove_rows(home.store, TABLE, evaluation, evaluation + 1)
    if len(_latest(home.store).get_fragments()) > 2 * MANY_FRAGMENTS:
        maintain(home.store, TABLE, lambda: True)
    home.store.refresh()


def _latest(store: Store) -> Any:
    return store.latest(TABLE)
