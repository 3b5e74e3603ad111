"""A feature's activation at single tokens, as the index would have it: the indexer's encoder, asked for one feature instead of all.

Top-k needs every pre-activation of a token, because the others decide whether this one fires; on a CPU only those tokens are asked where
the feature's own one is positive and is among the k largest of the first few.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from indexer.encoder import Encoder, top_k

LOOK = 8
"""One feature in so many is looked at first."""
MARGIN = 1e-5
"""How much larger, of itself, a number must be to be called larger whatever the order of the sums."""
Encoders = Callable[[str], Encoder]
"""The encoder of an SAE by its name, on the model's device; raises what `schema.live.LiveModel.read` raises."""


@dataclass(frozen=True)
class Row:
    """What reads one feature's pre-activation off a residual: <h, weight> + bias, firing where it exceeds the threshold."""

    weight: Tensor
    """(d_model,) float32, on the device."""
    bias: float
    threshold: float


def row(encoder: Encoder, feature: int) -> Row:
    product, threshold = encoder.product, encoder.threshold
    own = threshold[feature] if len(threshold) > 1 else threshold[0]
    return Row(product.weight_t[:, feature].contiguous(), float(product.bias[feature]), float(own))


@torch.inference_mode()
def activation(encoder: Encoder, residual: Tensor, feature: Tensor, pre: Tensor, threshold: Tensor) -> Tensor:
    """(n,) float32: the activation of one feature a token.

    Args:
        residual: (n, d_model) float32.
        feature: (n,) or (1,) which one.
        pre: (n,) its pre-activation, from its `Row`.
        threshold: (n,) or (1,) of its `Row`.
    """
    fires = pre > threshold
    if encoder.k is None:
        return torch.where(fires, pre, 0)
    if residual.device.type != "cpu":  # there, finding out which tokens would stop the device
        return _among_all(encoder, residual, feature)
    maybe = _not_outdone(encoder, residual, pre, fires.nonzero()[:, 0])
    if len(maybe) == len(pre):
        return _among_all(encoder, residual, feature)
    found = torch.zeros_like(pre)
    if len(maybe):
        which = feature if len(feature) == 1 else feature[maybe]
        found[maybe] = _among_all(encoder, residual[maybe], which)
    return found


def _not_outdone(encoder: Encoder, residual: Tensor, pre: Tensor, tokens: Tensor) -> Tensor:
    """Those of the tokens (n,) where the first features do not yet show k that are larger than `pre`."""
    assert encoder.k is not None
    few = encoder.d_sae // LOOK
    if few <= 2 * encoder.k or not len(tokens):
        return tokens
    product = encoder.product
    others = torch.addmm(product.bias[:few], residual[tokens], product.weight_t[:, :few])
    larger = others > pre[tokens, None] * (1 + MARGIN)
    return tokens[larger.sum(1) < encoder.k]


@dataclass(frozen=True)
class Rows:
    """The same for several features: (n_features, d_model) and (n_features,)."""

    encoder: Encoder
    features: Tensor
    weight: Tensor
    bias: Tensor
    threshold: Tensor


def rows(encoder: Encoder, features: Tensor) -> Rows:
    product, threshold = encoder.product, encoder.threshold
    own = threshold[features] if len(threshold) > 1 else threshold
    return Rows(encoder, features, product.weight_t.T[features], product.bias[features], own)


@torch.inference_mode()
def activations(read: Rows, residual: Tensor) -> Tensor:
    """(n, n_features) float32: the activations of the same features at every token of (n, d_model)."""
    h = residual.float()
    pre = torch.addmm(read.bias, h, read.weight.T)
    fires = pre > read.threshold
    if read.encoder.k is None:
        return torch.where(fires, pre, 0)
    if residual.device.type != "cpu":
        return _chosen(read.encoder, h, read.features)
    found = torch.zeros_like(pre)
    maybe = fires.any(1).nonzero()[:, 0]
    if len(maybe):
        found[maybe] = _chosen(read.encoder, h[maybe], read.features)
    return found


def _chosen(encoder: Encoder, residual: Tensor, features: Tensor) -> Tensor:
    """(n, n_features) what survives the top-k."""
    assert encoder.k is not None
    parts = []
    for _, block in encoder.product.blocks(residual):
        pre = encoder.product(block)
        value, column = top_k(pre, encoder.k)
        parts.append(torch.zeros_like(pre).scatter_(1, column, value.relu())[:, features])
    return torch.cat(parts)


def _among_all(encoder: Encoder, residual: Tensor, feature: Tensor) -> Tensor:
    """(n,) what survives the top-k."""
    assert encoder.k is not None
    parts = []
    for first, block in encoder.product.blocks(residual):
        pre = encoder.product(block)
        which = (feature if len(feature) == 1 else feature[first : first + len(block)]).expand(len(block))[:, None]
        own = pre.gather(1, which)
        fires = _is_chosen(pre, own, which, encoder.k) & (own > 0)
        parts.append(torch.where(fires, own, 0)[:, 0])
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _is_chosen(pre: Tensor, own: Tensor, which: Tensor, k: int) -> Tensor:
    """(n, 1) where fewer than k of (n, d_sae) are larger than `own`, or as large and of a lower index than `which`."""
    there = torch.empty_like(pre)  # a float is counted faster than a bool
    larger = torch.gt(pre, own, out=there).sum(1, keepdim=True)
    if pre.device.type == "cpu":
        at_most = torch.ge(pre, own, out=there).sum(1, keepdim=True)
        if not ((larger < k) & (at_most > k)).any():  # hardly ever does a tie decide
            return larger < k
    lower = torch.arange(pre.shape[1], device=pre.device) < which
    return larger + ((pre == own) & lower).sum(1, keepdim=True) < k
