"""Making what the demonstration needs, each piece only once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from transformers import logging as transformers_logging

from indexer.progress import Progress
from scopebase.demo.texts import datasets
from scopebase.demo.train import (
    MODEL_STEPS,
    SAE_STEPS,
    residuals,
    rows_of,
    save_release,
    train_model,
    train_sae,
    train_tokenizer,
)

RELEASE = "SAE-Res-Demo-Qwen3-W1K-L0_16"
TRAINING_ROWS = 1200
"""Rows of the training text whose residuals train the SAEs: 150,000 tokens."""


@dataclass(frozen=True)
class Assets:
    """Where everything lies."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "demo-qwen3"

    @property
    def release(self) -> Path:
        return self.folder / RELEASE

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def data(self, name: str) -> Path:
        return self.folder / "data" / f"{name}.jsonl"


def make_assets(folder: Path, progress: Progress, seed: int = 0) -> tuple[Assets, list[str]]:
    """Datasets, model and SAEs; what an earlier call finished is kept.

    Returns:
        Where they lie, and the datasets' names.
    """
    transformers_logging.disable_progress_bar()
    assets, done = Assets(folder), folder / "made.json"
    found = datasets(seed)
    if done.exists():
        return assets, list(found)
    for name, (_, indexed) in found.items():
        assets.data(name).parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps({"id": f"{name}/{i}", "text": text}) for i, text in enumerate(indexed))
        assets.data(name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    texts = [text for training, _ in found.values() for text in training]
    tokenizer = train_tokenizer(texts)
    rows = rows_of(tokenizer, texts)
    with progress.bar("training a small Qwen3 model", MODEL_STEPS) as bar:
        model = train_model(rows, bar.advance, seed)
    model.save_pretrained(assets.model)
    tokenizer.save_pretrained(assets.model)
    spread = rows[:: max(1, len(rows) // TRAINING_ROWS)][:TRAINING_ROWS]
    layers = residuals(model, spread)
    with progress.bar("training its SAEs", SAE_STEPS * len(layers)) as bar:
        saes = [train_sae(x, bar.advance, seed + layer) for layer, x in enumerate(layers)]
    save_release(assets.release, saes, assets.model.name)
    done.write_text(json.dumps({"seed": seed}))
    return assets, list(found)
