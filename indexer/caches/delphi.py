"""Reading a cache of Delphi: which activations lie on which tokens, and where in it the samples lie.

    <first>_<last>.safetensors   locations (n, 3) of row, position and latent - first; activations (n,); tokens (rows, context)

Nothing is held but one number a sample and the bounds of each piece of a file. A cache that Scopebase wrote says where its samples lie;
in any other one each row of tokens is a sample.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open

from schema.errors import InputError

Ints = npt.NDArray[np.int64]
PIECE = 1 << 18
"""Activations read at once."""
COUNTED = 1 << 24
"""Tokens whose activations are counted against k."""
SAMPLES = "samples.jsonl"
MANIFEST = "scopebase.json"


@dataclass(frozen=True)
class Piece:
    """Some activations of a file, and the tokens that they lie among."""

    file: int
    first: int
    stop: int
    lowest: int
    """Of the tokens, counted through all rows."""
    highest: int


@dataclass
class Fired:
    """Some activations, in no particular order."""

    token: Ints
    """Counted through all rows."""
    feature: Ints
    value: npt.NDArray[np.float32]


@dataclass
class Checked:
    """What one reading of all activations tells."""

    pieces: list[Piece] = field(default_factory=list)
    activations: int = 0
    negative: int = 0
    """Values of 0 or less, which do not fire here and are left out."""
    sha256: str = ""


@dataclass(frozen=True)
class CachedSample:
    """Where a sample lies, and what is known of it."""

    id: str
    first: int
    n_tokens: int
    fields: dict[str, Any]


class Cache:
    """One hook point of a Delphi cache.

    Raises:
        InputError: a file is missing or is none of a cache.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = _files(folder)
        self.width = self.files[-1][1]
        """Latents that the files speak of."""
        shape = self._slice(0, "tokens").get_shape()
        if len(shape) != 2 or not shape[0] * shape[1]:
            raise InputError(f"{self.files[0][2]}: its tokens have shape {shape}, a cache of Delphi has rows of tokens")
        self.context: int = shape[1]
        self.n_tokens: int = shape[0] * shape[1]

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What Scopebase said of the cache when it wrote it; empty for anybody else's."""
        return _read_json(_beside(self.folder, MANIFEST))

    @cached_property
    def config(self) -> dict[str, Any]:
        """Delphi's configuration of the cache."""
        return _read_json(self.folder / "config.json")

    def samples(self) -> Iterator[CachedSample]:
        """All samples in order.

        Raises:
            InputError: the list of them does not fit the cache.
        """
        listed = _beside(self.folder, SAMPLES)
        if not self.manifest:
            for row in range(self.n_tokens // self.context):
                yield CachedSample(str(row), row * self.context, self.context, {"row": row})
            return
        end = 0
        try:
            with listed.open(encoding="utf-8") as file:
                for line in file:
                    row = json.loads(line)
                    sample = CachedSample(str(row["id"]), int(row["first"]), int(row["n_tokens"]), row["fields"])
                    if sample.first < end or sample.n_tokens < 0 or sample.first + sample.n_tokens > self.n_tokens:
                        raise ValueError(f"sample {sample.id!r} lies outside of the cache, or in another sample")
                    end = sample.first + sample.n_tokens
                    yield sample
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise InputError(
                f"{listed} does not say where the samples of this cache lie ({str(error)[:120]}); export the cache again"
            ) from None

    def token_ids(self, first: int, stop: int) -> Ints:
        """The ids of tokens [first, stop), counted through all rows."""
        if stop <= first:
            return np.empty(0, np.int64)
        row = first // self.context
        block = self._slice(0, "tokens")[row : (stop - 1) // self.context + 1]
        return block.numpy().astype(np.int64).reshape(-1)[first - row * self.context : stop - row * self.context]

    def check(self, k: int | None, d_sae: int, advance: Callable[[int], None]) -> Checked:
        """Reads everything once.

        Args:
            k: of a top-k SAE: more activations on a token mean another SAE.
            advance: told how many activations were read.

        Raises:
            InputError: the cache is not whole, or cannot be of such an SAE.
        """
        self._check_whole(d_sae)
        found, digest = Checked(), hashlib.sha256()
        on_token = np.zeros(min(self.n_tokens, COUNTED), np.int64)
        for file, (_, _, path) in enumerate(self.files):
            digest.update(_sha256(path))
            for first, stop in _ranges(self._slice(file, "activations").get_shape()[0]):
                fired = self._read(file, first, stop)
                self._check_values(fired, path)
                found.negative += int((fired.value <= 0).sum())
                found.pieces.append(Piece(file, first, stop, int(fired.token.min()), int(fired.token.max())))
                here = fired.token[(fired.token < len(on_token)) & (fired.value > 0)]
                on_token += np.bincount(here, minlength=len(on_token)) if k else 0
                found.activations += stop - first
                advance(stop - first)
        if k and on_token.max(initial=0) > k:
            raise InputError(
                f"{self.folder}: {on_token.max():,} features fire on one token, the SAE has k = {k}: the cache is of another SAE"
            )
        found.sha256 = digest.hexdigest()
        return found

    def fired(self, pieces: list[Piece], first: int, stop: int) -> Fired:
        """What fires on tokens [first, stop)."""
        parts = []
        for piece in pieces:
            if piece.lowest < stop and piece.highest >= first:
                fired = self._read(piece.file, piece.first, piece.stop)
                kept = (fired.token >= first) & (fired.token < stop) & (fired.value > 0)
                parts.append(Fired(fired.token[kept], fired.feature[kept], fired.value[kept]))
        if not parts:
            return Fired(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
        return Fired(
            np.concatenate([part.token for part in parts]),
            np.concatenate([part.feature for part in parts]),
            np.concatenate([part.value for part in parts]),
        )

    def _read(self, file: int, first: int, stop: int) -> Fired:
        places = self._slice(file, "locations")[first:stop].numpy().astype(np.int64)
        value = self._slice(file, "activations")[first:stop].to(torch.float32).numpy()
        return Fired(places[:, 0] * self.context + places[:, 1], places[:, 2] + self.files[file][0], value)

    def _check_whole(self, d_sae: int) -> None:
        chosen = self.manifest.get("n_features", d_sae)
        if chosen != d_sae:
            raise InputError(
                f"{self.folder} holds {str(chosen)[:20]} chosen features of {d_sae:,}: the others would seem never to fire; "
                "export it without --features"
            )
        end = 0
        for first, stop, path in self.files:
            if first != end:
                raise InputError(
                    f"{self.folder} has no file of latents {end:,} to {first - 1:,} before {path.name}; fetch it"
                )
            end = stop
        if end != d_sae:
            raise InputError(
                f"{self.folder} has latents 0 to {end - 1:,}, the SAE has {d_sae:,} features: not the same"
            )
        for file, (_, _, path) in enumerate(self.files):
            self._check_shapes(file, path)

    def _check_shapes(self, file: int, path: Path) -> None:
        locations, values = (self._slice(file, name).get_shape() for name in ("locations", "activations"))
        tokens = self._slice(file, "tokens")
        rows = self.n_tokens // self.context
        if locations != [*values, 3] or tokens.get_shape() != [rows, self.context]:
            raise InputError(f"{path}: its locations, activations and tokens do not fit each other; cache it again")
        for at in range(0, rows, 1 << 14) if file else ():
            if not torch.equal(tokens[at : at + (1 << 14)], self._slice(0, "tokens")[at : at + (1 << 14)]):
                raise InputError(f"{path} has other tokens than {self.files[0][2].name}: they are not of one cache")

    def _check_values(self, fired: Fired, path: Path) -> None:
        if not np.isfinite(fired.value).all():
            raise InputError(f"{path} holds an activation that is not finite; cache it again in float32 or bfloat16")
        if fired.token.min() < 0 or fired.token.max() >= self.n_tokens:
            raise InputError(f"{path} speaks of token {fired.token.max():,}, the cache has {self.n_tokens:,}")
        first, stop = next(each[:2] for each in self.files if each[2] == path)
        if fired.feature.min() < first or fired.feature.max() >= stop:
            raise InputError(f"{path} speaks of latent {fired.feature.max():,}, which its name leaves out")

    def _slice(self, file: int, name: str) -> Any:
        path = self.files[file][2]
        try:
            with safe_open(path, framework="pt") as tensors:
                return tensors.get_slice(name)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is no file of a Delphi cache: {str(error)[:160]}") from None


def _files(folder: Path) -> list[tuple[int, int, Path]]:
    """(first, stop, file) of a hook point's latents, in their order."""
    found = []
    for path in folder.glob("*_*.safetensors"):
        match = re.fullmatch(r"(\d{1,9})_(\d{1,9})", path.stem)
        if match:
            found.append((int(match[1]), int(match[2]) + 1, path))
    if not found:
        raise InputError(f"{folder} holds no cache of Delphi (<first>_<last>.safetensors)")
    return sorted(found)


def _ranges(n: int) -> Iterator[tuple[int, int]]:
    for first in range(0, n, PIECE):
        yield first, min(n, first + PIECE)


def _beside(folder: Path, name: str) -> Path:
    """A file that Scopebase writes at the root of what it exports: `<root>/latents/<hookpoint>`."""
    return folder.parent.parent / name


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _sha256(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()
