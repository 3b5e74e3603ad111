"""Goodfire's open SAEs: `<model>-SAE-l<n>.pth` with encoder_linear and decoder_linear, weights and biases.

a = ReLU(encoder_linear.weight x + encoder_linear.bias)      b_dec is not subtracted
"""

from __future__ import annotations

import re

from indexer.saes.place import Place
from indexer.saes.reading import needed, one_a_layer
from indexer.saes.sae import Sae
from indexer.saes.torch_file import read_tensors

NAME = "goodfire"
_FILE = re.compile(r"(?:.*/)?[^/]*SAE-l(\d{1,4})\.pth?")
_TENSORS = ("encoder_linear.weight", "decoder_linear.weight", "encoder_linear.bias", "decoder_linear.bias")


def layers(place: Place) -> dict[int, str]:
    """Layer -> file; empty where the release is of another format."""
    found = ((_FILE.fullmatch(name), name) for name in place.names())
    return one_a_layer(place, [(int(match[1]), name) for match, name in found if match])


def load(place: Place, layer: int, file: str) -> Sae:
    """One layer's SAE.

    Raises:
        InputError: the file cannot be read safely or lacks a tensor.
    """
    W_enc, W_dec, b_enc, b_dec = needed(read_tensors(place.get(file)), _TENSORS, file)
    return Sae(layer, W_enc, W_dec, b_enc, b_dec, activation="relu")
