"""Reading numpy archives that strangers made: arrays only, never objects, never more than the file can hold."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from schema.errors import InputError

RATIO = 4
"""How much larger than the file its arrays may be; weights hardly pack at all."""
_SLACK = 1 << 20


def read_arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of an `.npz` file.

    Raises:
        InputError: it is none, holds objects, or would unpack to far more than it is.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_sizes(path, archive)
            for entry in archive.infolist():
                _check_header(path, archive, entry)
    except InputError:
        raise
    except Exception as error:  # zipfile and numpy check little of what a file says before they use it
        raise InputError(
            f"{path.name} is no numpy archive, or is cut short ({str(error)[:120]}); fetch it again"
        ) from None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in arrays.files}
    except Exception as error:
        raise InputError(f"{path.name} is a damaged numpy archive ({str(error)[:120]}); fetch it again") from None


def _check_sizes(path: Path, archive: zipfile.ZipFile) -> None:
    size, unpacked = path.stat().st_size, sum(entry.file_size for entry in archive.infolist())
    if unpacked > RATIO * size + _SLACK:
        raise InputError(
            f"{path.name} would unpack from {size:,} to {unpacked:,} bytes; weights hardly pack, so this file is refused"
        )


def _check_header(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Refuses an array that says to be larger than its bytes: numpy would make room for it first."""
    with archive.open(entry) as file:
        try:
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, kind = read(file, max_header_size=10_000)
        except Exception as error:
            raise InputError(f"{path.name}: {entry.filename} is no array ({str(error)[:120]})") from None
    if kind.hasobject:
        raise InputError(f"{path.name}: {entry.filename} holds objects, which can hold code; an SAE is of numbers only")
    if math.prod(shape) * kind.itemsize > entry.file_size:
        raise InputError(
            f"{path.name}: {entry.filename} says to have shape {shape}, its bytes are too few; fetch it again"
        )
