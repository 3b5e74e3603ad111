"""Samples of a feature over several datasets: the strongest, some from each part of its range, or random ones.

The postings rank samples by code, which is coarse (6 %); the float16 values of those that are read settle their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from api.services.evidence import Place, firings, show
from api.services.firing import postings_by_pair
from api.services.library import Library
from schema.lookup import Source
from schema.records import Pool
from schema.tables import Segment
from schema.wire.features import FeatureSample

STRATA = 5
"""Parts of equal size that the samples are cut into by activation."""

TIES = 48
"""Samples read beyond those wanted, because codes cannot tell them apart."""

Ints = npt.NDArray[np.int64]
Span = tuple[float, float]


@dataclass(frozen=True)
class Ranked:
    """All samples that fire a feature, strongest first; ties in the order of the datasets, then of the samples."""

    feature: int
    sources: Sequence[Source]
    source: Ints
    """(n,) which of the sources."""
    ordinal: Ints
    code: Ints
    """Falling."""

    def __len__(self) -> int:
        return len(self.ordinal)

    def place(self, rank: int) -> Place:
        return Place(self.sources[self.source[rank]], int(self.ordinal[rank]))


@dataclass(frozen=True)
class Draw:
    """Which samples are wanted, by their ranks."""

    ranks: Ints
    spans: Mapping[int, Span] = field(default_factory=dict)
    """Rank -> the part of the range that it was drawn from, where there are parts."""
    as_drawn: bool = False
    """In the order drawn, not the strongest first."""
    most: int | None = None
    """So many of them are shown."""


def rank(
    library: Library, sources: Sequence[Source], segments: Mapping[int, Sequence[Segment]], feature: int, pool: Pool
) -> Ranked:
    """Reads which samples fire the feature."""
    wanted = [segment for source in sources for segment in segments[source.pair]]
    by_pair = postings_by_pair(library.store, wanted, [feature], pool)
    found = {pair: postings[feature] for pair, postings in by_pair.items()}
    ordinal = np.concatenate([found[s.pair].ordinals for s in sources])
    codes = np.concatenate([found[s.pair].codes for s in sources]).astype(np.int64)
    source = np.repeat(np.arange(len(sources)), [len(found[s.pair].ordinals) for s in sources])
    order = np.lexsort((ordinal, source, -codes))
    return Ranked(feature, sources, source[order], ordinal[order], codes[order])


def top(ranked: Ranked, n: int) -> Draw:
    """The n strongest. Those of one code are told apart by reading them, TIES of them at most."""
    if len(ranked) <= n:
        return Draw(np.arange(len(ranked)))
    tied = int(np.searchsorted(-ranked.code, -ranked.code[n - 1], side="right"))
    return Draw(np.arange(min(tied, n + TIES)), most=n)


def page(ranked: Ranked, offset: int, limit: int) -> Draw:
    """Ranks [offset, offset + limit), so that pages neither overlap nor leave one out."""
    return Draw(np.arange(len(ranked))[offset : offset + limit])


def quantiles(ranked: Ranked, each: int, seed: int) -> Draw:
    """So many random ones from each of STRATA parts."""
    rng = np.random.default_rng(seed)
    parts = np.array_split(np.arange(len(ranked)), STRATA)
    drawn = [rng.choice(part, min(each, len(part)), replace=False) if len(part) else part for part in parts]
    below = [(STRATA - 1 - place) / STRATA for place in range(STRATA)]
    spans = {int(r): (low, low + 1 / STRATA) for low, ranks in zip(below, drawn, strict=True) for r in ranks}
    return Draw(np.concatenate(drawn), spans)


def random(ranked: Ranked, n: int, seed: int, offset: int = 0) -> Draw:
    """Without replacement from all that fire; pages of one seed do not overlap."""
    return Draw(np.random.default_rng(seed).permutation(len(ranked))[offset : offset + n], as_drawn=True)


def read(library: Library, ranked: Ranked, pool: Pool, *draws: Draw) -> list[list[FeatureSample]]:
    """The samples of each draw, all of them read at once."""
    ranks = sorted({int(r) for draw in draws for r in draw.ranks})
    places = {r: ranked.place(r) for r in ranks}
    rank_of = {place.key: r for r, place in places.items()}
    if not ranks:
        return [[] for _ in draws]
    found = firings(library.store, {ranked.feature: list(places.values())}, pool)[ranked.feature]
    proofs = show(library, {ranked.feature: found})[ranked.feature]
    by_strength = [rank_of[firing.place.key] for firing in found]
    samples = dict(zip(by_strength, proofs, strict=True))
    out = []
    for draw in draws:
        wanted = {int(r) for r in draw.ranks}
        order = [int(r) for r in draw.ranks] if draw.as_drawn else [r for r in by_strength if r in wanted]
        shown = [FeatureSample(**dict(samples[r]), quantile=draw.spans.get(r)) for r in order[: draw.most]]
        out.append(sorted(shown, key=lambda s: -s.quantile[0]) if draw.spans else shown)  # type: ignore[index]
    return out
