"""A list of typed items that can become a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel

from schema.wire.frames import rows_of, to_arrow, to_pandas

Item = TypeVar("Item", bound=BaseModel)


class Rows(list[Item]):
    """A list, and on request a table of the same."""

    def __init__(self, items: Iterable[Item], columns: Sequence[str] = ()) -> None:
        """Args:
        columns: those of a table without rows.
        """
        super().__init__(items)
        self._columns = columns

    def to_arrow(self) -> Any:
        """A `pyarrow.Table`."""
        return to_arrow(rows_of(self), self._columns)

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame`."""
        return to_pandas(rows_of(self), self._columns)
