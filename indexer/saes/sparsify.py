"""EleutherAI's sparsify: `<hookpoint>/sae.safetensors` and `cfg.json`, encoder.weight (d_sae, d_model), W_dec (d_sae, d_model), biases.

    a = the k largest of ReLU(encoder.weight (x - b_dec) + encoder.bias)

Transcoders and SAEs of other places than what a block returns (`layers.5.mlp`, `embed_tokens`) are not read.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from indexer.saes.place import Place
from indexer.saes.reading import (
    RESIDUAL,
    beside,
    hub_path,
    needed,
    one_a_layer,
    read_json,
    read_safetensors,
    refuse_options,
    turned,
    whole_number,
)
from indexer.saes.sae import Sae
from schema.errors import InputError

NAME = "sparsify"
WEIGHTS = "sae.safetensors"
CONFIG = "cfg.json"
_TENSORS = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")
_PLAIN = {"activation": "topk", "transcode": False, "skip_connection": False, "signed": False}


def layers(place: Place) -> dict[int, str]:
    """Layer -> file; empty where the release is of another format."""
    files = [name for name in place.names() if PurePosixPath(name).name == WEIGHTS]
    hooks = {name: PurePosixPath(hub_path(place, name)).parent.name for name in files}
    found = [(int(match[1]), name) for name, hook in hooks.items() for match in [RESIDUAL.fullmatch(hook)] if match]
    if files and not found:
        raise InputError(
            f"{place.path}: hook point {next(iter(hooks.values()))!r} is not what a block returns (layers.<n>), the only one read"
        )
    return one_a_layer(place, found)


def name(place: Place) -> str:
    """The release's name; its folder's, where one hook point was given."""
    parts = place.path.split("/")
    return parts[-2] if RESIDUAL.fullmatch(place.name) and len(parts) > 1 else place.name


def load(place: Place, layer: int, file: str) -> Sae:
    """One layer's SAE.

    Raises:
        InputError: an option that is not read, or a missing or broken file.
    """
    config_file = beside(file, CONFIG)
    config = read_json(place, config_file)
    refuse_options(config, _PLAIN, config_file)
    weight, b_enc, W_dec, b_dec = needed(read_safetensors(place.get(file), file), _TENSORS, file)
    stated, factor, width = (
        whole_number(config.get(name) or 0, f"{name} of {config_file}")
        for name in ("num_latents", "expansion_factor", "d_in")
    )
    stated = stated or factor * width
    if stated and stated != len(b_enc):
        raise InputError(
            f"{config_file} says {stated:,} latents, {file} has {len(b_enc):,}; they do not belong together"
        )
    return Sae(
        layer,
        weight,
        turned(W_dec, "W_dec", file),
        b_enc,
        b_dec,
        activation="topk",
        k=whole_number(config.get("k"), f"k of {config_file}"),
        subtract_b_dec=True,
    )
