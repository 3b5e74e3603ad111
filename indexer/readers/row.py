"""A row as its file holds it, and where that is."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One row of a dataset's source."""

    where: str
    """For error messages: `gsm8k.jsonl line 17`."""
    record: dict[str, Any]
    """Field -> value, of JSON's kinds."""
    fault: str | None = None
    """Why the row could not be read, where the rows after it still can."""


def plain(value: Any) -> Any:
    """A value that JSON can hold: moments and decimals as text, bytes as base64."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value)
