"""Llama Scope: `<model>-L<n>R-<w>x/hyperparams.json` and `checkpoints/final.safetensors`, encoder and decoder, weights and biases.

    x' = s x, s = sqrt(d_model) / mean norm          a = pre where pre > jump_relu_threshold, pre = encoder.weight x' + encoder.bias
    xhat = (decoder.weight a + decoder.bias) / s'    s' by the mean norm where it writes

s is folded into the weights, so activations are those of the authors' own code, which compares the threshold with the scaled
pre-activation (OpenMOSS/Language-Model-SAEs, 2024). Only the residual stream (`R`) is read. https://arxiv.org/abs/2410.20526
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import torch

from indexer.saes.place import Place
from indexer.saes.reading import RESIDUAL, needed, one_a_layer, read_json, read_safetensors, refuse_options
from indexer.saes.sae import Sae
from schema.errors import InputError

NAME = "llama-scope"
CONFIG = "hyperparams.json"
WEIGHTS = "checkpoints/final.safetensors"
_TENSORS = ("encoder.weight", "decoder.weight", "encoder.bias", "decoder.bias")
_PLAIN = {
    "act_fn": "jumprelu",
    "norm_activation": "dataset-wise",
    "apply_decoder_bias_to_pre_encoder": False,
    "use_glu_encoder": False,
    "sparsity_include_decoder_norm": False,
}


def layers(place: Place) -> dict[int, str]:
    """Layer -> file; empty where the release is of another format."""
    files = [name for name in place.names() if PurePosixPath(name).name == CONFIG]
    weights = {str(PurePosixPath(name).parent / WEIGHTS): name for name in files}
    weights = {file: config for file, config in weights.items() if file in place.names()}
    hooks = {file: _hooks(read_json(place, config)) for file, config in weights.items()}
    found = [(layer, file) for file in weights if (layer := _layer(hooks[file])) is not None]
    if weights and not found:
        raise InputError(
            f"{place.path}: hook point {next(iter(hooks.values()))[0]!r} is not the residual stream after a block, the only one read"
        )
    return one_a_layer(place, found)


def name(place: Place) -> str:
    """`Llama3_1-8B-Base-LXR-8x`, whether one layer's folder or all were given."""
    return re.sub(r"-L\d+([A-Z]+)-", r"-LX\1-", place.name)


def load(place: Place, layer: int, file: str) -> Sae:
    """One layer's SAE.

    Raises:
        InputError: an option that is not read, or a missing or broken file.
    """
    config_file = str(PurePosixPath(file).parent.parent / CONFIG) if "/" in file else f"../{CONFIG}"
    config = read_json(place, config_file)
    if config.get("act_fn", "jumprelu") == "jumprelu":  # the decoder's norm enters other activations only
        config = {**config, "sparsity_include_decoder_norm": False}
    refuse_options(config, _PLAIN, config_file)
    W_enc, W_dec, b_enc, b_dec = needed(read_safetensors(place.get(file), file), _TENSORS, file)
    threshold = config.get("jump_relu_threshold")
    if not isinstance(threshold, int | float) or isinstance(threshold, bool):
        raise InputError(f"{config_file}: jump_relu_threshold is {threshold!r}, which is no number")
    norms = config.get("dataset_average_activation_norm")
    read, write = (_scale(norms, end, len(b_dec), config_file) for end in ("in", "out"))
    return Sae(
        layer,
        W_enc.float() * read,
        W_dec.float() / write,
        b_enc,
        b_dec.float() / write,
        activation="jumprelu",
        threshold=torch.full((len(b_enc),), float(threshold)),
    )


def _scale(norms: object, end: str, d_model: int, file: str) -> float:
    norm = norms.get(end) if isinstance(norms, Mapping) else None
    if not isinstance(norm, int | float) or isinstance(norm, bool) or not 0 < norm < math.inf:
        raise InputError(f"{file}: dataset_average_activation_norm has no {end!r} that is a length")
    return math.sqrt(d_model) / norm


def _hooks(config: Mapping[str, Any]) -> tuple[str, str]:
    read = str(config.get("hook_point_in") or config.get("hook_point") or "")
    return read, str(config.get("hook_point_out") or read)


def _layer(hooks: tuple[str, str]) -> int | None:
    match = RESIDUAL.fullmatch(hooks[0])
    return int(match[1]) if match and hooks[0] == hooks[1] else None
