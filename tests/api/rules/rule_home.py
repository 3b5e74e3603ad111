"""A home with two labelled datasets, and what its samples fire by an independent computation."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from schema.settings import Settings
from tests.indexer.reference import Reference, reference
from tests.making import PROBLEMS, SONGS, TALES, write_jsonl

SAES = ["tiny-qwen3/1-tiny", "tiny-qwen3/2-tiny"]
K = 6


def _rows(name: str, mixed: list[tuple[dict[str, Any], int | None]]) -> list[dict[str, Any]]:
    return [
        {"id": f"{name}{i}", "text": row["text"], "label": label, "language": "de" if i % 3 else "en"}
        for i, (row, label) in enumerate(mixed)
    ]


LEFT = _rows(
    "l",
    [pair for both in zip([(r, 1) for r in SONGS[:40]], [(r, 0) for r in TALES[:40]], strict=True) for pair in both]
    + [(PROBLEMS[0], None), (PROBLEMS[1], None)],
)
"""Songs against tales, and two samples without a label."""
RIGHT = _rows("r", [(r, 1) for r in SONGS[20:]] + [(r, 0) for r in PROBLEMS[:35]])
ROWS = {"left": LEFT, "right": RIGHT}


def make_rule_home(folder: Path, index_args: dict[str, Any]) -> Settings:
    """Both datasets through layers 1 and 2."""
    from indexer.config import IndexConfig
    from indexer.run import index

    settings = Settings.read(folder / "home", {})
    sources = tuple((name, str(write_jsonl(folder / f"{name}.jsonl", rows))) for name, rows in ROWS.items())
    index(IndexConfig(**{**index_args, "datasets": sources, "layers": "1-2"}), settings)
    return settings


def references(model: Path, release: Path) -> dict[str, dict[str, Reference]]:
    """Dataset -> SAE -> what each sample fires, one sample at a time."""
    found = {}
    for name, rows in ROWS.items():
        layers = reference(model, release, [1, 2], [row["text"] for row in rows], K, max_tokens=512)
        found[name] = {SAES[0]: layers[1], SAES[1]: layers[2]}
    return found


def parts(name: str, share: float = 0.8, seed: int = 0) -> tuple[list[int], list[int]]:
    """(discovery, held-out) places of the labelled rows, by the rule that the documents state."""
    discovery, held_out = [], []
    for label in (0, 1):
        own = [i for i, row in enumerate(ROWS[name]) if row["label"] == label]
        own.sort(key=lambda i: hashlib.sha256(f"{seed}\n{ROWS[name][i]['id']}".encode()).hexdigest())
        n = round(len(own) * share)
        discovery += own[:n]
        held_out += own[n:]
    return sorted(discovery), sorted(held_out)


def labels(name: str) -> np.ndarray:
    return np.array([row["label"] == 1 for row in ROWS[name]])


def f1(predicted: np.ndarray, positive: np.ndarray) -> float:
    hits = int((predicted & positive).sum())
    total = int(predicted.sum() + positive.sum())
    return 2 * hits / total if total else 0.0
