"""Reading PyTorch files that strangers made: tensors only, never code, never more than the file's own size."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from schema.errors import InputError

_SLACK = 1 << 20


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A `.pt` file that holds a dictionary of tensors, memory-mapped.

    `weights_only` builds nothing but tensors and plain containers, and there is no fallback: a file that needs more is refused.

    Raises:
        InputError: what the file is instead.
    """
    _check_archive(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path.name} holds {_culprit(str(error))}, not only tensors; Scopebase never runs what a file brings, use one of tensors only"
        ) from None
    except Exception as error:  # the unpickler stumbles over damaged bytes in any way there is
        raise InputError(f"{path.name} is a damaged PyTorch file ({_reason(error)}); fetch it again") from None
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise InputError(f"{path.name} holds a {type(loaded).__name__}, not a dictionary of tensors")
    return {str(name): tensor for name, tensor in loaded.items()}


def _check_archive(path: Path) -> None:
    """Refuses what is no PyTorch archive, or one that would unpack to more than it is."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if not head.startswith(b"PK\x03\x04"):
        raise InputError(f"{path.name} {_what_else(head)}; fetch the file itself, as torch.save writes it")
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except Exception:  # zipfile checks little of what a directory says before it uses it
        raise InputError(f"{path.name} is cut short or damaged ({size:,} bytes); fetch it again") from None
    if unpacked > size + _SLACK:
        raise InputError(
            f"{path.name} would unpack from {size:,} to {unpacked:,} bytes; torch.save never compresses, so this file is refused"
        )


def _what_else(head: bytes) -> str:
    if not head:
        return "is empty"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file it points to"
    if head.lstrip()[:1] == b"<":
        return "is a web page, perhaps an error page that was saved"
    if head.startswith(b"\x80"):
        return "is a bare pickle, which can hold code"
    return "is no PyTorch archive"


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def _culprit(message: str) -> str:
    match = re.search(r"GLOBAL (\S+)", message) or re.search(
        r"(?:class|global|function):? ['\"]?([\w.]+\.\w+)", message
    )
    return f"code ({match[1]})" if match else "code or objects"
