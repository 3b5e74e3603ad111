"""All that the index holds of one SAE: which runs speak for it, and its counts over them together.

Other tools know one set of counts for a feature, not one for each dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.services.library import Library
from schema.layout import sample_key
from schema.lookup import Source, Subject, find_all_sources, find_sources, newest_snapshot, segments_by_pair
from schema.packing import BIN_SHIFT, LARGEST, N_BINS, VALUE_OF_BITS
from schema.recipe import Recipe
from schema.tables import Run, RunSae, Sae, Segment

Ints = npt.NDArray[np.int64]

_BOUNDS = VALUE_OF_BITS[np.minimum(np.arange(N_BINS + 1) << BIN_SHIFT, len(VALUE_OF_BITS) - 1)]
BAR_EDGES: npt.NDArray[np.float64] = np.where(np.isfinite(_BOUNDS), _BOUNDS, LARGEST)
"""(65,) where the bars of a histogram begin and end: half-octaves up to the largest float16."""


@dataclass(frozen=True)
class Whole:
    """One SAE and the runs that speak for it: one for each dataset, all under one recipe."""

    subject: Subject
    segments: list[tuple[int, Segment]]
    """(place of the source, segment of its postings)"""

    @property
    def sae(self) -> Sae:
        return self.subject.sae

    @property
    def sources(self) -> list[Source]:
        return self.subject.sources


def find_whole(session: Session, sae: Sae, datasets: Sequence[str] = ()) -> Whole:
    """The runs of an SAE over the datasets named; over all of them where none is.

    Where all datasets do not share a recipe, those under the recipe of the newest run are taken.

    Raises:
        NotFound, Conflict: see `schema.lookup.find_sources`.
    """
    if datasets:
        subject = find_sources(session, sae.name, list(dict.fromkeys(datasets)))
    elif _is_indexed(session, sae):
        subject, _ = find_all_sources(session, sae.name)
    else:
        subject = Subject(sae, [], newest_snapshot(session), Recipe().mask)
    found = segments_by_pair(session, [source.pair for source in subject.sources])
    segments = [(i, segment) for i, source in enumerate(subject.sources) for segment in found[source.pair]]
    return Whole(subject, segments)


def _is_indexed(session: Session, sae: Sae) -> bool:
    """Whether any run over it is finished."""
    finished = select(RunSae.id).join(Run, RunSae.run_id == Run.id)
    return session.scalar(finished.where(RunSae.sae_id == sae.id, Run.finished.is_not(None)).limit(1)) is not None


@dataclass(frozen=True)
class Totals:
    """Counts of every feature of an SAE over all its runs; histograms as rows of a sparse matrix."""

    n_tokens: int
    """Tokens that count."""
    tokens: Ints
    """(d_sae,) tokens on which each fires."""
    largest: npt.NDArray[np.float32]
    """(d_sae,)"""
    offsets: Ints
    """(d_sae + 1,) where each feature's bars begin."""
    bars: npt.NDArray[np.int8]
    heights: Ints

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (self.tokens, self.largest, self.offsets, self.bars, self.heights))

    def density(self, feature: int) -> float:
        """Share of the tokens that count on which the feature fires."""
        return float(self.tokens[feature] / self.n_tokens) if self.n_tokens else 0.0

    def histogram(self, feature: int) -> tuple[list[int], list[float]]:
        """Heights and middles of the feature's bars, from the lowest that is not empty to the highest."""
        row = slice(self.offsets[feature], self.offsets[feature + 1])
        bars, heights = self.bars[row], self.heights[row]
        if not len(bars):
            return [], []
        dense = np.zeros(int(bars[-1] - bars[0]) + 1, np.int64)
        dense[bars - bars[0]] = heights
        edges = BAR_EDGES[bars[0] : bars[-1] + 2]
        return dense.tolist(), ((edges[1:] + edges[:-1]) / 2).tolist()


def totals(library: Library, whole: Whole) -> Totals:
    """The counts of an SAE, added up over its runs; kept for the next feature."""
    pairs = tuple(source.pair for source in whole.sources)
    return library.held.get(("totals", whole.sae.id, pairs), lambda: _add_up(library, whole.sae.d_sae, pairs))


def _add_up(library: Library, d_sae: int, pairs: Sequence[int]) -> Totals:
    n_tokens, tokens, largest = 0, np.zeros(d_sae, np.int64), np.zeros(d_sae, np.float32)
    histogram = np.zeros((d_sae, N_BINS), np.int64)
    columns = ["n_tokens", "tokens", "maxima", "histogram"]
    for pair in pairs:
        row = library.store.rows("profiles", [sample_key(pair)], columns)
        values = {name: row.column(name).combine_chunks() for name in columns}
        n_tokens += values["n_tokens"][0].as_py()
        tokens += values["tokens"].values.to_numpy()
        np.maximum(largest, VALUE_OF_BITS[values["maxima"].values.to_numpy()].astype(np.float32), out=largest)
        histogram += values["histogram"].values.to_numpy().reshape(d_sae, N_BINS)
    feature, bar = np.nonzero(histogram)
    offsets = np.searchsorted(feature, np.arange(d_sae + 1))
    return Totals(n_tokens, tokens, largest, offsets, bar.astype(np.int8), histogram[feature, bar])
