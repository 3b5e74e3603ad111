"""Where a job's model, SAEs and datasets may lie: on the hub, or under the folder that its worker was started with.

Whoever submits a job may not read the worker's other files. Here is what the words alone tell; what lies behind them the worker checks.
"""

from __future__ import annotations

import re

from schema.errors import InputError

HUB = "hub:"
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?"
_REPOSITORY = re.compile(rf"{_NAME}/{_NAME}(?:/[A-Za-z0-9._/-]+)?(?:@[A-Za-z0-9._/-]+)?")
_HUB_DATASET = re.compile(rf"{_NAME}/{_NAME}(?::[A-Za-z0-9._-]*){{0,2}}")


def check_place(text: str) -> str:
    """A place, if it can be one.

    Raises:
        InputError: it is empty, absolute, leads upwards, or is an address of another kind.
    """
    if not text.strip() or not text.isprintable():
        raise InputError(f"{text[:80]!r} is no name of a file or of a repository on the hub")
    if text.startswith(HUB):
        if not _HUB_DATASET.fullmatch(text.removeprefix(HUB)) or ".." in text:
            raise InputError(f"{text!r} is not hub:<owner>/<dataset>[:<config>][:<split>]")
        return text
    parts = re.split(r"[/\\]", text)
    if text.startswith(("/", "\\", "~")) or re.match(r"[A-Za-z]:", text) or "://" in text:
        raise InputError(
            f"{text!r}: a job names files by their path under the worker's --data-root, or a repository on the hub"
        )
    if ".." in parts:
        raise InputError(f"{text!r} leads out of the worker's --data-root; name a file in it")
    return text


def is_repository(text: str) -> bool:
    """Whether it is written as a repository on the hub: `owner/name[/folder][@revision]`."""
    return ".." not in text and _REPOSITORY.fullmatch(text) is not None
