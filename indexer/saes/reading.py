"""What the formats read alike: JSON beside the weights, safetensors, numpy archives, and hook points by their names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from indexer.saes.place import Place
from schema.errors import InputError

RESIDUAL = re.compile(r"(?:.*\.)?(?:layers|h|blocks)\.(\d{1,4})(?:\.output|\.hook_resid_post|\.hook_out)?")
"""`layers.5`, `model.layers.5.output`, `gpt_neox.layers.5`, `transformer.h.5`, `blocks.5.hook_resid_post`: what block 5 returns."""


def beside(file: str, name: str) -> str:
    """Another file of the same folder."""
    return str(PurePosixPath(file).with_name(name))


def read_json(place: Place, file: str) -> dict[str, Any]:
    """A file of settings.

    Raises:
        InputError: it is missing, no JSON, or no object.
    """
    try:
        value = json.loads(place.get(file).read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{file} of {place.name} is missing or no JSON: {str(error)[:160]}") from None
    if not isinstance(value, dict):
        raise InputError(f"{file} of {place.name} is no JSON object")
    return value


def read_safetensors(path: Path, file: str) -> dict[str, Tensor]:
    """All tensors of a file.

    Raises:
        InputError: it is none, or is cut short.
    """
    try:
        with safe_open(path, framework="pt") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - not a dictionary
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is no readable safetensors file ({error}); fetch it again") from None


def needed(tensors: Mapping[str, Tensor], names: Sequence[str], file: str) -> list[Tensor]:
    """These tensors of a file.

    Raises:
        InputError: one of them is not there.
    """
    missing = [name for name in names if name not in tensors]
    if missing:
        raise InputError(f"{file} has no tensor {missing[0]!r}; it holds {', '.join(sorted(tensors)) or 'nothing'}")
    return [tensors[name] for name in names]


def turned(tensor: Tensor, name: str, file: str) -> Tensor:
    """A weight that is stored the other way round."""
    if tensor.ndim != 2:
        raise InputError(f"{file}: {name} has shape {tuple(tensor.shape)}, but a weight has two dimensions")
    return tensor.T.contiguous()


def whole_number(value: object, what: str) -> int:
    """A k, a width or a layer out of somebody's settings.

    Raises:
        InputError: it is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InputError(f"{what} is {value!r}, which is no whole number")
    return value


def refuse_options(config: Mapping[str, Any], plain: Mapping[str, object], file: str) -> None:
    """Refuses settings that change what the SAE computes and are not read; a missing one is plain.

    Raises:
        InputError: one of them is not as in `plain`.
    """
    for option, usual in plain.items():
        if config.get(option, usual) not in (usual, None):
            raise InputError(f"{file}: {option} = {config[option]!r} is not read, only {usual!r} is")


def one_a_layer(place: Place, found: Sequence[tuple[int, str]]) -> dict[int, str]:
    """Layer -> file of its weights.

    Raises:
        InputError: two SAEs of one layer.
    """
    files: dict[int, str] = {}
    for layer, file in sorted(found):
        if layer in files:
            folders = [str(PurePosixPath(f).parent) for at, f in sorted(found) if at == layer]
            raise InputError(
                f"{place.name} has {len(folders)} SAEs of layer {layer}: {', '.join(folders[:6])}; "
                "give the folder of one, with --layers and --set if you like"
            )
        files[layer] = file
    return files


def hub_path(place: Place, file: str) -> str:
    """The whole path of a file, folders above the release included, for what only their names tell."""
    return f"{place.path}/{file}"
