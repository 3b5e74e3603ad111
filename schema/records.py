"""What crosses from room to room: frozen records over numpy arrays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from schema.packing import BIN_SHIFT, N_BINS, VALUE_OF_BITS, Packed
from schema.words import Pool as Pool
from schema.words import Scope as Scope
from schema.words import Sort as Sort


@dataclass(frozen=True)
class Tokens:
    """One sample as the model reads it."""

    ordinal: int
    """The sample's place in its dataset, from 0."""
    ids: npt.NDArray[np.int32]
    """(n_tokens,)"""
    starts: npt.NDArray[np.int32]
    """(n_tokens,) the character of the text where each token begins."""
    ends: npt.NDArray[np.int32]
    """(n_tokens,) and the one where it has ended."""
    counts: npt.NDArray[np.bool_]
    """(n_tokens,) False where the mask keeps the token from firing."""
    truncated: bool = False
    """The text went on after the last of these tokens."""

    @property
    def last(self) -> int:
        """Position of the last token that counts, -1 where none does."""
        where = np.flatnonzero(self.counts)
        return int(where[-1]) if len(where) else -1


@dataclass
class Profile:
    """Counts of every feature over some samples: the source of every set question. All arrays are d_sae long.

    Sums are of float16 values, so they are whole multiples of 2^-24 and exact in float64 below 5e8: their order does not matter.
    """

    d_sae: int
    n_samples: int = 0
    n_tokens: int = 0
    """Tokens that count, the masked ones left out."""
    samples_any: npt.NDArray[np.int64] = field(init=False)
    """Samples in which the feature fires at some token."""
    samples_last: npt.NDArray[np.int64] = field(init=False)
    """Samples in which it fires at the last token."""
    tokens: npt.NDArray[np.int64] = field(init=False)
    sums: npt.NDArray[np.float64] = field(init=False)
    maxima: npt.NDArray[np.int16] = field(init=False)
    """float16 bits; 0 where it never fires."""
    histogram: npt.NDArray[np.signedinteger[Any]] = field(init=False)
    """(d_sae, 64) tokens by the upper six bits of the float16, half-octaves."""
    narrow: bool = False
    """Histogram in int32, enough for one shard and half the memory."""

    def __post_init__(self) -> None:
        for name in ("samples_any", "samples_last", "tokens"):
            setattr(self, name, np.zeros(self.d_sae, np.int64))
        self.sums = np.zeros(self.d_sae, np.float64)
        self.maxima = np.zeros(self.d_sae, np.int16)
        self.histogram = np.zeros((self.d_sae, N_BINS), np.int32 if self.narrow else np.int64)

    def add(self, packed: Packed, n_tokens: int) -> None:
        """Counts a batch of samples."""
        size = self.d_sae
        self.n_samples += packed.n_samples
        self.n_tokens += n_tokens
        self.samples_any += np.bincount(packed.feature, minlength=size)
        self.samples_last += np.bincount(packed.last_feature, minlength=size)
        np.add.at(self.tokens, packed.feature, packed.count)
        np.add.at(self.sums, packed.feature, packed.total)
        np.maximum.at(self.maxima, packed.feature, packed.maximum)
        feature_of_activation = np.repeat(packed.feature.astype(np.int64), packed.count)
        np.add.at(self.histogram.reshape(-1), feature_of_activation * N_BINS + (packed.bits >> BIN_SHIFT), 1)

    def merge(self, other: Profile) -> None:
        """Adds the counts of other samples."""
        self.n_samples += other.n_samples
        self.n_tokens += other.n_tokens
        for name in ("samples_any", "samples_last", "tokens", "sums", "histogram"):
            mine = getattr(self, name)
            mine += getattr(other, name)
        np.maximum(self.maxima, other.maxima, out=self.maxima)

    def samples(self, pool: Pool) -> npt.NDArray[np.int64]:
        """Samples that fire each feature under a pool."""
        return self.samples_any if pool == "any" else self.samples_last

    @property
    def largest(self) -> npt.NDArray[np.float32]:
        """Each feature's largest activation."""
        return VALUE_OF_BITS[self.maxima].astype(np.float32)


@dataclass(frozen=True)
class ModelCard:
    """A model under study, as its configuration and tokenizer files tell it."""

    name: str
    source: str
    revision: str
    """The hub's commit, or the SHA-256 of a directory's files."""
    family: str
    n_layers: int
    d_model: int
    context: int | None
    """Longest sequence in tokens, where the model states one."""
    tokenizer_sha256: str


@dataclass(frozen=True)
class SaeCard:
    """One SAE, without its tensors."""

    layer: int
    release: str
    format: str
    activation: str
    """`topk`, `jumprelu` or `relu`."""
    k: int | None
    d_model: int
    d_sae: int
    sha256: str
    source: str
    """The file or directory it was read from."""
    file_size: int = 0
    file_time: int = 0
    """Nanoseconds; with the size, tells unchanged files without reading them."""


@dataclass(frozen=True)
class ShardRange:
    """Consecutive samples of a dataset, [first, stop), that are worked on and committed as one."""

    first: int
    stop: int
    n_chars: int


@dataclass(frozen=True)
class Survey:
    """What one reading of a dataset's source tells, before anything is written."""

    name: str
    source: str
    sha256: str
    """Over every row's id and fields, in order."""
    n_samples: int
    n_chars: int
    fields: dict[str, str]
    """Name and kind of every field seen."""
    id_field: str | None
    skipped: int = 0
    """Rows left out because they could not be used."""
    faults: list[str] = field(default_factory=list)
    """The first few of the reasons."""
    shards: list[ShardRange] = field(default_factory=list)


@dataclass(frozen=True)
class RunReport:
    """What a finished run says of itself."""

    run: int
    dataset: str
    version: int
    saes: list[str]
    n_samples: int
    n_tokens: int
    """Tokens that count."""
    n_masked: int
    n_empty: int
    """Samples without a token that counts: they count as samples with no feature."""
    n_truncated: int
    n_activations: int
    n_saturated: int
    """Activations beyond float16's range, kept at its end."""
    bytes: int
    already: bool = False
    """It was finished before the command began."""
    logits: list[str] = field(default_factory=list)
    """Its SAEs whose logit effects the command added."""
