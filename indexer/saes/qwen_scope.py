"""Qwen-Scope releases: `layer{n}.sae.pt` with W_enc (d_sae, d_model), W_dec (d_model, d_sae), b_enc and b_dec.

b_dec is not subtracted before encoding. k stands in the release's name (`-L0_50`) or in its config.json, nowhere in the files.
"""

from __future__ import annotations

import json
import re

from indexer.saes.place import Place
from indexer.saes.sae import Sae
from indexer.saes.torch_file import read_tensors
from schema.errors import InputError

NAME = "qwen-scope"
_FILE = re.compile(r"layer(\d+)\.sae\.pt")
_TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec")


def layers(place: Place) -> dict[int, str]:
    """Layer -> file; empty where the release is of another format."""
    found = ((_FILE.fullmatch(name), name) for name in place.names())
    return {int(match[1]): name for match, name in found if match}


def load(place: Place, layer: int, file: str) -> Sae:
    """One layer's SAE.

    Raises:
        InputError: the file cannot be read safely or lacks a tensor, or k is unknown.
    """
    tensors = read_tensors(place.get(file))
    missing = [name for name in _TENSORS if name not in tensors]
    if missing:
        raise InputError(f"{file} has no tensor {missing[0]!r}; it holds {', '.join(sorted(tensors)) or 'nothing'}")
    W_enc, W_dec, b_enc, b_dec = (tensors[name] for name in _TENSORS)
    return Sae(layer, W_enc, W_dec, b_enc, b_dec, activation="topk", k=sparsity(place))


def sparsity(place: Place) -> int:
    """k, from the release's name and its config.json, which must agree."""
    match = re.search(r"L0_(\d+)", place.name)
    named = int(match[1]) if match else None
    stated = _config(place).get("k")
    if stated is not None and not (isinstance(stated, int) and not isinstance(stated, bool) and stated > 0):
        raise InputError(f"config.json of {place.name} says k = {stated!r}; k is a whole number from 1")
    if named and stated and named != stated:
        raise InputError(f"the name {place.name} says k = {named}, its config.json k = {stated}; mend one of them")
    k = named or stated
    if k is None:
        raise InputError(
            f'k of {place.name} is unknown: neither its name ends in -L0_<k>, nor has it a config.json with {{"k": ...}}'
        )
    return k


def _config(place: Place) -> dict[str, object]:
    if "config.json" not in place.names():
        return {}
    try:
        value = json.loads(place.get("config.json").read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"config.json of {place.name} is not JSON: {error}") from None
    return value if isinstance(value, dict) else {}
