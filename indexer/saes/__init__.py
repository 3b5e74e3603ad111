"""SAE releases: the formats that are read, and what a release says of itself before its tensors are loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass

from indexer.saes import (
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    goodfire,
    llama_scope,
    qwen_scope,
    sae_lens,
    sparsify,
)
from indexer.saes.place import Place, open_place
from indexer.saes.sae import Sae, checked
from schema.errors import InputError
from schema.records import SaeCard

__all__ = ["FORMATS", "Format", "Release", "Sae", "open_release"]


@dataclass(frozen=True)
class Format:
    """How one tool lays out its SAEs."""

    layers: Callable[[Place], dict[int, str]]
    """Layer -> the file of its weights; empty for a release of another format."""
    load: Callable[[Place, int, str], Sae]
    files: str
    """What it is recognised by, in words."""
    name: Callable[[Place], str] = lambda place: place.name
    """The release's name, of which the set's is made."""


FORMATS: dict[str, Format] = {
    qwen_scope.NAME: Format(qwen_scope.layers, qwen_scope.load, "layer<n>.sae.pt (Qwen-Scope)"),
    sae_lens.NAME: Format(sae_lens.layers, sae_lens.load, f"cfg.json with {sae_lens.WEIGHTS} (SAELens)"),
    gemma_scope.NAME: Format(gemma_scope.layers, gemma_scope.load, "params.npz (Gemma Scope)", gemma_scope.name),
    gemma_scope_2.NAME: Format(
        gemma_scope_2.layers, gemma_scope_2.load, "params.safetensors (Gemma Scope 2)", gemma_scope_2.name
    ),
    sparsify.NAME: Format(sparsify.layers, sparsify.load, "cfg.json with sae.safetensors (sparsify)", sparsify.name),
    dictionary_learning.NAME: Format(
        dictionary_learning.layers,
        dictionary_learning.load,
        "config.json with ae.pt (dictionary_learning)",
        dictionary_learning.name,
    ),
    llama_scope.NAME: Format(
        llama_scope.layers, llama_scope.load, "hyperparams.json with checkpoints/ (Llama Scope)", llama_scope.name
    ),
    goodfire.NAME: Format(goodfire.layers, goodfire.load, "<model>-SAE-l<n>.pth (Goodfire)"),
}


@dataclass(frozen=True)
class Release:
    """The SAEs of one model trained alike, one a layer."""

    source: str
    place: Place
    format: str
    files: dict[int, str]

    @property
    def name(self) -> str:
        return FORMATS[self.format].name(self.place)

    def choose(self, layers: str) -> list[int]:
        """`all` or `0,3-5` as layers that the release has.

        Raises:
            InputError: no such layer, or no such way to write them.
        """
        wanted = sorted(self.files) if layers == "all" else parse_layers(layers)
        for layer in wanted:
            if layer not in self.files:
                raise InputError(f"{self.name} has no SAE of layer {layer}; it has {_ranges(sorted(self.files))}")
        return wanted

    def load(self, layer: int) -> Sae:
        """The checked SAE of a layer.

        Raises:
            InputError: its file is missing, unsafe, damaged or no SAE.
        """
        file = self.files[layer]
        return checked(FORMATS[self.format].load(self.place, layer, file), f"{self.name}/{file}")

    def stamp(self, layer: int) -> tuple[str, int, int]:
        """Path of a layer's file, and size and time of it and its configuration, by which unchanged ones are known."""
        path = self.place.get(self.files[layer])
        beside = [path, *(path.parent / name for name in ("config.json", "cfg.json", "../hyperparams.json"))]
        stats = [file.stat() for file in beside if file.exists()]
        return os.path.abspath(path), sum(s.st_size for s in stats), max(s.st_mtime_ns for s in stats)

    def card(self, sae: Sae, sha256: str) -> SaeCard:
        """What is stored of an SAE of this release."""
        path, size, time = self.stamp(sae.layer)
        return SaeCard(
            layer=sae.layer,
            release=self.name,
            format=self.format,
            activation=sae.activation,
            k=sae.k,
            d_model=sae.d_model,
            d_sae=sae.d_sae,
            sha256=sha256,
            source=path,
            file_size=size,
            file_time=time,
        )


def open_release(source: str) -> Release:
    """The release at a path or hub id, its format recognised by its files.

    Raises:
        InputError: nothing there, or of no known format.
    """
    place = open_place(source)
    for name, each in FORMATS.items():
        files = each.layers(place)
        if files:
            return Release(source, place, name, files)
    if any(re.fullmatch(r"(?:.*/)?autoencoders/\d{1,3}\.pt", f"{place.path}/{name}") for name in place.names()):
        raise InputError(
            f"{source}: OpenAI's SAEs of GPT-2 normalise the residual of each token first, which is not read"
        )
    known = ", ".join(each.files for each in FORMATS.values())
    raise InputError(f"{source} holds no SAE that is read, which are known by their files: {known}")


def parse_layers(text: str) -> list[int]:
    """`0,3-5` as [0, 3, 4, 5]."""
    layers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not re.fullmatch(r"[0-9]{1,4}", first) or (dash and not re.fullmatch(r"[0-9]{1,4}", last)):
            raise InputError(f"--layers {text!r}: 'all', or numbers and ranges like 0,3-5")
        layers.update(range(int(first), int(last if dash else first) + 1))
    if not layers:
        raise InputError(f"--layers {text!r}: a range runs upwards, like 3-5")
    return sorted(layers)


def _ranges(layers: list[int]) -> str:
    """[0, 1, 2, 5] as `0-2,5`."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and parts[-1][-1] == layer - 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
