"""Every token's activations by an independent computation: one text at a time, dense float32, nothing of the indexer used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def token_activations(
    model: Path, release: Path, layer: int, texts: list[str], k: int, max_tokens: int = 256
) -> list[tuple[list[int], np.ndarray]]:
    """For each text its token ids and (n_tokens, d_sae) activations, as float16 stores them, under mask `special,first`."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    inner: Any = network.base_model
    seen: list[torch.Tensor] = []
    inner.layers[layer].register_forward_hook(
        lambda _m, _i, out: seen.append((out[0] if isinstance(out, tuple) else out)[0])
    )
    sae = torch.load(release / f"layer{layer}.sae.pt", weights_only=True)
    special = set(tokenizer.all_special_ids)
    found = []
    for text in texts:
        ids = tokenizer(text)["input_ids"][:max_tokens]
        seen.clear()
        with torch.no_grad():
            network(input_ids=torch.tensor([ids]))
        pre = seen[0] @ sae["W_enc"].float().T + sae["b_enc"].float()
        value, place = pre.topk(k, dim=1)
        acts = torch.zeros_like(pre).scatter(1, place, value.relu())
        masked = torch.tensor([position == 0 or id_ in special for position, id_ in enumerate(ids)])
        acts[masked] = 0
        found.append((ids, acts.half().float().numpy()))
    return found
