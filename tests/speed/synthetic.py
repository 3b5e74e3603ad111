"""Homes of any size without a model: real rows, postings and profiles of invented activations, written by the real worker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from indexer.run import register, tidy
from schema.home import Home, make_home
from schema.recipe import Recipe
from schema.records import ModelCard, SaeCard, Tokens
from schema.settings import Settings
from tests.speed.feeding import FeedingWorker, NoEngine, survey_of

D_SAE, K, BATCH_TOKENS = 32_768, 50, 2048
MODEL = ModelCard("synthetic", "memory", "0" * 64, "none", 1, 64, None, "0" * 64)
SAE = SaeCard(0, "synthetic", "none", "topk", K, 64, D_SAE, "1" * 64, "memory")
SAE_NAME = "synthetic/0-bench"


def make(
    folder: Path, n_datasets: int, n_samples: int, mean_tokens: int = 128, d_sae: int = D_SAE, prefix: str = "d"
) -> Home:
    """A home with datasets d0, d1, ... of so many samples each."""
    home = make_home(Settings.read(folder, {}))
    rng = np.random.default_rng(1)
    card = replace(SAE, d_sae=d_sae)
    for number in range(n_datasets):
        lengths = np.clip(rng.lognormal(np.log(mean_tokens) - 0.18, 0.6, n_samples), 8, 512).astype(int)
        found = survey_of(f"{prefix}{number}", lengths.tolist(), BATCH_TOKENS)
        run, _ = register(home, MODEL, "bench", [card], found, Recipe(tokenizer_sha256="0" * 64), BATCH_TOKENS, {})
        tokens = [_tokens(i, n) for i, n in enumerate(lengths)]
        FeedingWorker(home, NoEngine(d_sae, K, 1000 * number), run, found, tokens, texts=True).work()  # type: ignore[arg-type]
    tidy(home)
    return home


def _tokens(ordinal: int, n: int) -> Tokens:
    counts = np.ones(n, bool)
    counts[0] = False
    starts = np.arange(n, dtype=np.int32) * 4
    return Tokens(ordinal, np.full(n, 5, np.int32), starts, starts + 4, counts)
