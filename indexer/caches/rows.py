"""Rows of the store from activations that were cached: the same as indexing writes, without a model.

The twin of `indexer.shard.ShardEncoder`: what a shard yields depends on nothing but the cache and the shard.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from indexer.caches.delphi import Cache, Ints, Piece
from indexer.progress import Bar, NoBar
from indexer.shard import Batch, ShardRows
from schema.errors import InputError
from schema.packing import LARGEST, SMALLEST, VALUE_BITS, feature_part, token_part
from schema.records import Tokens


class Width:
    """Stands where a shard asks an encoder how many features it has."""

    def __init__(self, d_sae: int) -> None:
        self.d_sae = d_sae


class CachedPair:
    """One SAE in one run, as `indexer.shard.PairEncoder`."""

    def __init__(self, pair: int, layer: int, d_sae: int) -> None:
        self.pair, self.layer, self.encoder = pair, layer, Width(d_sae)


class CacheEncoder:
    """A cache, ready to give the rows of shards."""

    def __init__(self, cache: Cache, pieces: list[Piece], firsts: Ints, pair: CachedPair, batch_tokens: int) -> None:
        self.cache, self.pieces, self.firsts = cache, pieces, firsts
        self.encoders = [pair]
        self.batch_tokens = batch_tokens

    def encode(self, tokens: Sequence[Tokens], shard: int, bar: Bar | None = None) -> CacheRows:
        return CacheRows(self, tokens, shard, bar or NoBar())


class CacheRows(ShardRows):
    """What one shard of a cache adds to the store."""

    def __init__(self, worker: CacheEncoder, tokens: Sequence[Tokens], shard: int, bar: Bar) -> None:
        super().__init__(worker, tokens, shard, bar)  # type: ignore[arg-type]  # asks for what both have
        self._pair = worker.encoders[0].pair
        ordered = sorted(tokens, key=lambda each: each.ordinal)
        self._ordinals = np.array([each.ordinal for each in ordered], np.int64)
        self._firsts = worker.firsts[self._ordinals]
        lengths = np.array([len(each.ids) for each in ordered], np.int64)
        self._fired = worker.cache.fired(worker.pieces, int(self._firsts[0]), int(self._firsts[-1] + lengths[-1]))
        self._sample = np.searchsorted(self._firsts, self._fired.token, side="right") - 1
        self._position = self._fired.token - self._firsts[self._sample]
        self._inside = self._position < lengths[self._sample]

    def _read(self, batch: Batch) -> None:
        """One batch's activations, those left out that the mask keeps from firing."""
        row_of = np.full(len(self._ordinals), -1, np.int64)
        row_of[np.searchsorted(self._ordinals, [each.ordinal for each in batch.tokens])] = np.arange(len(batch.tokens))
        row = row_of[self._sample]
        here = np.flatnonzero(self._inside & (row >= 0))
        row, position = row[here], self._position[here]
        counts = batch.counts.numpy()[row, position]
        here, row, position = here[counts], row[counts], position[counts]
        value = np.clip(self._fired.value[here], SMALLEST, LARGEST).astype(np.float16).view(np.int16).astype(np.int64)
        keys = token_part(row, position) | feature_part(self._fired.feature[here]) | value
        keys.sort()
        if (np.diff(keys >> VALUE_BITS) == 0).any():
            raise InputError("the cache says twice what a feature does on one token; cache it again")
        self._keep(self._pair, batch, keys)
