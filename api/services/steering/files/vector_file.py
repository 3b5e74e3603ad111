"""What every format of vector files has in common, and what is refused in all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from schema.errors import InputError, TooLarge
from schema.wire.vectors import MOST_LAYERS

Floats = npt.NDArray[np.float32]
MOST_BYTES = 64 << 20
WIDEST = 1 << 17
"""Numbers a layer."""


@dataclass(frozen=True)
class VectorFile:
    """A vector as a file has it: layers are those of the home, counted from 0, after the block."""

    layers: Mapping[int, Floats]
    """Layer -> (d_model,), ascending, each finite and not zero."""
    model: str | None = None
    """The model's name, where the file says it."""
    family: str | None = None
    """`model_type` of its configuration, such as `qwen3`."""
    name: str | None = None
    description: str | None = None
    empty_layers: Sequence[int] = field(default=())
    """Left out because their vectors are zero."""

    @property
    def d_model(self) -> int:
        return len(next(iter(self.layers.values())))


def check_size(data: bytes) -> None:
    """Raises TooLarge or InputError for what cannot be a file of vectors."""
    if not data:
        raise InputError("the file is empty")
    if len(data) > MOST_BYTES:
        raise TooLarge(f"the file has {len(data):,} bytes; a vector's has {MOST_BYTES:,} at most")


def checked(layers: Mapping[int, npt.NDArray[Any]], **said: Any) -> VectorFile:
    """The file, if its numbers can be steered with.

    Raises:
        InputError: no layer, too many, different widths, numbers that are not finite, or zero everywhere.
    """
    if not layers:
        raise InputError("the file has no layer's vector")
    if len(layers) > MOST_LAYERS:
        raise InputError(f"the file has {len(layers):,} layers; at most {MOST_LAYERS} are taken")
    widths = {vector.shape for vector in layers.values()}
    if len(widths) > 1 or any(len(shape) != 1 or not 0 < shape[0] <= WIDEST for shape in widths):
        some = " and ".join(sorted({"x".join(map(str, shape)) or "no numbers" for shape in widths})[:3])
        raise InputError(f"the file's vectors have {some} numbers; each layer has one row, all of the same width")
    found: dict[int, Floats] = {}
    for layer in sorted(layers):
        if layer < 0:
            raise InputError(f"the file has layer {layer}; layers are counted from 0")
        with np.errstate(over="ignore"):
            vector = np.ascontiguousarray(layers[layer], np.float32)
        if not np.isfinite(vector).all():
            raise InputError(f"layer {layer} of the file has numbers that are not finite in float32")
        found[layer] = vector
    filled = {layer: vector for layer, vector in found.items() if vector.any()}
    if not filled:
        raise InputError("every number of the file is zero, so it steers nothing")
    empty = [layer for layer in found if layer not in filled]
    return VectorFile(filled, **{name: _text(value) for name, value in said.items()}, empty_layers=empty)


def digest_of(layers: Mapping[int, Floats]) -> str:
    """Of numbers and layers, as our own files carry it: nothing else would tell that a bit of them fell over on the way."""
    digest = hashlib.sha256()
    for layer, vector in layers.items():
        digest.update(f"{layer}:".encode() + vector.astype("<f4").tobytes())
    return digest.hexdigest()


def check_digest(file: VectorFile, said: object) -> VectorFile:
    """The file, if its digest is the one that it says; nothing is asked of one that says none.

    Raises:
        InputError: it is another.
    """
    if isinstance(said, str) and said != digest_of(file.layers):
        raise InputError(
            "the file's numbers do not have the sha256 that it says; fetch it again, or leave the sha256 out of it if they "
            "were changed on purpose"
        )
    return file


def as_layer(value: object, what: str) -> int:
    """A layer's number.

    Raises:
        InputError: it is none.
    """
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 6:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 100_000:
        raise InputError(f"{what} is {str(value)[:40]!r}, not a layer's number")
    return value


def _text(value: object) -> str | None:
    return value[:2_000] if isinstance(value, str) and value else None
