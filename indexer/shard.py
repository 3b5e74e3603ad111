"""Encoding one shard: tokens through the model and all SAEs at once, into the rows of the store.

Batches hold texts of like length and are padded on the right; only tokens that count are encoded, so that no text pays for another.
What a shard yields depends on nothing but the shard: batches never cross its border.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from indexer.encoder import Encoder, Firing
from indexer.progress import Bar, NoBar
from indexer.subject import Subject
from schema.layout import FORWARD, PARTS, TOKENS, list_column, sample_key
from schema.packing import (
    CODE_SHIFT,
    LARGEST,
    MAX_BATCH_SAMPLES,
    SMALLEST,
    Packed,
    detail_blobs,
    differences,
    feature_part,
    pack,
    token_part,
)
from schema.records import Profile, Tokens

FLUSH_BYTES = 256 << 20
"""Rows are handed over when they reach this, so that a shard of many layers does not fill the memory."""


@dataclass(frozen=True)
class PairEncoder:
    """One SAE in one run."""

    pair: int
    layer: int
    encoder: Encoder


@dataclass
class ShardStats:
    """What a shard reports to the ledger, where the run's totals are summed."""

    samples: int = 0
    tokens: int = 0
    """Tokens that count."""
    masked: int = 0
    empty: int = 0
    truncated: int = 0
    activations: int = 0
    saturated: int = 0
    """Activations beyond float16's range, kept at its end."""
    postings: dict[str, int] = field(default_factory=dict)
    """Pair -> features that fire in samples, by which sealing is cut into segments."""
    fired: dict[str, int] = field(default_factory=dict)
    """Pair -> its activations."""
    held: dict[str, int] = field(default_factory=dict)
    """Pair -> bytes of its rows in memory: its share of the shard's bytes on the disk."""


@dataclass(frozen=True)
class Batch:
    """Texts that go through the model together."""

    tokens: list[Tokens]
    ids: Tensor
    """(n_samples, longest) int64, padded on the right with 0."""
    counts: Tensor
    """(n_samples, longest) True where a token is real and counts."""
    token_key: Tensor
    """(n_counting,) the part of the packed key that the token decides."""
    last: npt.NDArray[np.int64]
    """(n_samples,) position of the last token that counts, or -1."""


def cut_batches(tokens: Sequence[Tokens], budget: int) -> Iterator[list[Tokens]]:
    """Texts by length, in batches of at most `budget` padded tokens (or of one text that is longer)."""
    batch: list[Tokens] = []
    for each in sorted(tokens, key=lambda t: (len(t.ids), t.ordinal)):
        if batch and (len(each.ids) * (len(batch) + 1) > budget or len(batch) == MAX_BATCH_SAMPLES):
            yield batch
            batch = []
        batch.append(each)
    if batch:
        yield batch


def make_batch(tokens: list[Tokens]) -> Batch:
    longest = max(1, len(tokens[-1].ids))
    ids = np.zeros((len(tokens), longest), np.int64)
    counts = np.zeros((len(tokens), longest), bool)
    for row, each in enumerate(tokens):
        ids[row, : len(each.ids)] = each.ids
        counts[row, : len(each.ids)] = each.counts
    sample, position = np.nonzero(counts)
    return Batch(
        tokens,
        torch.from_numpy(ids),
        torch.from_numpy(counts),
        torch.from_numpy(token_part(sample, position)),
        np.array([each.last for each in tokens], np.int64),
    )


class ShardEncoder:
    """The model and its SAEs, ready to encode shards of one run."""

    def __init__(self, subject: Subject, encoders: Sequence[PairEncoder], batch_tokens: int) -> None:
        self.subject = subject
        self.encoders = list(encoders)
        self.batch_tokens = batch_tokens

    def encode(self, tokens: Sequence[Tokens], shard: int, bar: Bar | None = None) -> ShardRows:
        """The rows of a shard; iterate over `forward` before asking for the rest."""
        return ShardRows(self, tokens, shard, bar or NoBar())


