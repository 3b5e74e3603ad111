"""Safetensors: a tensor `layer.<n>` for each layer, float32, and what it is in the file's metadata."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from api.services.steering.files.vector_file import VectorFile, check_digest, checked, digest_of
from schema.errors import InputError

_NAME = re.compile(r"(?:layer|layers|direction)\.(\d{1,5})")
_KINDS = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}


def write_safetensors(file: VectorFile) -> bytes:
    """The file's bytes."""
    said = {"format": "scopebase-vector", "model": file.model, "model_type": file.family, "name": file.name}
    said |= {"description": file.description, "sha256": digest_of(file.layers)}
    metadata = {key: value for key, value in said.items() if value is not None}
    return save({f"layer.{layer}": vector for layer, vector in file.layers.items()}, metadata)


def read_safetensors(data: bytes) -> VectorFile:
    """Tensors `layer.<n>` (or `direction.<n>`), of float16, bfloat16, float32 or float64.

    Raises:
        InputError: no safetensors file, tensors of other names or kinds, or numbers that its `sha256` does not fit.
    """
    try:
        tensors = deserialize(data)
    except SafetensorError as error:
        raise InputError(f"the file is no whole safetensors file: {str(error)[:120]}") from None
    layers: dict[int, npt.NDArray[Any]] = {}
    for name, tensor in tensors:
        match = _NAME.fullmatch(name)
        if match is None:
            raise InputError(f"tensor {name[:60]!r}: a layer's vector is called layer.<n>, like layer.12")
        if int(match[1]) in layers:
            raise InputError(f"the file has layer {int(match[1])} twice")
        layers[int(match[1])] = _array(name, tensor)
    said = _metadata(data)
    found = checked(
        layers, model=said.get("model"), family=said.get("model_type"), name=said.get("name"),
        description=said.get("description"),
    )  # fmt: skip
    return check_digest(found, said.get("sha256"))


def _array(name: str, tensor: dict[str, Any]) -> npt.NDArray[Any]:
    if tensor["dtype"] == "BF16":  # the upper half of a float32
        wide = np.frombuffer(tensor["data"], "<u2").astype("<u4") << 16
        return wide.view("<f4").reshape(tensor["shape"])
    if tensor["dtype"] not in _KINDS:
        raise InputError(f"tensor {name[:60]!r} is {tensor['dtype']}; a vector is F32, F16, BF16 or F64")
    return np.frombuffer(tensor["data"], _KINDS[tensor["dtype"]]).reshape(tensor["shape"])


def _metadata(data: bytes) -> dict[str, Any]:
    """Of a file that the library has found to be whole."""
    length = int.from_bytes(data[:8], "little")
    found = json.loads(data[8 : 8 + length]).get("__metadata__")
    return found if isinstance(found, dict) else {}
