"""A small Qwen3 model and an SAE for each of its blocks, trained in under two minutes on two cores."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from indexer.subject import find_blocks

VOCABULARY, WIDTH, BLOCKS, CONTEXT = 2048, 128, 4, 128
D_SAE, K = 1024, 16
MODEL_STEPS, SAE_STEPS, BATCH = 450, 500, 16
SAE_BATCH = 1024
END = "<|endoftext|>"
Tick = Callable[[int], None]


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, as Qwen's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, model_max_length=CONTEXT * 4
    )


def rows_of(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Tensor:
    """All texts joined, an end token between them, cut into rows: (n_rows, CONTEXT)."""
    flat = [id_ for ids in tokenizer(list(texts), verbose=False)["input_ids"] for id_ in [*ids, tokenizer.eos_token_id]]
    return torch.tensor(flat[: len(flat) // CONTEXT * CONTEXT]).view(-1, CONTEXT)


def train_model(rows: Tensor, tick: Tick, seed: int = 0) -> Qwen3ForCausalLM:
    """Next-token prediction with AdamW and a cosine schedule."""
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_hidden_layers=BLOCKS,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=4 * CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1, betas=(0.9, 0.95))
    for step in range(MODEL_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 30) * 0.5 * (1 + math.cos(math.pi * step / MODEL_STEPS))
        batch = rows[torch.randint(len(rows), (BATCH,))]
        logits = model(input_ids=batch, use_cache=False).logits
        loss = F.cross_entropy(logits[:, :-1].reshape(-1, VOCABULARY), batch[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        tick(1)
    return model.eval()


@torch.no_grad()
def residuals(model: Qwen3ForCausalLM, rows: Tensor) -> list[Tensor]:
    """(n_tokens, WIDTH) after each block, position 0 of each row left out: SAEs are not trained on it."""
    decoder, blocks = find_blocks(model)
    found: list[list[Tensor]] = [[] for _ in blocks]
    hooks = [
        block.register_forward_hook(
            lambda _m, _i, out, layer=layer: found[layer].append(
                (out[0] if isinstance(out, tuple) else out)[:, 1:].reshape(-1, WIDTH)
            )
        )
        for layer, block in enumerate(blocks)
    ]
    for batch in rows.split(64):
        decoder(input_ids=batch, use_cache=False)
    for hook in hooks:
        hook.remove()
    return [torch.cat(each) for each in found]


def train_sae(x: Tensor, tick: Tick, seed: int = 0) -> dict[str, Tensor]:
    """A top-k SAE after Gao et al. 2024: normalised reconstruction loss, 1/32 of an auxiliary loss that revives dead features.

    Unit-norm decoder columns, encoder begun as their transpose, b_dec begun as the mean and not subtracted from the input.
    """
    generator = torch.Generator().manual_seed(seed)
    mean = x.mean(0)
    W_dec = F.normalize(torch.randn(D_SAE, WIDTH, generator=generator), dim=1)
    W_enc = W_dec.clone()
    parameters = [t.requires_grad_() for t in (W_enc, -(W_enc @ mean), W_dec, mean.clone())]
    W_enc, b_enc, W_dec, b_dec = parameters
    optimizer = torch.optim.Adam(parameters, lr=2e-3, betas=(0.9, 0.999))
    scale = (x - mean).pow(2).sum(1).mean()
    idle = torch.zeros(D_SAE)
    for step in range(SAE_STEPS):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, 2 * (1 - step / SAE_STEPS))
        batch = x[torch.randint(len(x), (SAE_BATCH,), generator=generator)]
        pre = batch @ W_enc.T + b_enc
        error = batch - (_top(pre, K) @ W_dec + b_dec)
        loss = error.pow(2).sum(1).mean() / scale
        idle += 1
        idle[_top(pre.detach(), K).sum(0) > 0] = 0
        dead = idle > 50
        if dead.any():
            revived = _top(pre.masked_fill(~dead, -1e9), min(64, int(dead.sum()))) @ W_dec
            loss = loss + (error.detach() - revived).pow(2).sum(1).mean() / scale / 32
        optimizer.zero_grad()
        loss.backward()
        assert W_dec.grad is not None
        with torch.no_grad():
            W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec
            optimizer.step()
            W_dec /= W_dec.norm(dim=1, keepdim=True)
        tick(1)
    return {
        "W_enc": W_enc.detach(),
        "W_dec": W_dec.detach().T.contiguous(),
        "b_enc": b_enc.detach(),
        "b_dec": b_dec.detach(),
    }


def _top(pre: Tensor, k: int) -> Tensor:
    """(n, D_SAE) with all but the k largest of ReLU(pre) set to 0."""
    value, place = pre.topk(k, dim=1)
    return torch.zeros_like(pre).scatter(1, place, value.relu())


def save_release(folder: Path, saes: Sequence[dict[str, Tensor]], model: str) -> None:
    """The SAEs as Qwen-Scope releases lie on the hub."""
    folder.mkdir(parents=True, exist_ok=True)
    for layer, tensors in enumerate(saes):
        torch.save(tensors, folder / f"layer{layer}.sae.pt")
    config = {
        "model_type": "topk_sae",
        "base_model": model,
        "d_model": WIDTH,
        "d_sae": D_SAE,
        "k": K,
        "num_layers": len(saes),
        "hook_point": "resid_post",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
