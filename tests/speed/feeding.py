"""Feeding the real worker with tokens that are in memory already, or with activations that no model made."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import torch

from indexer.encoder import Firing
from indexer.engine import Engine
from indexer.ingest import _sample_rows
from indexer.progress import Silent
from indexer.shard import PairEncoder, ShardEncoder
from indexer.subject import Tap
from indexer.survey import DatasetSpec, Sample, ShardSize, _Shards
from indexer.worker import Stats, Worker
from schema.home import Home
from schema.publish import Staged, write
from schema.recipe import Recipe
from schema.records import Survey, Tokens
from schema.tables import Run, Shard


def survey_of(name: str, lengths: Sequence[int], batch_tokens: int) -> Survey:
    """A survey of texts of so many tokens."""
    shards = _Shards(ShardSize.for_batches(batch_tokens), most_chars=1 << 40)
    for length in lengths:
        shards.add(4 * length)
    return Survey(
        name,
        "memory",
        f"{abs(hash((name, tuple(lengths)))):064x}"[:64],
        len(lengths),
        shards.n_chars,
        {"text": "string", "label": "number", "language": "string"},
        None,
        shards=shards.finish(),
    )


class FeedingWorker(Worker):
    """A worker that finds its tokens in memory; rows are stored only where texts are asked for, directions never."""

    def __init__(
        self, home: Home, engine: Engine, run: Run, found: Survey, tokens: Sequence[Tokens], *, texts: bool = False
    ) -> None:
        super().__init__(
            home, engine, run, DatasetSpec(found.name, found.source, Recipe(**run.recipe)), found, Silent()
        )
        self._given = tokens
        self._texts = texts

    def tokens(self, shard: Shard) -> list[Tokens]:
        return list(self._given[shard.first : shard.stop])

    def samples(self, shard: Shard, staged: Staged) -> Stats:
        if self._texts:
            assert shard.dataset_id is not None
            rows = [Sample(f"s{t.ordinal}", _record(t), 0, {}) for t in self._given]
            staged["samples"] = write(self.home.store, "samples", [_sample_rows(shard.dataset_id, 0, rows)])
        return {}

    def directions(self, shard: Shard, staged: Staged) -> Stats:
        return {}


def _record(tokens: Tokens) -> str:
    """A row as JSON, with fields to slice by."""
    text = "word" * len(tokens.ids)
    return json.dumps({"text": text, "label": tokens.ordinal % 2, "language": f"l{tokens.ordinal % 7}"})


class NoModel:
    """Stands where a model stands and hands over as many residuals as there are tokens."""

    device = torch.device("cpu")

    def read(self, ids: torch.Tensor, taps: dict[int, Tap]) -> None:
        for tap in taps.values():
            tap(torch.zeros(*ids.shape, 1))


class Invented:
    """k features a token from a few topics a batch, log-normally frequent, with gamma-distributed values."""

    def __init__(self, d_sae: int, k: int, seed: int) -> None:
        self.d_sae, self.k = d_sae, k
        self._rng = np.random.default_rng(seed)
        self._ranks = np.random.default_rng(7).permutation(d_sae)

    def encode(self, residual: torch.Tensor) -> Firing:
        n = len(residual)
        rank = np.minimum(self._rng.lognormal(6.3, 2.2, (n, 2 * self.k)).astype(np.int64), self.d_sae - 1)
        unique = np.sort(rank, axis=1)
        fresh = np.diff(unique, axis=1, prepend=-1) > 0
        keep = fresh & (np.cumsum(fresh, axis=1) <= self.k)
        token = np.repeat(np.arange(n), keep.sum(axis=1))
        feature = self._ranks[unique[keep]]
        value = self._rng.gamma(2.0, 1.0, len(feature)).astype(np.float32)
        return Firing(torch.from_numpy(token), torch.from_numpy(feature), torch.from_numpy(value))


class NoEngine:
    """An engine without a model: encoders that invent."""

    def __init__(self, d_sae: int, k: int, seed: int) -> None:
        self.d_sae, self.k, self.seed = d_sae, k, seed

    def for_run(self, run: Run) -> ShardEncoder:
        pairs = [
            PairEncoder(pair.id, pair.sae.layer, Invented(self.d_sae, self.k, self.seed + pair.id))
            for pair in run.pairs
        ]
        return ShardEncoder(NoModel(), pairs, run.batch_tokens)  # type: ignore[arg-type]
