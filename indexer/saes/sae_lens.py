"""SAELens directories: `cfg.json` and `sae_weights.safetensors`, one directory an SAE, W_enc (d_in, d_sae) and W_dec (d_sae, d_in).

Read: architectures standard, topk, gated, jumprelu (as which SAELens saves BatchTopK and Matryoshka SAEs) and batchtopk training
checkpoints, in the nested configuration of version 6 and the flat one before it.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

import torch
from torch import Tensor

from indexer.saes.place import Place
from indexer.saes.reading import needed, read_json, read_safetensors, turned
from indexer.saes.sae import Sae, ungated
from schema.errors import InputError

NAME = "saelens"
CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
_HOOKS = (
    re.compile(r"blocks\.(\d+)\.hook_resid_post"),
    re.compile(r"blocks\.(\d+)\.hook_out"),
    re.compile(r"model\.layers\.(\d+)"),
)
_ACTIVATIONS = {
    "standard": "relu",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "batchtopk": "jumprelu",
    "gated": "jumprelu",
}


def layers(place: Place) -> dict[int, str]:
    """Layer -> the file of its weights; empty where the release is of another format."""
    names = set(place.names())
    found: dict[int, str] = {}
    for name in sorted(names):
        weights = str(PurePosixPath(name).with_name(WEIGHTS))
        if PurePosixPath(name).name == CONFIG and weights in names:
            layer = _layer(_config(place, name), name)
            if layer in found:
                raise InputError(
                    f"{place.name} has two SAEs of layer {layer}, {found[layer]} and {weights}; give the directory of one"
                )
            found[layer] = weights
    return found


def load(place: Place, layer: int, file: str) -> Sae:
    """The SAE of one weights file and the cfg.json beside it.

    Raises:
        InputError: an architecture or option that is not read, or a missing or broken file.
    """
    config_file = str(PurePosixPath(file).with_name(CONFIG))
    config = _config(place, config_file)
    architecture = _architecture(config, config_file)
    tensors = read_safetensors(place.get(file), file)
    if architecture == "gated":
        tensors = _ungated(tensors, file)
    needed(tensors, ("W_enc", "W_dec", "b_enc", "b_dec"), file)
    activation = _ACTIVATIONS[architecture]
    return Sae(
        layer=layer,
        W_enc=turned(tensors["W_enc"], "W_enc", file),
        W_dec=turned(tensors["W_dec"], "W_dec", file),
        b_enc=tensors["b_enc"],
        b_dec=tensors["b_dec"],
        activation=activation,
        k=_sparsity(config, config_file) if activation == "topk" else None,
        threshold=_threshold(tensors, file) if activation == "jumprelu" else None,
        subtract_b_dec=bool(config.get("apply_b_dec_to_input", True)),
        rescale_by_decoder_norm=bool(config.get("rescale_acts_by_decoder_norm", False))
        and architecture in ("topk", "batchtopk"),
    )


def _config(place: Place, file: str) -> dict[str, Any]:
    """cfg.json with its metadata laid flat, as versions before 6 wrote it."""
    value = read_json(place, file)
    metadata = value.get("metadata")
    return {**(metadata if isinstance(metadata, dict) else {}), **value}


def _layer(config: dict[str, Any], file: str) -> int:
    hook = config.get("hook_name") or config.get("hook_point") or config.get("hf_hook_name") or ""
    for pattern in _HOOKS:
        match = pattern.fullmatch(str(hook))
        if match:
            return int(match[1])
    raise InputError(
        f"{file}: hook point {hook!r} is not the residual stream after a block (blocks.<n>.hook_resid_post), the only one read"
    )


def _architecture(config: dict[str, Any], file: str) -> str:
    name = str(config.get("architecture", "standard"))
    if name == "standard" and config.get("activation_fn_str", config.get("activation_fn", "relu")) == "topk":
        name = "topk"
    if name not in _ACTIVATIONS:
        raise InputError(f"{file}: architecture {name!r} is not read; {', '.join(_ACTIVATIONS)} are")
    for option, plain in (("normalize_activations", "none"), ("reshape_activations", "none")):
        if config.get(option, plain) not in (plain, None):
            raise InputError(
                f"{file}: {option} = {config[option]!r} is not read; fold it into the weights with SAELens first"
            )
    return name


def _sparsity(config: dict[str, Any], file: str) -> int:
    k = config.get("k") or (config.get("activation_fn_kwargs") or {}).get("k")
    if not isinstance(k, int) or isinstance(k, bool):
        raise InputError(f"{file}: a topk SAE needs a whole number k, this one says {k!r}")
    return k


def _ungated(tensors: dict[str, Tensor], file: str) -> dict[str, Tensor]:
    """A gated SAE as the jumprelu that it is (see `indexer.saes.sae.ungated`)."""
    names = ("W_enc", "W_dec", "b_dec", "r_mag", "b_gate", "b_mag")
    W_enc, W_dec, b_dec, r_mag, b_gate, b_mag = needed(tensors, names, file)
    weight, bias, threshold = ungated(turned(W_enc, "W_enc", file), r_mag, b_gate, b_mag, file)
    return {"W_enc": weight.T, "W_dec": W_dec, "b_enc": bias, "b_dec": b_dec, "threshold": threshold}


def _threshold(tensors: dict[str, Tensor], file: str) -> Tensor:
    if "threshold" in tensors:
        return tensors["threshold"]
    if "topk_threshold" in tensors:
        return torch.full_like(tensors["b_enc"], float(tensors["topk_threshold"]))
    raise InputError(f"{file} has no tensor 'threshold', which a jumprelu needs")
