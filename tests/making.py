"""Making small things from seeds: models, tokenizers, SAE releases, datasets."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "runs",
    "sleeps",
    "sings",
    "under",
    "over",
    "tree",
    "house",
    "river",
    "moon",
    "sun",
    "apple",
    "pear",
    "has",
    "gives",
    "takes",
    "three",
    "five",
    "red",
    "blue",
    "how",
    "many",
]
THINGS = ["apples", "pears", "shells", "coins"]


def _texts(seed: int, n: int, make: Any) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [make(i, rng) for i in range(n)]


def _problem(i: int, rng: random.Random) -> dict[str, Any]:
    a, b = rng.randint(2, 99), rng.randint(2, 99)
    thing = rng.choice(THINGS)
    return {
        "id": f"p{i}",
        "text": f"Ann has {a} {thing} and gets {b} more {thing}. How many {thing} has she now?",
        "answer": a + b,
        "level": i % 3,
    }


def _song(i: int, rng: random.Random) -> dict[str, Any]:
    line = " ".join(rng.choice(WORDS) for _ in range(rng.randint(3, 25)))
    return {"id": f"s{i}", "text": f"La la la, {line}!", "mood": rng.choice(["sad", "gay"])}


def _tale(i: int, rng: random.Random) -> dict[str, Any]:
    lines = [" ".join(rng.choice(WORDS) for _ in range(8)) for _ in range(rng.randint(1, 9))]
    return {"id": f"t{i}", "text": "Once upon a time. " + ". ".join(lines) + ".", "lang": "en"}


PROBLEMS = _texts(1, 60, _problem)
SONGS = _texts(2, 45, _song)
TALES = _texts(3, 50, _tale)


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_tokenizer(texts: Sequence[str] | None = None) -> Any:
    """A byte-level BPE tokenizer of 400 tokens that puts <s> before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts or [row["text"] for row in (*PROBLEMS, *SONGS, *TALES)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def make_model(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A random Qwen3 model with its tokenizer, saved as Hugging Face models are."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    shape = {
        "vocab_size": 400,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 256,
    }
    model = Qwen3ForCausalLM(Qwen3Config(**{**shape, **changes}, bos_token_id=0, eos_token_id=1, pad_token_id=1))
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def sae_tensors(layer: int, d_model: int, d_sae: int, seed: int = 0) -> dict[str, Any]:
    """Random tensors of a Qwen-Scope SAE, with a b_dec that would show if it were subtracted."""
    import torch

    generator = torch.Generator().manual_seed(1000 * seed + layer)
    W = torch.nn.functional.normalize(torch.randn(d_sae, d_model, generator=generator), dim=1)
    return {
        "W_enc": W,
        "W_dec": W.T.contiguous(),
        "b_enc": 0.05 * torch.randn(d_sae, generator=generator),
        "b_dec": 0.5 * torch.randn(d_model, generator=generator),
    }


def make_release(folder: Path, n_layers: int, d_model: int, d_sae: int, k: int, seed: int = 0) -> Path:
    """A Qwen-Scope release of random SAEs."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    for layer in range(n_layers):
        torch.save(sae_tensors(layer, d_model, d_sae, seed), folder / f"layer{layer}.sae.pt")
    (folder / "config.json").write_text(
        json.dumps({"model_type": "topk_sae", "d_model": d_model, "d_sae": d_sae, "k": k})
    )
    return folder
