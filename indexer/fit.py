"""Whether SAEs are of this model: how much of its residuals their reconstructions leave unexplained, over a few tokens.

An SAE of another model of the same width has the right shapes. Nothing in its file says whose it is; its reconstruction does.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from indexer.encoder import make_encoder
from indexer.saes import Sae
from indexer.shard import cut_batches, make_batch
from indexer.subject import Subject
from schema.recipe import Recipe
from schema.records import Tokens

TOKENS = 512
"""Read for it, about."""
TEXTS = 64
TEXT_TOKENS = 128
"""Of each text at most, so that several are read."""
EXTREME = 10.0
"""Times the median length: residuals that are longer are left out, as in training (Marks et al. 2024)."""
WORSE = 1.0
"""From here on, the mean of the residuals says more of them than the reconstruction."""
_BLOCK = 4096


def sampled(recipe: Recipe) -> Recipe:
    """How the texts are read: without the tokens that SAEs are not trained on, whatever the run does with them."""
    return replace(recipe, mask="special,first", max_tokens=min(recipe.max_tokens, TEXT_TOKENS))


def residuals(subject: Subject, tokens: Sequence[Tokens], layers: Collection[int]) -> dict[int, Tensor]:
    """Layer -> (n_tokens, d_model), the stream after it at about `TOKENS` tokens that count, on the CPU."""
    kept: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for group in cut_batches(_some(tokens), TOKENS):
        batch = make_batch(group)
        counts = batch.counts.to(subject.device)

        def tap(layer: int, residual: Tensor, counts: Tensor = counts) -> None:
            kept[layer].append(residual[counts].cpu())

        subject.read(batch.ids, {layer: partial(tap, layer) for layer in layers})
    return {layer: torch.cat(pieces) for layer, pieces in kept.items() if pieces}


def _some(tokens: Sequence[Tokens]) -> list[Tokens]:
    found, n = [], 0
    for each in tokens:
        if n < TOKENS and len(each.ids):
            found.append(each)
            n += len(each.ids)
    return found


@torch.inference_mode()
def unexplained(sae: Sae, residual: Tensor, device: torch.device) -> float | None:
    """The fraction of variance unexplained, FVU = sum |x - xhat|^2 / sum |x - mean|^2.

    Args:
        residual: (n_tokens, d_model)

    Returns:
        0 for a perfect reconstruction, 1 for one that is no better than the mean; None where nothing varies, or is finite.
    """
    x = residual.float()
    length = x.norm(dim=1)
    x = x[length <= EXTREME * length.median()] if len(x) else x
    total = float((x - x.mean(0)).square().sum(dtype=torch.float64)) if len(x) else 0.0
    if not 0 < total < math.inf:
        return None
    left = x - reconstruction(sae, x, device)
    fvu = float(left.square().sum(dtype=torch.float64)) / total
    return fvu if math.isfinite(fvu) else None


def reconstruction(sae: Sae, x: Tensor, device: torch.device) -> Tensor:
    """xhat = W_dec a + b_dec of (n_tokens, d_model), of what fires alone, on the CPU."""
    firing = make_encoder(sae, device).encode(x.to(device))
    token, feature, value = firing.token.cpu(), firing.feature.cpu(), firing.value.cpu()
    made = sae.b_dec.float().repeat(len(x), 1)
    for first in range(0, len(token), _BLOCK):
        some = slice(first, first + _BLOCK)
        columns = sae.W_dec[:, feature[some]].T.float()
        if sae.rescale_by_decoder_norm:
            columns = columns / columns.norm(dim=1, keepdim=True)
        made.index_add_(0, token[some], columns * value[some, None])
    return made
