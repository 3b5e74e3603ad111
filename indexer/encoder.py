"""SAEs as the indexer runs them: residuals in, the features that fire out, never a dense row kept.

Top-k is exact and selected from float32. The product goes into one reused buffer (fresh pages cost more than the arithmetic), and the
selection is in two levels: the k largest values lie in the k groups of largest maximum, so that 16 k candidates are sorted and not d_sae.
"""

from __future__ import annotations

import threading
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from indexer.saes import Sae
from schema.errors import WorkFailed

GROUP = 16
BUFFER_ELEMENTS = 1 << 26
"""256 MB of float32: 2,048 tokens at d_sae 32,768."""


class Firing(NamedTuple):
    """What fires, in no particular order; all (n_activations,)."""

    token: Tensor
    """Row of the residuals."""
    feature: Tensor
    value: Tensor
    """float32, > 0"""


class Encoder(Protocol):
    """One SAE on a device."""

    product: Product
    threshold: Tensor
    """(d_sae,) or (1,): what a pre-activation must exceed to fire, at least 0."""

    @property
    def d_sae(self) -> int: ...

    @property
    def k(self) -> int | None:
        """How many fire at most; None where only the threshold decides."""

    def encode(self, residual: Tensor) -> Firing:
        """What fires at each row of (n_tokens, d_model).

        Raises:
            WorkFailed: an activation is not finite.
        """


def make_encoder(sae: Sae, device: torch.device) -> Encoder:
    """The encoder for an SAE's activation."""
    if sae.activation == "topk":
        return TopKEncoder(sae, device)
    return ThresholdEncoder(sae, device)


class _Buffers(threading.local):
    """Each thread has its own: two models of one process must not write into each other's."""

    def __init__(self) -> None:
        self.of: dict[tuple[str, int], Tensor] = {}


class Product:
    """pre = W_enc x + b_enc, into a buffer that all encoders of one width and thread share."""

    _buffers: ClassVar[_Buffers] = _Buffers()

    def __init__(self, sae: Sae, device: torch.device) -> None:
        weight, bias = sae.encoder_tensors()
        self.weight_t = weight.to(device).T  # (d_model, d_sae), a view: rows of W_enc stay contiguous
        self.bias = bias.to(device)
        self.d_sae = sae.d_sae
        self.layer = sae.layer
        self.rescaled = sae.rescale_by_decoder_norm
        """An activation counts times the direction of its decoder column, not times the column itself."""
        self.rows = max(16, BUFFER_ELEMENTS // self.d_sae)

    def blocks(self, residual: Tensor) -> list[tuple[int, Tensor]]:
        """(first row, residuals) in pieces that fit the buffer."""
        return [(first, residual[first : first + self.rows].float()) for first in range(0, len(residual), self.rows)]

    def __call__(self, block: Tensor) -> Tensor:
        key = (str(block.device), self.d_sae)
        buffer = self._buffers.of.get(key)
        if buffer is None or len(buffer) < len(block):
            buffer = self._buffers.of[key] = torch.empty(
                min(self.rows, max(len(block), 2048)), self.d_sae, device=block.device
            )
        return torch.addmm(self.bias, block, self.weight_t, out=buffer[: len(block)])


class TopKEncoder:
    """a = the k largest of ReLU(pre), ties to the lower index."""

    def __init__(self, sae: Sae, device: torch.device) -> None:
        assert sae.k is not None
        self.k = sae.k
        self.d_sae = sae.d_sae
        self.product = Product(sae, device)
        self.threshold = torch.zeros(1, device=device)

    @torch.inference_mode()
    def encode(self, residual: Tensor) -> Firing:
        parts = []
        for first, block in self.product.blocks(residual):
            value, feature = top_k(self.product(block), self.k)
            _refuse_nonfinite(value, self.product.layer)
            fires = value > 0
            token = torch.arange(first, first + len(block), device=block.device)[:, None].expand_as(feature)
            parts.append(Firing(token[fires], feature[fires], value[fires]))
        return _joined(parts)


class ThresholdEncoder:
    """a = pre where pre > max(threshold, 0): jumprelu, and relu with threshold 0."""

    def __init__(self, sae: Sae, device: torch.device) -> None:
        self.k = None
        self.d_sae = sae.d_sae
        self.product = Product(sae, device)
        threshold = torch.zeros(1) if sae.threshold is None else sae.threshold.float().clamp(min=0)
        self.threshold = threshold.to(device)

    @torch.inference_mode()
    def encode(self, residual: Tensor) -> Firing:
        parts = []
        for first, block in self.product.blocks(residual):
            pre = self.product(block)
            # NaN compares as False and would vanish here; its row sums to NaN
            _refuse_nonfinite(pre.sum(dim=1), self.product.layer)
            token, feature = (pre > self.threshold).nonzero(as_tuple=True)
            parts.append(Firing(token + first, feature, pre[token, feature]))
        return _joined(parts)


def top_k(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values of each row and their columns, ties to the lower column; exact where values are positive.

    Args:
        pre: (n, d_sae) float32.

    Returns:
        Values and columns, both (n, k), in no particular order. Among values <= 0, which never fire, ties fall anyhow.
    """
    n, width = pre.shape
    if width % GROUP or width // GROUP <= k:
        value, column = torch.topk(pre, min(k + 1, width), dim=1)
        outside = torch.full((n,), -torch.inf, device=pre.device)
    else:
        value, column, outside = _two_levels(pre, k)
    return _settle_ties(pre, k, value, column, outside)


def _two_levels(pre: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k+1 best candidates in falling order, and the largest value that a group outside of them can hold.

    Column f is in group f % n_groups, so that the maxima are taken over whole cache lines.
    """
    n, width = pre.shape
    n_groups = width // GROUP
    grid = pre.view(n, GROUP, n_groups)
    best = grid.amax(1).topk(k + 1, dim=1)
    groups = best.indices[:, :k]
    candidates = grid.gather(2, groups[:, None, :].expand(n, GROUP, k)).view(n, GROUP * k)
    value, place = candidates.topk(k + 1, dim=1)
    column = place // k * n_groups + groups.gather(1, place % k)
    return value, column, best.values[:, k]


def _settle_ties(pre: Tensor, k: int, value: Tensor, column: Tensor, outside: Tensor) -> tuple[Tensor, Tensor]:
    """Rows whose k-th value comes again beyond the k are sorted in full, stably; there are hardly ever any."""
    if value.shape[1] <= k:
        return value, column
    last = value[:, k - 1]
    tied = ((value[:, k] == last) | (outside == last)) & (last > 0)
    value, column = value[:, :k], column[:, :k]
    if tied.any():
        rows = tied.nonzero()[:, 0]
        order = torch.sort(pre[rows], dim=1, descending=True, stable=True)
        value[rows], column[rows] = order.values[:, :k], order.indices[:, :k]
    return value, column


def _refuse_nonfinite(values: Tensor, layer: int) -> None:
    if not torch.isfinite(values).all():
        raise WorkFailed(
            f"the residual stream after block {layer} is not finite: the model overflows in this dtype; "
            "index with --dtype float32 or bfloat16"
        )


def _joined(parts: list[Firing]) -> Firing:
    return parts[0] if len(parts) == 1 else Firing(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
