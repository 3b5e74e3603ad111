"""What a feature's direction does to the model's output: its logit effects, taken straight through final norm and unembedding.

    effect = W_U (g * d)            RMSNorm with weight g
    effect = W_U (g * (d - mean d)) LayerNorm, which centres

This is the linear part. The norm's division by the size of the residual, which differs from token to token, is left out: it scales all
effects of a token alike and orders them the same. So are biases, which no feature changes, and blocks between the SAE and the end.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from indexer.progress import Bar
from indexer.saes import Sae
from indexer.tokens import Tokenizer
from schema.errors import InputError
from schema.layout import LOGITS, feature_key, list_column
from schema.publish import Staged, write
from schema.store import Store

KEPT = 10
"""Tokens kept at either end."""
AUTO_WORK = 2e12
"""Multiply-adds of an SAE up to which a CPU computes logits without being asked to: about a minute."""
BLOCK_ELEMENTS = 1 << 25
"""Effects held at a time: 128 MB."""
_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")


@dataclass(frozen=True)
class Head:
    """Final norm and unembedding as one linear map."""

    gain: Tensor
    """(d_model,) the norm's weight, float32."""
    centres: bool
    """The norm takes the mean off, as LayerNorm does."""
    unembedding: Tensor
    """(n_tokens, d_model) rows of W_U, those of tokens that the tokenizer knows."""

    def effects(self, directions: Tensor) -> Tensor:
        """(n, d_model) -> (n, n_tokens) float32."""
        if self.centres:
            directions = directions - directions.mean(dim=1, keepdim=True)
        return (directions * self.gain) @ self.unembedding.float().T


def logit_work(d_sae: int, n_tokens: int, d_model: int) -> float:
    """Multiply-adds of one SAE."""
    return float(d_sae) * n_tokens * d_model


def find_head(model: Any, decoder: nn.Module, n_tokens: int) -> Head:
    """The head of a loaded model.

    Args:
        n_tokens: tokens of the tokenizer; rows beyond are padding that no training touched.

    Raises:
        InputError: the family keeps its final norm elsewhere, or projects the residual before it unembeds.
    """
    output = model.get_output_embeddings()
    norm = next((module for name in _NORMS if (module := getattr(decoder, name, None)) is not None), None)
    if output is None or norm is None:
        raise InputError(
            f"{type(model).__name__} keeps its final norm or unembedding where Scopebase does not look; index with --logits no"
        )
    weight = output.weight.detach()
    width = model.config.get_text_config().hidden_size
    if weight.shape[1] != width:
        raise InputError(
            f"{type(model).__name__} projects its residual to {weight.shape[1]} before it unembeds; index with --logits no"
        )
    gain, centres = linear_part(norm, width)
    return Head(gain, centres, weight[:n_tokens])


@torch.inference_mode()
def linear_part(norm: nn.Module, width: int) -> tuple[Tensor, bool]:
    """A norm's weight and whether it centres, learnt by asking it, because families write both differently.

    x has mean 0 and no zero, so that either kind gives g * x / rms(x) + bias; the bias falls out of the difference with -x.
    """
    plain = copy.deepcopy(norm).float().cpu()
    x = torch.ones(width)
    x[1::2] = -1.0
    if width % 2:
        x[-3:] = torch.tensor([1.0, 1.0, -2.0])
    x = 1000 * x  # so that epsilon does not count
    gain = (plain(x) - plain(-x)) / 2 / x * x.square().mean().sqrt()
    return gain, bool(torch.allclose(plain(x + 3000), plain(x), atol=1e-3))


def write_logits(
    store: Store, sae_id: int, sae: Sae, head: Head, tokenizer: Tokenizer, device: torch.device, bar: Bar
) -> Staged:
    """Each feature's strongest effects at both ends as rows of `logits`."""
    directions = sae.W_dec.T
    rows = max(1, BLOCK_ELEMENTS // len(head.unembedding))
    head = Head(head.gain.to(device), head.centres, head.unembedding.to(device).float())

    def batches() -> Iterator[pa.RecordBatch]:
        for begin in range(0, sae.d_sae, rows):
            block = directions[begin : begin + rows].float().to(device)
            yield _rows(feature_key(sae_id, begin), head.effects(block), tokenizer)
            bar.advance(len(block))

    return {"logits": write(store, "logits", batches())}


def _rows(first: int, effects: Tensor, tokenizer: Tokenizer) -> pa.RecordBatch:
    n, most = len(effects), min(KEPT, effects.shape[1])
    offsets = np.arange(n + 1) * most
    columns = [pa.array(np.arange(first, first + n), pa.int64())]
    for name, largest in (("top", True), ("bottom", False)):
        value, id_ = (t.cpu().numpy().reshape(-1) for t in effects.topk(most, dim=1, largest=largest))
        known, place = np.unique(id_, return_inverse=True)
        pieces = np.array(tokenizer.pieces(known), object)[place]
        columns += [
            list_column(LOGITS, f"{name}_ids", id_, offsets),
            list_column(LOGITS, f"{name}_values", value, offsets),
            list_column(LOGITS, f"{name}_tokens", pieces, offsets),
        ]
    return pa.RecordBatch.from_arrays(columns, schema=LOGITS)
