"""What a job's words lead to on the machine of its worker: a file under the folder that the worker was started with, or the hub.

`schema.places` has refused what the words alone give away. Here links are followed, and what would be read in the worker's own
directory is refused: a hub's name must not open a folder that happens to be called like it.
"""

from __future__ import annotations

import os
from pathlib import Path

from schema.errors import InputError
from schema.places import HUB, check_place, is_repository


def dataset_source(root: Path | None, text: str) -> str:
    """The source of a dataset, as readers take it.

    Raises:
        InputError: it lies elsewhere, or is not there.
    """
    check_place(text)
    if text.startswith(HUB):
        _check_nothing_here(text.removeprefix(HUB).partition(":")[0])
        return text
    found = _under(root, text)
    if found is None:
        raise InputError(f"{text!r} is not {_where(root)}; a dataset of the hub is written hub:<owner>/<dataset>")
    return str(found)


def repository(root: Path | None, text: str) -> str:
    """A model or a release of SAEs: a path under the root where there is one, else a repository on the hub.

    Raises:
        InputError: it lies elsewhere, or is neither.
    """
    check_place(text)
    found = _under(root, text)
    if found is not None:
        return str(found)
    if not is_repository(text):
        raise InputError(f"{text!r} is not {_where(root)}, and is no repository on the hub (owner/name)")
    _check_nothing_here(text)
    return text


def _under(root: Path | None, text: str) -> Path | None:
    """What is there, with everything in it under the root, whatever links it goes through."""
    if root is None:
        return None
    bounds = root.resolve()
    found = (bounds / text).resolve()
    if not found.is_relative_to(bounds):
        raise _leads_out(text)
    if not found.exists():
        return None
    for folder, folders, files in os.walk(found):
        for name in (*folders, *files):
            if not Path(folder, name).resolve().is_relative_to(bounds):
                raise _leads_out(f"{text}/{Path(folder, name).relative_to(found)}")
    return found


def _leads_out(text: str) -> InputError:
    return InputError(f"{text!r} is a link that leads out of the worker's --data-root; copy the file there")


def _check_nothing_here(text: str) -> None:
    if Path(text).exists() or Path(text.partition("@")[0]).exists():
        raise InputError(
            f"{text!r} is also a path where the worker was started, which a job may not read; start the worker elsewhere"
        )


def _where(root: Path | None) -> str:
    return (
        "under the worker's --data-root"
        if root is not None
        else "to be had: the worker was started without --data-root"
    )
