"""Files of a store on a disk: forced onto it, and whole.

Lance never asks for either. On a disk that fills up it may leave a file cut off and take it for written; whatever it does write ends in
the same four bytes, and so a file is known to be whole.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from schema.errors import WorkFailed

_END = b"LANC"
_ENDING = (".lance", ".manifest")
"""Of the names of Lance's files that end so: data, indexes and manifests."""
_FULL = ("No space left", "os error 28", "Disk quota")


def fsync_files(paths: Iterable[Path], *, missing_ok: bool = False) -> None:
    """Files, then the directories that name them, onto the disk.

    Raises:
        FileNotFoundError: a file is not there, unless `missing_ok`: what another process has removed needs no forcing.
        OSError: ENOSPC where a file is cut off.
    """
    folders = set()
    for path in paths:
        _fsync(path, missing_ok)
        folders.add(path.parent)
    for folder in folders:
        _fsync(folder, missing_ok)


def check_whole(paths: Iterable[Path]) -> None:
    """Raises OSError (ENOSPC) where one of Lance's files is cut off; for files that are to be named before they are forced."""
    for path in paths:
        if is_cut(path):
            raise _cut_off(path)


def is_cut(path: Path) -> bool:
    """Whether the end of one of Lance's files is missing. Of other files, and those that somebody has just removed, nothing is known."""
    try:
        with open(path, "rb") as file:
            return path.suffix in _ENDING and _lacks_end(file.fileno())
    except FileNotFoundError:
        return False


def disk_is_full(error: BaseException) -> bool:
    return any(words in str(error) for words in _FULL)


@contextmanager
def without_panic(what: str) -> Iterator[None]:
    """Lance's panics at a manifest that makes no sense, which are no Exceptions, as OSError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise OSError(f"Lance cannot read {what}: {error}") from error


@contextmanager
def in_words_of_a_disk(url: str) -> Iterator[None]:
    """Says in one sentence that a store on a disk cannot be read.

    Raises:
        WorkFailed: a file that the store names is cut off, or the disk does not give it.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:  # Arrow's errors are ValueErrors
        text = str(error)
        if "LanceError(IO)" not in text or "not found" in text.lower() or disk_is_full(error):
            raise
        raise WorkFailed(
            f"the activation store {url} cannot be read ({text.splitlines()[0][:160]}); "
            "'scopebase verify --deep' says what is damaged, and '--mend' takes it out"
        ) from error


def _fsync(path: Path, missing_ok: bool) -> None:
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        if missing_ok:
            return
        raise
    try:
        os.fsync(handle)
        if path.suffix in _ENDING and stat.S_ISREG(os.fstat(handle).st_mode) and _lacks_end(handle):
            raise _cut_off(path)
    finally:
        os.close(handle)


def _cut_off(path: Path) -> OSError:
    return OSError(errno.ENOSPC, "No space left on device, the file was cut off", str(path))


def _lacks_end(handle: int) -> bool:
    size = os.fstat(handle).st_size
    return os.pread(handle, len(_END), max(0, size - len(_END))) != _END
