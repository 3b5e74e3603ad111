"""Gemma Scope 2: `resid_post/layer_<n>_width_<w>_l0_<size>/params.safetensors` with w_enc (d_model, d_sae), w_dec (d_sae, d_model), ...

A jumprelu; b_dec is not subtracted. The config.json beside it says where it reads: `hf_hook_point_in`, the same as `hf_hook_point_out`.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

from indexer.saes.place import Place
from indexer.saes.reading import (
    RESIDUAL,
    beside,
    needed,
    one_a_layer,
    read_json,
    read_safetensors,
    refuse_options,
    turned,
)
from indexer.saes.sae import Sae
from schema.errors import InputError

NAME = "gemma-scope-2"
WEIGHTS = "params.safetensors"
_TENSORS = ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")


def layers(place: Place) -> dict[int, str]:
    """Layer -> file; empty where the release is of another format. Folders of other places than the residual stream are passed over."""
    files = [name for name in place.names() if PurePosixPath(name).name == WEIGHTS]
    found = [(layer, name) for name in files if (layer := _layer(place, name)) is not None]
    if files and not found:
        raise InputError(
            f"{place.path} holds no SAE of the residual stream after a block (resid_post), the only one read"
        )
    return one_a_layer(place, found)


def name(place: Place) -> str:
    """`gemma-scope-2-1b-pt-width_16k-l0_small`: one SAE's folder without its layer, under the release's name."""
    leaf = re.fullmatch(r"layer_\d+_?(.*)", place.name)
    parts = [part for part in place.path.split("/")[:-1] if not part.startswith("resid_post")]
    return "-".join(filter(None, [*parts[-1:], leaf[1]])) if leaf else place.name


def load(place: Place, layer: int, file: str) -> Sae:
    """One layer's SAE.

    Raises:
        InputError: an architecture that is not read, or a missing or broken file.
    """
    config = read_json(place, beside(file, "config.json"))
    refuse_options(config, {"architecture": "jump_relu", "type": "sae"}, beside(file, "config.json"))
    if _hooked(config) != layer:
        raise InputError(
            f"{file}: it reads at {config.get('hf_hook_point_in')!r} and writes at {config.get('hf_hook_point_out')!r}, "
            f"which is not what block {layer} returns"
        )
    tensors = read_safetensors(place.get(file), file)
    if "affine_skip_connection" in tensors:
        raise InputError(f"{file} is a transcoder with a skip connection, which writes elsewhere than it reads")
    w_enc, w_dec, b_enc, b_dec, threshold = needed(tensors, _TENSORS, file)
    return Sae(
        layer,
        turned(w_enc, "w_enc", file),
        turned(w_dec, "w_dec", file),
        b_enc,
        b_dec,
        activation="jumprelu",
        threshold=threshold,
    )


def _layer(place: Place, file: str) -> int | None:
    """The block whose output an SAE reads and writes, by its folders where they say it; None for one of another place."""
    match = re.search(r"/([a-z_]+)/layer_(\d{1,4})[^/]*$", str(PurePosixPath(place.path, file).parent))
    if match:
        return int(match[2]) if match[1].startswith("resid_post") else None
    return _hooked(read_json(place, beside(file, "config.json")))


def _hooked(config: dict[str, Any]) -> int | None:
    hooks = {str(config[end]) for end in ("hf_hook_point_in", "hf_hook_point_out") if config.get(end)}
    match = RESIDUAL.fullmatch(hooks.pop()) if len(hooks) == 1 else None
    return int(match[1]) if match else None
