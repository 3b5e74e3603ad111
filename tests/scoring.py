"""Invented evaluation results: models of some ability on samples of some difficulty, made from seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def panel(
    n_models: int, n_samples: int, seed: int, ability: npt.NDArray[np.float64] | None = None
) -> npt.NDArray[np.float64]:
    """(n_models, n_samples) of 0 and 1: right with chance 1 / (1 + exp(difficulty - ability)), the Rasch model."""
    rng = np.random.default_rng(seed)
    abilities = np.linspace(-1.5, 1.5, n_models) if ability is None else ability
    difficulty = rng.normal(0.0, 1.0, n_samples)
    chance = 1.0 / (1.0 + np.exp(difficulty[None, :] - abilities[:, None]))
    return (rng.random((n_models, n_samples)) < chance).astype(np.float64)


def model_names(n: int) -> list[str]:
    return [f"model-{i:02d}" for i in range(n)]


def score_rows(ids: Sequence[str], scores: npt.NDArray[np.float64]) -> list[dict[str, object]]:
    """Rows as `POST /v1/evaluations` takes them."""
    return [{"id": id_, "score": score} for id_, score in zip(ids, scores.tolist(), strict=True)]
