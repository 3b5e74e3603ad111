"""Gemma Scope: `layer_<n>/width_<w>/average_l0_<l0>/params.npz`, W_enc (d_model, d_sae), W_dec (d_sae, d_model), biases, threshold.

A jumprelu; b_dec is not subtracted. Only the residual stream (`-res`) is read. https://arxiv.org/abs/2408.05147
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from indexer.saes.numpy_file import read_arrays
from indexer.saes.place import Place
from indexer.saes.reading import hub_path, needed, one_a_layer, turned
from indexer.saes.sae import Sae
from schema.errors import InputError

NAME = "gemma-scope"
WEIGHTS = "params.npz"
_LAYER = re.compile(r"layer_(\d{1,4})")
_TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")


def layers(place: Place) -> dict[int, str]:
    """Layer -> file; empty where the release is of another format."""
    files = [name for name in place.names() if PurePosixPath(name).name == WEIGHTS]
    found = [(int(match[1]), name) for name in files for match in [_layer(hub_path(place, name))] if match]
    if files and not found:
        raise InputError(f"{place.path} does not say its layer; keep Gemma Scope's folders (layer_12/width_16k/...)")
    site = re.search(r"gemma-scope-[^/]*-(att|mlp|transcoders)(/|$)", place.path) if found else None
    if site:
        raise InputError(
            f"{place.path} is of {site[1]}, not of the residual stream after a block (-res), the only one read"
        )
    return one_a_layer(place, found)


def name(place: Place) -> str:
    """`gemma-scope-2b-pt-res-width_16k-average_l0_82`: the folders of one SAE without its layer."""
    parts = place.path.split("/")
    at = next((i for i, part in enumerate(parts) if _LAYER.fullmatch(part)), None)
    return place.name if not at else "-".join([parts[at - 1], *parts[at + 1 :]])


def load(place: Place, layer: int, file: str) -> Sae:
    """One layer's SAE.

    Raises:
        InputError: the file cannot be read safely or lacks an array.
    """
    arrays = read_arrays(place.get(file))
    arrays = {name[0].upper() + name[1:] if name in ("w_enc", "w_dec") else name: a for name, a in arrays.items()}
    if "scaling_factor" in arrays and not bool((arrays["scaling_factor"] == 1).all()):
        raise InputError(
            f"{file} was finetuned and scales its features in decoding (scaling_factor), which is not read"
        )
    W_enc, W_dec, b_enc, b_dec, threshold = needed(arrays, _TENSORS, file)
    return Sae(
        layer,
        turned(W_enc, "W_enc", file),
        turned(W_dec, "W_dec", file),
        b_enc,
        b_dec,
        activation="jumprelu",
        threshold=threshold,
    )


def _layer(path: str) -> re.Match[str] | None:
    return next((match for part in path.split("/") if (match := _LAYER.fullmatch(part))), None)
