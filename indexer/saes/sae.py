"""One sparse autoencoder, whatever file it came from: tensors, activation, identity."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from schema.errors import InputError
from schema.packing import MOST_FEATURES

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Sae:
    """An SAE of the residual stream after one block, in Qwen-Scope's orientation and float32.

        pre  = W_enc (x - s b_dec) + b_enc        s = 1 where `subtract_b_dec`
        topk:     a = the k largest of ReLU(pre), ties to the lower index
        jumprelu: a = ReLU(pre) where pre > threshold
        relu:     a = ReLU(pre)
        xhat = W_dec a + b_dec

    A feature *fires* where a > 0.
    """

    layer: int
    W_enc: Tensor
    """(d_sae, d_model) row f = encoder direction of feature f."""
    W_dec: Tensor
    """(d_model, d_sae) column f = decoder direction of feature f."""
    b_enc: Tensor
    """(d_sae,)"""
    b_dec: Tensor
    """(d_model,) added to the output; subtracted from the input only where the format says so."""
    activation: str
    k: int | None = None
    threshold: Tensor | None = None
    """(d_sae,) of a jumprelu."""
    subtract_b_dec: bool = False
    rescale_by_decoder_norm: bool = False
    """SAELens: pre-activations count times the decoder's norm, and are divided by it again in decoding."""

    @property
    def d_model(self) -> int:
        return self.W_enc.shape[1]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[0]

    def encoder_tensors(self) -> tuple[Tensor, Tensor]:
        """W_enc and b_enc with everything linear before the activation folded in, float32."""
        weight, bias = self.W_enc.float(), self.b_enc.float()
        if self.subtract_b_dec:
            bias = (bias.double() - weight.double() @ self.b_dec.double()).float()
        if self.rescale_by_decoder_norm:
            norm = self.W_dec.float().norm(dim=0)
            weight, bias = weight * norm[:, None], bias * norm
        return weight.contiguous(), bias.contiguous()

    def activations(self, residual: Tensor) -> Tensor:
        """(n, d_model) -> (n, d_sae), dense: the plain twin that the indexer's encoder is tested against."""
        weight, bias = self.encoder_tensors()
        pre = residual.float() @ weight.T + bias
        if self.activation == "jumprelu":
            assert self.threshold is not None
            return pre.relu() * (pre > self.threshold.float())
        if self.activation == "relu":
            return pre.relu()
        order = torch.sort(pre, dim=1, descending=True, stable=True).indices[:, : self.k]
        return torch.zeros_like(pre).scatter(1, order, pre.gather(1, order).relu())

    def decode(self, activations: Tensor) -> Tensor:
        """(n, d_sae) -> (n, d_model)."""
        if self.rescale_by_decoder_norm:
            activations = activations / self.W_dec.float().norm(dim=0)
        return activations @ self.W_dec.float().T + self.b_dec.float()

    def sha256(self) -> str:
        """The SAE's identity: over its tensors as float32 in this orientation.

        So the same SAE in another file format, or cast to float32, stays the same SAE.
        """
        digest = hashlib.sha256()
        for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
            tensor = getattr(self, name)
            if tensor is not None:
                digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
                for block in tensor.split(max(1, (1 << 24) // max(1, tensor[0].numel()))):
                    digest.update(block.float().contiguous().numpy())
        for flag in ("subtract_b_dec", "rescale_by_decoder_norm"):
            if getattr(self, flag):
                digest.update(flag.encode())
        return digest.hexdigest()


def ungated(
    weight: Tensor, r_mag: Tensor, gate: Tensor, magnitude: Tensor, place: str
) -> tuple[Tensor, Tensor, Tensor]:
    """A gated SAE as the jumprelu that computes the same: its W_enc, b_enc and threshold.

        fires where W x' + gate > 0   <=>   e^r W x' + magnitude > magnitude - e^r gate

    Raises:
        InputError: its biases do not fit its encoder of shape (d_sae, d_model).

    Gated SAEs of Rajamanoharan et al. 2024, https://arxiv.org/abs/2404.16014.
    """
    if weight.ndim != 2 or {tuple(tensor.shape) for tensor in (r_mag, gate, magnitude)} != {(len(weight),)}:
        raise InputError(f"{place}: its gate's biases do not fit its encoder of shape {_shape(weight)}")
    scale, bias = r_mag.float().exp(), magnitude.float()
    return scale[:, None] * weight.float(), bias, bias - scale * gate.float()


def checked(sae: Sae, place: str) -> Sae:
    """The same SAE, if its tensors can be one.

    Raises:
        InputError: shapes that do not fit each other, another orientation, no floats, NaN or infinity, or a k that cannot be.
    """
    d_sae, d_model = _vector(sae.b_enc, "b_enc", place), _vector(sae.b_dec, "b_dec", place)
    if d_sae > MOST_FEATURES:
        raise InputError(f"{place}: {d_sae:,} features; Scopebase stores SAEs of up to {MOST_FEATURES:,}")
    _matrix(sae.W_enc, "W_enc", ("d_sae", "d_model"), (d_sae, d_model), place)
    _matrix(sae.W_dec, "W_dec", ("d_model", "d_sae"), (d_model, d_sae), place)
    if sae.threshold is not None and sae.threshold.shape != (d_sae,):
        raise InputError(f"{place}: threshold has shape {_shape(sae.threshold)}, but b_enc says d_sae = {d_sae}")
    for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
        _finite(getattr(sae, name), name, place)
    if sae.activation == "topk" and not (sae.k and 1 <= sae.k <= d_sae):
        raise InputError(f"{place}: k = {sae.k}, but it must lie between 1 and d_sae = {d_sae}")
    return sae


def _vector(tensor: Tensor, name: str, place: str) -> int:
    if tensor.ndim != 1 or not len(tensor):
        raise InputError(f"{place}: {name} has shape {_shape(tensor)}, but a bias has one dimension")
    return len(tensor)


def _matrix(tensor: Tensor, name: str, axes: tuple[str, str], shape: tuple[int, int], place: str) -> None:
    if tensor.shape == shape:
        return
    want = f"({axes[0]}, {axes[1]}) = {shape}"
    if tuple(tensor.shape) == shape[::-1]:
        raise InputError(
            f"{place}: {name} has shape {_shape(tensor)}, expected {want}: it is transposed, as another format stores it"
        )
    raise InputError(f"{place}: {name} has shape {_shape(tensor)}, but the biases say {want}")


def _finite(tensor: Tensor | None, name: str, place: str) -> None:
    if tensor is None:
        return
    if tensor.dtype not in FLOATS:
        raise InputError(
            f"{place}: {name} is {str(tensor.dtype).removeprefix('torch.')}; an SAE's tensors are float32, bfloat16 or float16"
        )
    for block in tensor.split(4096):
        if not torch.isfinite(block).all():
            what = "NaN" if torch.isnan(block).any() else "infinity"
            raise InputError(
                f"{place}: {name} holds {what}; the file is damaged or its training diverged, fetch it again"
            )


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
