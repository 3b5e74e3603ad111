"""dictionary_learning: `ae.pt` and `config.json`, whose trainer names the class, one of `CLASSES`.

All subtract their decoder's bias first, but JumpReluAutoEncoder. Batch top-k SAEs have one threshold for all features when they are used.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePosixPath

import torch
from torch import Tensor

from indexer.saes.place import Place
from indexer.saes.reading import beside, hub_path, needed, one_a_layer, read_json, turned, whole_number
from indexer.saes.sae import Sae, ungated
from indexer.saes.torch_file import read_tensors
from schema.errors import InputError

NAME = "dictionary-learning"
WEIGHTS = "ae.pt"
CONFIG = "config.json"
Tensors = dict[str, Tensor]
_LINEAR = ("encoder.weight", "decoder.weight", "encoder.bias")
_MATRICES = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")


def layers(place: Place) -> dict[int, str]:
    """Layer -> file; empty where the release is of another format."""
    files = [name for name in place.names() if PurePosixPath(name).name == WEIGHTS]
    found = [(layer, name) for name in files if (layer := _layer_of(place, name)) is not None]
    if files and not found:
        where = _trainer(place, files[0]).get("submodule_name")
        raise InputError(
            f"{place.path}: submodule {where!r} is not what a block returns (resid_post_layer_<n>), the only one read"
        )
    return one_a_layer(place, found)


def name(place: Place) -> str:
    """The release's name; of one trainer's folder, with the folders above it that it needs to be told apart."""
    parts = place.path.split("/")
    at = next((i for i, part in enumerate(parts) if re.fullmatch(r"resid_post_layer_\d+", part)), None)
    return place.name if not at else "-".join([parts[at - 1], *parts[at + 1 :]])


def load(place: Place, layer: int, file: str) -> Sae:
    """One layer's SAE.

    Raises:
        InputError: a class that is not read, or a missing or broken file.
    """
    trainer = _trainer(place, file)
    if _layer(trainer) != layer:
        raise InputError(f"{beside(file, CONFIG)}: {trainer.get('submodule_name')!r} is not what block {layer} returns")
    kind = str(trainer.get("dict_class"))
    if kind not in CLASSES:
        raise InputError(f"{beside(file, CONFIG)}: class {kind!r} is not read; {', '.join(CLASSES)} are")
    tensors = read_tensors(place.get(file))
    k = tensors["k"].item() if "k" in tensors and tensors["k"].numel() == 1 else trainer.get("k")
    if trainer.get("k") not in (None, k):
        raise InputError(
            f"{beside(file, CONFIG)} says k = {trainer['k']!r}, {file} k = {k!r}; they do not belong together"
        )
    return CLASSES[kind](layer, tensors, k, file)


def _relu(layer: int, tensors: Tensors, _k: object, file: str) -> Sae:
    W_enc, W_dec, b_enc, b_dec = needed(tensors, (*_LINEAR, "bias"), file)
    return Sae(layer, W_enc, W_dec, b_enc, b_dec, activation="relu", subtract_b_dec=True)


def _gated(layer: int, tensors: Tensors, _k: object, file: str) -> Sae:
    names = ("encoder.weight", "decoder.weight", "decoder_bias", "r_mag", "gate_bias", "mag_bias")
    W_enc, W_dec, b_dec, r_mag, gate, magnitude = needed(tensors, names, file)
    weight, b_enc, threshold = ungated(W_enc, r_mag, gate, magnitude, file)
    return _with_threshold(layer, weight, W_dec, b_enc, b_dec, threshold)


def _top_k(layer: int, tensors: Tensors, k: object, file: str) -> Sae:
    W_enc, W_dec, b_enc, b_dec = needed(tensors, (*_LINEAR, "b_dec"), file)
    k = whole_number(k, f"k of {file}")
    return Sae(layer, W_enc, W_dec, b_enc, b_dec, activation="topk", k=k, subtract_b_dec=True)


def _batch_top_k(layer: int, tensors: Tensors, _k: object, file: str) -> Sae:
    W_enc, W_dec, b_enc, b_dec, threshold = needed(tensors, (*_LINEAR, "b_dec", "threshold"), file)
    return _with_threshold(layer, W_enc, W_dec, b_enc, b_dec, _one_for_all(threshold, b_enc, file))


def _matryoshka(layer: int, tensors: Tensors, _k: object, file: str) -> Sae:
    W_enc, W_dec, b_enc, b_dec, threshold = needed(tensors, _MATRICES, file)
    W_enc, W_dec = turned(W_enc, "W_enc", file), turned(W_dec, "W_dec", file)
    return _with_threshold(layer, W_enc, W_dec, b_enc, b_dec, _one_for_all(threshold, b_enc, file))


def _jump_relu(layer: int, tensors: Tensors, _k: object, file: str) -> Sae:
    W_enc, W_dec, b_enc, b_dec, threshold = needed(tensors, _MATRICES, file)
    W_enc, W_dec = turned(W_enc, "W_enc", file), turned(W_dec, "W_dec", file)
    return Sae(layer, W_enc, W_dec, b_enc, b_dec, activation="jumprelu", threshold=threshold)


def _with_threshold(layer: int, W_enc: Tensor, W_dec: Tensor, b_enc: Tensor, b_dec: Tensor, threshold: Tensor) -> Sae:
    return Sae(layer, W_enc, W_dec, b_enc, b_dec, activation="jumprelu", threshold=threshold, subtract_b_dec=True)


def _one_for_all(threshold: Tensor, b_enc: Tensor, file: str) -> Tensor:
    if threshold.numel() != 1 or not threshold.is_floating_point():
        raise InputError(f"{file}: threshold has shape {tuple(threshold.shape)}, batch top-k has one number")
    if threshold.item() < 0:
        raise InputError(f"{file}: threshold is {threshold.item()}: the SAE was saved before its training had set one")
    return torch.full_like(b_enc, threshold.item())


CLASSES: dict[str, Callable[[int, Tensors, object, str], Sae]] = {
    "AutoEncoder": _relu,
    "GatedAutoEncoder": _gated,
    "AutoEncoderTopK": _top_k,
    "BatchTopKSAE": _batch_top_k,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "JumpReluAutoEncoder": _jump_relu,
}


def _trainer(place: Place, file: str) -> dict[str, object]:
    trainer = read_json(place, beside(file, CONFIG)).get("trainer")
    if not isinstance(trainer, dict):
        raise InputError(f"{beside(file, CONFIG)} of {place.name} names no trainer, as dictionary_learning writes it")
    return trainer


def _layer_of(place: Place, file: str) -> int | None:
    """By its folders where they say it, so that not every configuration of a large release is fetched."""
    match = re.search(r"/([a-z_]+)_layer_(\d{1,4})/", hub_path(place, file))
    if match:
        return int(match[2]) if match[1] == "resid_post" else None
    return _layer(_trainer(place, file))


def _layer(trainer: dict[str, object]) -> int | None:
    """The block whose output it reads; None for another place."""
    where = str(trainer.get("submodule_name") or "")
    match = re.fullmatch(r"resid_post_layer_(\d{1,4})|(?:.*\.)?(?:layers|h|blocks)\.(\d{1,4})", where)
    return int(match[1] or match[2]) if match else None
