"""Answers as tables. Arrow and pandas are imported when somebody asks for one: the client does not bring them."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from schema.errors import InputError


def rows_of(items: Iterable[BaseModel | dict[str, Any]]) -> list[dict[str, Any]]:
    return [item if isinstance(item, dict) else item.model_dump() for item in items]


def columns_of(shape: type[BaseModel]) -> list[str]:
    """The columns of a table of this shape's `data`, which an empty one has too."""
    data = shape.model_fields.get("data")
    item = next(iter(get_args(data.annotation)), None) if data is not None else None
    return list(item.model_fields) if isinstance(item, type) and issubclass(item, BaseModel) else []


def to_arrow(rows: list[dict[str, Any]], columns: Sequence[str] = ()) -> Any:
    """A `pyarrow.Table`; what is nested stays nested.

    Args:
        columns: those of a table without rows.

    Raises:
        InputError: pyarrow is not installed.
    """
    pyarrow = _library("pyarrow", "a table")
    if not rows:
        return pyarrow.table({name: pyarrow.nulls(0) for name in columns})
    return pyarrow.Table.from_pylist(rows)


def to_pandas(rows: list[dict[str, Any]], columns: Sequence[str] = ()) -> Any:
    """A `pandas.DataFrame`; dictionaries such as `counts` become columns such as `counts.gsm8k`.

    Args:
        columns: those of a frame without rows.

    Raises:
        InputError: pandas is not installed.
    """
    pandas = _library("pandas", "a data frame")
    flat = [dict(_flat(row)) for row in rows]
    return pandas.DataFrame.from_records(flat, columns=None if flat else list(columns))


def _flat(row: dict[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + str(name), value


def _library(name: str, what: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f"{what} needs {name}; pip install {name}") from None
