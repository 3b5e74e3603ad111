"""Whether SAEs encode here as they should: by hand-made golden vectors, and each SAE against its plain twin."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from indexer.encoder import make_encoder
from indexer.saes import Release, Sae
from indexer.saes.known import load_known
from schema.errors import InputError
from schema.tables import Sae as KnownSae

ROWS, SEED = 64, 0
CLOSE = 1e-4
"""Of the largest activation: how far two orders of summation may differ."""


def check_golden(device: torch.device) -> list[str]:
    """What is wrong with the arithmetic on a device, by vectors whose answers are plain to see; empty where nothing is.

    The input bias is not subtracted, negative pre-activations never fire, and ties go to the lower index.
    """
    eye = torch.eye(4)
    sae = Sae(0, eye, eye, torch.tensor([0.0, 0.5, 0.0, 0.0]), torch.full((4,), 9.0), "topk", k=2)
    cases = [
        ("top-k", [3.0, 1.0, 2.0, 0.5], {0: 3.0, 2: 2.0}),
        ("the encoder's bias", [0.0, 2.0, 2.25, 0.0], {1: 2.5, 2: 2.25}),
        ("ReLU after top-k", [-1.0, -2.0, 1.0, -3.0], {2: 1.0}),
        ("ties", [1.0, -5.0, 1.0, 1.0], {0: 1.0, 2: 1.0}),
        ("silence", [-1.0, -1.0, -1.0, -1.0], {}),
    ]
    problems = []
    for name, residual, wanted in cases:
        firing = make_encoder(sae, device).encode(torch.tensor([residual], device=device))
        found = dict(zip(firing.feature.tolist(), firing.value.tolist(), strict=True))
        if found != wanted:
            problems.append(f"{name}: {found} and not {wanted}")
    return problems


def check_sae(known: KnownSae, device: torch.device, releases: Sequence[Release] = ()) -> str | None:
    """What is wrong with an SAE's file or with what it fires here; None where nothing is."""
    try:
        sae = load_known(known, releases)
    except InputError as error:
        return str(error)
    residual = _residuals(sae)
    firing = make_encoder(sae, device).encode(residual.to(device))
    found = torch.zeros(ROWS, sae.d_sae)
    found[firing.token.cpu(), firing.feature.cpu()] = firing.value.cpu()
    twin = sae.activations(residual)
    scale = float(twin.max())
    wrong = (found - twin).abs() > CLOSE * max(scale, 1e-6)
    if sae.activation == "topk":  # what lies about the k-th place may go either way
        last = twin.sort(dim=1, descending=True).values[:, (sae.k or 1) - 1 : sae.k]
        wrong &= (twin.maximum(found) - last).abs() > CLOSE * max(scale, 1e-6)
    n = int(wrong.sum())
    return f"{n:,} of {ROWS} x {sae.d_sae:,} activations differ from the plain computation on {device}" if n else None


def _residuals(sae: Sae) -> Tensor:
    """(ROWS, d_model) in which a few features each are written."""
    source = torch.Generator().manual_seed(SEED)
    chosen = torch.randint(0, sae.d_sae, (ROWS, 8), generator=source)
    weight = 1 + 4 * torch.rand(ROWS, 8, 1, generator=source)
    return (sae.W_dec.float().T[chosen] * weight).sum(dim=1) + sae.b_dec.float()