class ShardRows:
    """What one shard adds to the store."""

    def __init__(self, worker: ShardEncoder, tokens: Sequence[Tokens], shard: int, bar: Bar) -> None:
        self._worker, self._tokens, self._shard, self._bar = worker, tokens, shard, bar
        self._profiles = {each.pair: Profile(each.encoder.d_sae, narrow=True) for each in worker.encoders}
        self._batches: list[pa.RecordBatch] = []
        self.stats = ShardStats(
            samples=len(tokens),
            masked=sum(int((~t.counts).sum()) for t in tokens),
            empty=sum(t.last < 0 for t in tokens),
            truncated=sum(t.truncated for t in tokens),
        )

    def forward(self) -> Iterator[pa.Table]:
        """Rows of `forward`, sorted by key, in tables of about FLUSH_BYTES."""
        held = 0
        for group in cut_batches(self._tokens, self._worker.batch_tokens):
            batch = make_batch(group)
            before = len(self._batches)
            self._read(batch)
            self.stats.tokens += len(batch.token_key)
            self._bar.advance(len(group), tokens=sum(len(t.ids) for t in group))
            held += sum(rows.nbytes for rows in self._batches[before:])
            if held > FLUSH_BYTES:
                yield self._flush()
                held = 0
        if self._batches:
            yield self._flush()
        for pair, profile in self._profiles.items():
            self.stats.postings[str(pair)] = int(profile.samples_any.sum())

    def _read(self, batch: Batch) -> None:
        """One batch through the model; each tapped block's output is encoded while it is there."""
        counts = batch.counts.to(self._worker.subject.device)
        whole = bool(batch.counts.all())

        def tap(layer: int, residual: Tensor) -> None:
            real = residual.reshape(-1, residual.shape[-1]) if whole else residual[counts]
            for each in self._worker.encoders:
                if each.layer == layer:
                    self._add(each, batch, real)

        taps = {each.layer: partial(tap, each.layer) for each in self._worker.encoders}
        self._worker.subject.read(batch.ids, taps)

    def _add(self, each: PairEncoder, batch: Batch, residual: Tensor) -> None:
        keys = packed_keys(each.encoder.encode(residual), batch.token_key) if len(residual) else np.empty(0, np.int64)
        self._keep(each.pair, batch, keys)

    def _keep(self, pair: int, batch: Batch, keys: npt.NDArray[np.int64]) -> None:
        """One pair's activations of a batch, counted and made rows."""
        packed = pack(keys, batch.last)
        self._profiles[pair].add(packed, len(batch.token_key))
        self.stats.activations += len(packed.bits)
        self.stats.saturated += int((packed.bits == LARGEST_BITS).sum()) if LARGEST_BITS in packed.maximum else 0
        rows = forward_rows(pair, batch.tokens, packed)
        self.stats.fired[str(pair)] = self.stats.fired.get(str(pair), 0) + len(packed.bits)
        self.stats.held[str(pair)] = self.stats.held.get(str(pair), 0) + rows.nbytes
        self._batches.append(rows)

    def _flush(self) -> pa.Table:
        table = pa.Table.from_batches(self._batches, schema=FORWARD).combine_chunks()
        self._batches = []
        return table.take(pa.array(np.argsort(table.column("key").to_numpy(), kind="stable")))

    def tokens(self, run: int) -> pa.Table:
        """Rows of `tokens`."""
        ordered = sorted(self._tokens, key=lambda t: t.ordinal)
        offsets = np.concatenate([[0], np.cumsum([len(t.ids) for t in ordered])])
        columns = [
            pa.array([sample_key(run, t.ordinal) for t in ordered], pa.int64()),
            *(
                list_column(TOKENS, name, np.concatenate([getattr(t, attribute) for t in ordered]), offsets)
                for name, attribute in (("token_ids", "ids"), ("starts", "starts"), ("ends", "ends"))
            ),
        ]
        return pa.Table.from_arrays(columns, schema=TOKENS)

    def parts(self) -> pa.Table:
        """Rows of `parts`: what the shard adds to each pair's profile."""
        rows = [part_row(pair, self._shard, profile) for pair, profile in self._profiles.items()]
        return pa.Table.from_batches(rows, schema=PARTS)


LARGEST_BITS = np.array(LARGEST, np.float16).view(np.int16)


def packed_keys(firing: Firing, token_key: Tensor) -> npt.NDArray[np.int64]:
    """One int64 for each activation (see `schema.packing`), sorted already where the device is fast at it."""
    value = firing.value.clamp(min=SMALLEST, max=LARGEST).half().view(torch.int16).long()
    keys = token_key.to(value.device)[firing.token] | feature_part(firing.feature) | value
    return (keys.sort().values if keys.is_cuda else keys).cpu().numpy()


def forward_rows(pair: int, tokens: Sequence[Tokens], packed: Packed) -> pa.RecordBatch:
    """A batch's rows of `forward` for one pair, in the order of its samples."""
    runs, last = packed.run_offsets, packed.last_offsets
    return pa.RecordBatch.from_arrays(
        [
            pa.array([sample_key(pair, t.ordinal) for t in tokens], pa.int64()),
            pa.array([int(t.counts.sum()) for t in tokens], pa.int32()),
            list_column(FORWARD, "features", differences(packed.feature, runs), runs),
            list_column(FORWARD, "maxima", packed.maximum >> CODE_SHIFT, runs),
            list_column(FORWARD, "last_features", differences(packed.last_feature, last), last),
            list_column(FORWARD, "last_values", packed.last_bits >> CODE_SHIFT, last),
            pa.array(detail_blobs(packed), pa.large_binary()),
        ],
        schema=FORWARD,
    )


def part_row(pair: int, shard: int, profile: Profile) -> pa.RecordBatch:
    """One shard's counts for one pair, only of what fires."""
    fires = np.flatnonzero(profile.samples_any)
    flat = profile.histogram.reshape(-1)
    bins = np.flatnonzero(flat)
    one = np.array([0, len(fires)])
    each = {
        "features": np.diff(fires, prepend=0),
        "samples_any": profile.samples_any[fires],
        "samples_last": profile.samples_last[fires],
        "tokens": profile.tokens[fires],
        "sums": profile.sums[fires],
        "maxima": profile.maxima[fires],
    }
    columns = [
        pa.array([sample_key(pair, shard)], pa.int64()),
        pa.array([profile.n_samples], pa.int64()),
        pa.array([profile.n_tokens], pa.int64()),
        *(list_column(PARTS, name, values, one) for name, values in each.items()),
        list_column(PARTS, "bins", np.diff(bins, prepend=0), np.array([0, len(bins)])),
        list_column(PARTS, "bin_counts", flat[bins], np.array([0, len(bins)])),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=PARTS)
