"""How a feature fires in each dataset: rates, densities, means and histograms, from stored counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from api.services.library import Library
from api.services.statistics import wilson
from schema.layout import sample_key
from schema.lookup import Source
from schema.packing import BIN_SHIFT, LARGEST, N_BINS, VALUE_OF_BITS
from schema.records import Pool
from schema.wire.features import FeatureProfile, Histogram

Ints = npt.NDArray[np.int64]

EDGES = np.minimum(VALUE_OF_BITS[np.minimum(np.arange(N_BINS + 1) << BIN_SHIFT, len(VALUE_OF_BITS) - 1)], LARGEST)
"""(65,) where each half-octave bin begins; no float16 lies in the last two."""


@dataclass(frozen=True)
class TokenCounts:
    """The part of a pair's profile that counts tokens; the histogram holds its bins that are not 0."""

    tokens: Ints
    """(d_sae,)"""
    sums: npt.NDArray[np.float64]
    """(d_sae,) activations summed."""
    offsets: Ints
    """(d_sae + 1,) where each feature's bins begin."""
    bins: npt.NDArray[np.int8]
    bin_counts: Ints

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (self.tokens, self.sums, self.offsets, self.bins, self.bin_counts))

    def histogram(self, feature: int) -> Ints:
        """(64,) tokens by bin."""
        here = slice(self.offsets[feature], self.offsets[feature + 1])
        counts = np.zeros(N_BINS, np.int64)
        counts[self.bins[here]] = self.bin_counts[here]
        return counts


def token_counts(library: Library, pair: int) -> TokenCounts:
    """The token counts of a pair of a finished run; kept while there is room."""
    return library.held.get(("tokens", pair), lambda: _read(library, pair))


def _read(library: Library, pair: int) -> TokenCounts:
    rows = library.store.rows("profiles", [sample_key(pair)], ["tokens", "sums", "histogram"])
    tokens, sums, flat = (rows.column(name).combine_chunks().values.to_numpy() for name in rows.column_names[1:])
    filled = np.flatnonzero(flat)
    offsets = np.searchsorted(filled, np.arange(len(tokens) + 1) * N_BINS)
    return TokenCounts(tokens, sums, offsets, (filled % N_BINS).astype(np.int8), flat[filled])


def profiles(library: Library, sources: Sequence[Source], feature: int, pool: Pool) -> list[FeatureProfile]:
    """One entry a dataset."""
    return [_profile(library, source, feature, pool) for source in sources]


def _profile(library: Library, source: Source, feature: int, pool: Pool) -> FeatureProfile:
    counts, detail = library.counts(source.pair), token_counts(library, source.pair)
    samples, tokens = int(counts.samples(pool)[feature]), int(detail.tokens[feature])
    low, high = wilson(np.array([samples]), counts.n_samples)
    return FeatureProfile(
        dataset=source.name,
        version=source.version,
        n_samples=counts.n_samples,
        n_tokens=counts.n_tokens,
        samples=samples,
        rate=samples / counts.n_samples,
        rate_interval=(float(low[0]), float(high[0])),
        tokens=tokens,
        density=tokens / counts.n_tokens if counts.n_tokens else None,
        mean=float(detail.sums[feature]) / tokens if tokens else None,
        max=float(counts.largest[feature]),
        histogram=histogram_of(detail.histogram(feature)),
    )


def histogram_of(counts: Ints) -> Histogram:
    """The bins from the first that holds any to the last."""
    filled = np.flatnonzero(counts)
    if not len(filled):
        return Histogram(edges=[], counts=[])
    first, last = int(filled[0]), int(filled[-1])
    return Histogram(edges=EDGES[first : last + 2].tolist(), counts=counts[first : last + 1].tolist())
