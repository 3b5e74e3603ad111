"""Cursors: where the next page begins, and the snapshot that keeps the pages of one list consistent while runs are added."""

from __future__ import annotations

import base64
import json

from schema.errors import InputError


def write_cursor(offset: int, snapshot: int = 0) -> str:
    return base64.urlsafe_b64encode(json.dumps([offset, snapshot]).encode()).decode().rstrip("=")


def read_cursor(cursor: str | None) -> tuple[int, int | None]:
    """(offset, snapshot) of a cursor; (0, None) without one.

    Raises:
        InputError: it is none that this server gave.
    """
    if cursor is None:
        return 0, None
    try:
        offset, snapshot = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if not (
            isinstance(offset, int) and isinstance(snapshot, int) and 0 <= offset < 1 << 53 and 0 <= snapshot < 1 << 31
        ):
            raise ValueError
    except (ValueError, TypeError):
        raise InputError("cursor: not one that this server gave; leave it out to begin at the first page") from None
    return offset, snapshot or None
