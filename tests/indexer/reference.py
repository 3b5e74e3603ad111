"""An independent computation of what a run should count: one sample at a time, dense float32, nothing of the indexer used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass
class Reference:
    """What each sample fires: (n_samples, d_sae) largest activation under each pool, and per-feature token counts."""

    any: np.ndarray
    last: np.ndarray
    tokens: np.ndarray
    n_tokens: int


def reference(
    model: Path,
    release: Path,
    layers: list[int],
    texts: list[str],
    k: int,
    max_tokens: int = 512,
    mask: str = "special,first",
) -> dict[int, Reference]:
    """For each layer, by plain hooks, plain matrix products and torch.topk."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    inner: Any = network.base_model
    blocks = inner.layers if hasattr(inner, "layers") else inner.h
    seen: dict[int, torch.Tensor] = {}
    for layer in layers:
        blocks[layer].register_forward_hook(
            lambda _m, _i, out, layer=layer: seen.__setitem__(layer, (out[0] if isinstance(out, tuple) else out)[0])
        )
    saes = {layer: torch.load(release / f"layer{layer}.sae.pt", weights_only=True) for layer in layers}
    context = network.config.max_position_embeddings
    special = set(tokenizer.all_special_ids)
    found: dict[int, list[tuple[np.ndarray, np.ndarray, np.ndarray, int]]] = {layer: [] for layer in layers}
    for text in texts:
        ids = tokenizer(text)["input_ids"][: min(max_tokens, context)]
        keep = torch.tensor(
            [not ("special" in mask and i in special) and not ("first" in mask and p == 0) for p, i in enumerate(ids)],
            dtype=torch.bool,
        )
        with torch.no_grad():
            network(input_ids=torch.tensor([ids]))
        for layer in layers:
            W, b = saes[layer]["W_enc"].float(), saes[layer]["b_enc"].float()
            pre = seen[layer][keep] @ W.T + b
            value, place = pre.topk(k, dim=1)
            acts = torch.zeros_like(pre).scatter(1, place, value.relu())
            empty = torch.zeros(W.shape[0])
            found[layer].append(
                (
                    (acts.amax(0) if len(acts) else empty).numpy(),
                    (acts[-1] if len(acts) else empty).numpy(),
                    (acts > 0).sum(0).numpy(),
                    len(acts),
                )
            )
    return {
        layer: Reference(
            np.stack([a for a, *_ in each]),
            np.stack([last for _, last, *_ in each]),
            sum(t for *_, t, _ in each),
            sum(n for *_, n in each),
        )
        for layer, each in found.items()
    }
