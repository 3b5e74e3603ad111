"""EasySteer's SteeringSpec as JSON, as it goes into `extra_body.steering` of its server: vectors travel inside, as base64.

A layer is the decoder layer whose output is steered, counted from 0: ours. Only what is a plain direction is read.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from api.services.steering.files.vector_file import VectorFile, as_layer, checked
from schema.errors import InputError

WIRE_VERSION = 1
KIND = "direction"


def write_easysteer(file: VectorFile) -> bytes:
    """One `direct` vector at scale 1, at prompt and generated tokens."""
    tensors = {
        f"layer.{layer}": {"shape": [len(vector)], "data": base64.b64encode(vector.astype("<f4").tobytes()).decode()}
        for layer, vector in file.layers.items()
    }
    wire = {"version": WIRE_VERSION, "kind": KIND, "tensors": tensors, "extra": {}}
    vector = {
        "data": {**wire, "sha256": _digest(file.layers)},
        "algorithm": "direct",
        "scale": 1.0,
        "layers": list(file.layers),
        "normalize": False,
        "apply": {"prompt": "all", "generation": "all"},
        "name": file.name,
    }
    return json.dumps({"vectors": [vector], "conflict": "sequential"}).encode()


def read_easysteer(document: Mapping[str, Any]) -> VectorFile:
    """Its vectors, scaled; those of one layer are added up, as `sequential` does.

    Raises:
        InputError: an algorithm that is no plain addition, a path to a file, or bytes of another hash.
    """
    rows = document["vectors"]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows) or not rows:
        raise InputError("vectors: a list of objects, one at least")
    total: dict[int, npt.NDArray[Any]] = {}
    for place, row in enumerate(rows):
        for layer, vector in _layers(f"vectors.{place}", row).items():
            if layer in total and document.get("conflict", "priority") != "sequential":
                raise InputError(
                    f"two vectors steer layer {layer} and conflict is not sequential; import one at a time"
                )
            if layer in total and total[layer].shape != vector.shape:
                raise InputError(f"two vectors of layer {layer} have different widths")
            total[layer] = total[layer] + vector if layer in total else vector
    return checked(total, name=rows[0].get("name"))


def _layers(where: str, row: Mapping[str, Any]) -> dict[int, npt.NDArray[np.float32]]:
    algorithm, scale = row.get("algorithm", "direct"), row.get("scale", 1.0)
    if algorithm != "direct":
        raise InputError(f"{where}: algorithm {str(algorithm)[:40]!r} is no plain direction; only `direct` is read")
    if type(scale) not in (int, float) or not np.isfinite(np.float32(scale)):
        raise InputError(f"{where}: scale {str(scale)[:40]} is no finite number")
    data = row.get("data")
    if not isinstance(data, dict) or data.get("kind") != KIND or not isinstance(data.get("tensors"), dict):
        raise InputError(
            f"{where}: the numbers must be in the file, as data of kind direction; a source on another machine is not read"
        )
    wanted = row.get("layers")
    found = {}
    for name, tensor in data["tensors"].items():
        layer = as_layer(name.removeprefix("layer."), f"{where}: tensor")
        found[layer] = _bytes(f"{where}: tensor {name[:40]!r}", tensor)
    if isinstance(data.get("sha256"), str) and data["sha256"] != _digest(found):
        raise InputError(f"{where}: its numbers do not have the sha256 that it says; fetch it again")
    kept = {layer: v for layer, v in found.items() if not isinstance(wanted, list) or layer in wanted}
    if row.get("normalize"):
        kept = {layer: v / np.linalg.norm(v) if v.any() else v for layer, v in kept.items()}
    return {layer: v if scale == 1 else v * np.float32(scale) for layer, v in kept.items()}


def _bytes(where: str, tensor: object) -> npt.NDArray[np.float32]:
    try:
        if not isinstance(tensor, dict):
            raise TypeError
        raw = base64.b64decode(tensor["data"], validate=True)
        return np.frombuffer(raw, "<f4").reshape([int(n) for n in tensor["shape"]]).astype(np.float32)
    except (KeyError, TypeError, ValueError, OverflowError, binascii.Error):
        raise InputError(f"{where} is no base64 of float32 numbers with their shape") from None


def _digest(layers: Mapping[int, npt.NDArray[np.float32]]) -> str:
    """EasySteer's identity of a payload."""
    digest = hashlib.sha256(f"{KIND}:{WIRE_VERSION}".encode())
    for name, vector in sorted((f"layer.{layer}", vector) for layer, vector in layers.items()):
        digest.update(name.encode())
        digest.update(str(tuple(int(n) for n in vector.shape)).encode())
        digest.update(np.ascontiguousarray(vector, "<f4").tobytes())
    return digest.hexdigest()
