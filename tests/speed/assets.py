"""A random Qwen3 model of 23 M parameters, SAEs of 8,192 and 32,768 features, and a corpus of token ids; the shapes of the peer bench."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tests.speed.harness import FOLDER

VOCABULARY, WIDTH, BLOCKS, K = 8192, 512, 6, 50
WIDTHS = {"8k": 8192, "32k": 32768}
ASSETS = FOLDER / "assets"


def release(width: str) -> Path:
    return ASSETS / f"SAE-Res-Bench-W{width.upper()}-L0_{K}"


def make() -> None:
    """Makes what is missing; 2,000 documents of log-normal length (16 to 512, mean 125), Zipf-like tokens."""
    if (ASSETS / "made").exists():
        return
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=1536,
        num_hidden_layers=BLOCKS,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    Qwen3ForCausalLM(config).save_pretrained(ASSETS / "model")
    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>"
    ).save_pretrained(ASSETS / "model")
    lengths = np.clip(rng.lognormal(np.log(128) - 0.18, 0.6, 2000), 16, 512).astype(int)
    chances = 1 / np.arange(1, VOCABULARY - 2) ** 0.9
    chances /= chances.sum()
    torch.save(
        [torch.from_numpy(rng.choice(np.arange(3, VOCABULARY), size=n, p=chances)) for n in lengths],
        ASSETS / "corpus.pt",
    )
    for name, d_sae in WIDTHS.items():
        release(name).mkdir(parents=True, exist_ok=True)
        for layer in range(BLOCKS):
            generator = torch.Generator().manual_seed(100 + layer)
            W = torch.randn(d_sae, WIDTH, generator=generator)
            W /= W.norm(dim=1, keepdim=True)
            tensors = {
                "W_enc": W,
                "W_dec": W.T.contiguous(),
                "b_enc": 0.01 * torch.randn(d_sae, generator=generator),
                "b_dec": torch.zeros(WIDTH),
            }
            torch.save(tensors, release(name) / f"layer{layer}.sae.pt")
    (ASSETS / "made").touch()


def documents(n: int) -> list[torch.Tensor]:
    """Token ids of the first n documents."""
    found: list[torch.Tensor] = torch.load(ASSETS / "corpus.pt")
    return found[:n]


def rows(n: int, context: int = 128) -> torch.Tensor:
    """The same joined and cut into rows: (n_rows, context), no padding, borders lost."""
    flat = torch.cat(documents(n))
    return flat[: len(flat) // context * context].view(-1, context)


def layers(text: str) -> list[int]:
    return list(range(BLOCKS)) if text == "all" else [int(text)]
