"""JSON files of vectors: ours (the answers of /v1/steering-vectors), and Neuronpedia's.

Neuronpedia keeps a vector at a block's input, `hook_resid_pre` of layer n, which is the output of block n - 1: our layer n - 1.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from api.services.steering.files.vector_file import WIDEST, VectorFile, as_layer, checked
from schema.errors import InputError

_HOOK = re.compile(r"(?:blocks\.(?P<block>\d{1,5})\.)?(?:hook_)?resid[_-](?P<end>pre|post)")
STRENGTH = 10.0
"""Neuronpedia's own default, where the vector has no suggestion."""


def parse(data: bytes) -> Any:
    """The JSON document.

    Raises:
        InputError: it is none.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the file is no JSON: {str(error)[:120]}") from None


def read_ours(document: Any) -> VectorFile:
    """`{"vectors": [{"layer": 3, "vector": [...]}]}`, or one `{"layer": 3, "vector": [...]}`.

    Raises:
        InputError: something else, or numbers that its `sha256` does not fit.
    """
    rows = document.get("vectors", [document]) if isinstance(document, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "vector" in row for row in rows):
        raise InputError('the file has no vectors; ours are {"vectors": [{"layer": 3, "vector": [...]}]}')
    assert isinstance(document, dict)
    layers: dict[int, npt.NDArray[Any]] = {}
    for row in rows:
        layer = as_layer(row.get("layer"), "layer")
        if layer in layers:
            raise InputError(f"the file has layer {layer} twice")
        layers[layer] = numbers(row["vector"], f"vector of layer {layer}")
    name = document.get("name") or document.get("feature")
    found = checked(layers, model=document.get("model"), name=name, description=document.get("description"))
    if isinstance(document.get("sha256"), str) and not found.empty_layers:
        digest = hashlib.sha256(b"".join(v.astype("<f4").tobytes() for v in found.layers.values())).hexdigest()
        if digest != document["sha256"]:
            raise InputError("the file's numbers do not have the sha256 that it says; fetch it again")
    return found


def read_neuronpedia(document: Mapping[str, Any]) -> VectorFile:
    """`{"modelId": ..., "layerNumber": 4, "hookType": "hook_resid_pre", "vector": [...]}`, or a feature with a vector.

    Raises:
        InputError: another hook, or one before the first block.
    """
    match = _HOOK.fullmatch(str(document.get("hookType") or document.get("hookName")))
    if match is None:
        hook = str(document.get("hookType") or document.get("hookName"))[:60]
        raise InputError(f"hook {hook!r}: only the residual stream is steered, hook_resid_pre or hook_resid_post")
    number = document.get("layerNumber", match["block"])
    layer = as_layer(number, "layerNumber") - (match["end"] == "pre")
    if layer < 0:
        raise InputError(
            "hook_resid_pre of layer 0 is the embedding, which no block gives out; no layer here stands for it"
        )
    vector = numbers(document.get("vector"), "vector")
    return checked({layer: vector}, model=document.get("modelId"), name=document.get("vectorLabel"))


def write_neuronpedia(file: VectorFile, strength: float | None) -> bytes:
    """What Neuronpedia's /api/vector/new takes.

    Raises:
        InputError: vectors of several layers.
    """
    if len(file.layers) > 1:
        raise InputError(
            f"Neuronpedia keeps a vector of one layer, and this one has {len(file.layers)}; take another format"
        )
    ((layer, vector),) = file.layers.items()
    document = {
        "modelId": file.model,
        "layerNumber": layer + 1,
        "hookType": "hook_resid_pre",
        "vector": vector.tolist(),
        "vectorDefaultSteerStrength": STRENGTH if strength is None else strength,
        "vectorLabel": file.name,
    }
    return json.dumps(document).encode()


def numbers(value: object, what: str) -> npt.NDArray[np.float64]:
    """A JSON list of numbers.

    Raises:
        InputError: it is none, or far too long.
    """
    if not isinstance(value, list) or not 0 < len(value) <= WIDEST:
        raise InputError(f"{what} is no list of 1 to {WIDEST:,} numbers")
    if not all(type(each) in (int, float) for each in value):
        raise InputError(f"{what} holds something that is no number")
    try:
        return np.array(value, np.float64)
    except OverflowError:
        raise InputError(f"{what} holds a number beyond what float32 holds") from None
