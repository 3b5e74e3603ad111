"""Reading Delphi's caches of activations, whoever wrote them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from api.services.exchange.compare import Theirs
from api.services.exchange.tensors import map_tensors
from schema.errors import Conflict, InputError

PIECE = 1 << 20
"""Activations read at once."""


def cache_folders(folder: Path) -> list[Path]:
    """The hook points of a Delphi result, of its `latents`, or of one of them.

    Raises:
        InputError: there is none.
    """
    for base in (folder, folder / "latents"):
        if base.is_dir():
            found = [base] if any(base.glob("*_*.safetensors")) else []
            found = found or sorted({path.parent for path in base.glob("*/*_*.safetensors")})
            if found:
                return found
    raise InputError(f"{folder} holds no cache of Delphi (latents/<hookpoint>/<first>_<last>.safetensors)")


def cache_of(folder: Path, hookpoint: str | None, layer: int | None) -> Path:
    """The hook point of a cache that an SAE's layer is.

    Raises:
        Conflict: it cannot be told which.
    """
    folders = cache_folders(folder)
    named = [path for path in folders if path.name == hookpoint] if hookpoint else folders
    if not hookpoint and len(named) > 1:
        named = [path for path in folders if str(layer) in path.name.split(".")]
    if len(named) == 1:
        return named[0]
    there = ", ".join(path.name for path in folders)
    raise Conflict(f"name the hook point with --hookpoint; {folder} has {there}")


def read_delphi(folder: Path) -> Iterator[Theirs]:
    """Every latent of a hook point's cache that fires, a file at a time.

    Raises:
        InputError: a file is none of a cache.
    """
    for first, stop, path in _splits(folder):
        arrays = map_tensors(path)
        locations, values = arrays.get("locations"), arrays.get("activations")
        if locations is None or values is None or locations.shape != (len(values), 3):
            raise InputError(f"{path} is no file of a Delphi cache: it has no locations or no activations")
        largest, fires = np.zeros(stop - first, np.float32), np.zeros(stop - first, np.int64)
        for begin in range(0, len(values), PIECE):
            latents = np.asarray(locations[begin : begin + PIECE, 2], np.int64)
            if latents.min() < 0 or latents.max() >= stop - first:
                wrong = int(latents.min() if latents.min() < 0 else latents.max())
                raise InputError(f"{path} speaks of latent {first + wrong:,}, which its name leaves out")
            np.maximum.at(largest, latents, np.asarray(values[begin : begin + PIECE], np.float32))
            fires += np.bincount(latents, minlength=stop - first)
        n_tokens = arrays["tokens"].size if "tokens" in arrays else 0
        for latent in np.flatnonzero(fires).tolist():
            density = float(fires[latent] / n_tokens) if n_tokens else None
            yield Theirs(first + latent, float(largest[latent]), density)


def _splits(folder: Path) -> list[tuple[int, int, Path]]:
    """(first, stop, file) of a hook point's latents, in their order."""
    found = []
    for path in folder.glob("*_*.safetensors"):
        match = re.fullmatch(r"(\d{1,9})_(\d{1,9})", path.stem)
        if match:
            found.append((int(match[1]), int(match[2]) + 1, path))
    return sorted(found)
