"""Datasets and slices of them, as commands take them: `mmlu[subject=anatomy]`, or a name and `--where`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Optional

import typer

from schema.errors import InputError
from schema.wire.query import DatasetPart
from scopebase.cli.expression import parse_part
from scopebase.cli.options import checked, read_text

PART = "NAME, NAME@VERSION, or a slice: 'NAME[field=value]', as in query."
WhereOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--where",
        help='Only samples whose fields meet this: JSON as in query, such as \'{"subject": "anatomy"}\', or @FILE that holds it.',
        show_default=False,
    ),
]


def read_part(text: str, where: str | None = None) -> DatasetPart:
    """The dataset or slice that was typed.

    Raises:
        InputError: brackets or a condition that cannot be read, or both of them.
    """
    part = checked(DatasetPart, parse_part(text))
    if where is None:
        return part
    if part.where or part.where_not:
        raise InputError(f"{text}: give the slice in brackets or with --where, one of them")
    from api.services.slices import read_condition

    condition = read_text(where[1:]) if where.startswith("@") else where
    return part.model_copy(update={"where": read_condition(condition, "--where")})


def read_parts(texts: Sequence[str]) -> list[DatasetPart]:
    return [read_part(text) for text in texts]
