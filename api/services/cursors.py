"""Cursors: where the next page begins, and the snapshot that keeps the pages of one list consistent while runs are added."""

from __future__ import annotations

import re

from schema.errors import InputError

PATTERN = r"^[0-9]{1,15}-[0-9]{1,9}$"
"""`<offset>-<snapshot>`; the API's description has it, so that whatever fits it is a cursor."""


def write_cursor(offset: int, snapshot: int = 0) -> str:
    return f"{offset}-{snapshot}"


def read_cursor(cursor: str | None) -> tuple[int, int | None]:
    """(offset, snapshot) of a cursor; (0, None) without one.

    Raises:
        InputError: it is none that this server gave.
    """
    if cursor is None:
        return 0, None
    if not re.fullmatch(PATTERN, cursor, re.ASCII):
        raise InputError("cursor: not one that this server gave; leave it out to begin at the first page")
    offset, snapshot = cursor.split("-")
    return int(offset), int(snapshot) or None
