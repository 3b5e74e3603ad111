"""Search by meaning over many labels: how long vectors and their index take, how much memory, how soon a question is answered, and
what of the true nearest ten it finds.

The sentence model is a stand-in that costs nothing: each text has a direction of its own near that of its topic, so that vectors lie
more evenly than those of sentences do. It is the hardest case for an index.
"""

from __future__ import annotations

import json
import resource
import statistics
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from api.services.labels.importing import import_labels
from api.services.labels.search import embed, search
from api.services.library import Library
from tests.laboratory import make_lab
from tests.speed.harness import FOLDER, Table, fresh

WIDTH, TOPICS, OWN, TIMES, NEAREST = 384, 2_000, 0.7, 25, 10
SAES = ("m/3-tiny", "m/4-tiny")


class Stand:
    """`schema.meaning.Meaning` without a model."""

    name, dimension = "stand-in", WIDTH

    def __init__(self) -> None:
        self.topics = _unit(np.random.default_rng(0).standard_normal((TOPICS, WIDTH), np.float32))

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        own = np.stack([np.random.default_rng(_hash(text)).standard_normal(WIDTH, np.float32) for text in texts])
        topics = self.topics[[_hash(text.split()[0]) % TOPICS for text in texts]]
        return _unit((1 - OWN) * topics + OWN * _unit(own))


def measure(n: int) -> Table:
    FOLDER.mkdir(parents=True, exist_ok=True)
    lab = make_lab(fresh("meaning"))
    lab.meaning = Stand()
    for number, sae in enumerate(SAES):
        pack = _pack(FOLDER / "out" / "meaning.jsonl", sae, range(number, n, len(SAES)))
        import_labels(lab, pack, "ann", sae)
    begin = time.perf_counter()
    embed(lab, lambda _n: None)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows = []
    for name, sae_id in (("all SAEs", None), ("one of two SAEs", 1)):
        took, recall = _asked(lab, sae_id)
        rows.append([f"{n:,}, {name}", f"{seconds:.0f}", f"{peak:,.0f}", took, f"{recall:.3f}"])
    lab.home.close()
    columns = ["labels", "vectors and index, seconds", "peak MiB", "search, median (largest) ms", "recall at 10"]
    return Table("Labels searched by meaning", columns, rows)


def _asked(lab: Library, sae_id: int | None) -> tuple[str, float]:
    texts = [f"t{37 * i} question {i}" for i in range(TIMES)]
    nearest = _exact(lab, texts, sae_id)
    search(lab, sae_id, texts[0], NEAREST, "meaning")
    took, found = [], 0
    for text, best in zip(texts, nearest, strict=True):
        begin = time.perf_counter()
        hits = search(lab, sae_id, text, NEAREST, "meaning")
        took.append((time.perf_counter() - begin) * 1000)
        found += len({hit.label.id for hit in hits} & best)
    return f"{statistics.median(took):.0f} ({max(took):.0f})", found / (TIMES * NEAREST)


def _exact(lab: Library, texts: Sequence[str], sae_id: int | None) -> list[set[int]]:
    """Ids of the true nearest labels of each text, over all vectors, a batch of them in memory at a time."""
    assert lab.meaning is not None
    asked = lab.meaning.embed(texts)
    keys, scores = np.empty((len(texts), 0), np.int64), np.empty((len(texts), 0), np.float32)
    where = "key >= 0" if sae_id is None else f"key >= 0 AND sae = {sae_id}"
    table = lab.store.latest(f"label_vectors_{WIDTH}")
    for batch in table.to_batches(columns=["key", "vector"], filter=where):
        flat = batch.column("vector").flatten().to_numpy().astype(np.float32).reshape(-1, WIDTH)
        keys = np.concatenate([keys, np.tile(batch.column("key").to_numpy(), (len(texts), 1))], axis=1)
        scores = np.concatenate([scores, asked @ _unit(flat).T], axis=1)
        best = np.argsort(-scores, axis=1)[:, :NEAREST]
        keys, scores = np.take_along_axis(keys, best, 1), np.take_along_axis(scores, best, 1)
    return [set(row.tolist()) for row in keys]


def _pack(path: Path, sae: str, numbers: range) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for i in numbers:
            row = {"feature": f"{sae}/{i % 1000}", "text": f"t{i * 7919 % 100_003} label {i}", "author": "ann"}
            file.write(json.dumps(row) + "\n")
    return path


def _hash(text: str) -> int:
    return zlib.crc32(text.encode())


def _unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)
