"""Which of several datasets or slices shows a feature best, and the samples of it that prove the feature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from api.services.evidence import proofs
from api.services.library import Library
from api.services.questions.proven import proven
from schema.lookup import Source, segments_of
from schema.records import Pool
from schema.wire.questions import SampleProof


@dataclass(frozen=True)
class Ground:
    """A dataset, or some of its samples, that features may be shown on."""

    source: Source
    rates: npt.NDArray[np.float64]
    """(n_features,) of the features that are to be shown, in their order."""
    preferred: bool = False
    """Comes before all others for the features that fire here at all."""
    within: npt.NDArray[np.int64] | None = None
    """Ordinals of the samples; None is all of them."""


def shown_on(
    library: Library, grounds: Sequence[Ground], features: Sequence[int], pool: Pool, n: int
) -> dict[int, list[SampleProof]]:
    """For each feature the n samples that fire it most, of a preferred ground or else of the one where it fires most often.

    Features that fire on none of the grounds are left out.
    """
    if not grounds or not features:
        return {}
    rates = np.stack([ground.rates for ground in grounds])
    preferred = np.array([ground.preferred for ground in grounds])[:, None] & (rates > 0)
    best = np.argmax(rates + preferred, axis=0)
    found: dict[int, list[SampleProof]] = {}
    for i in np.unique(best):
        chosen = [f for f, b, r in zip(features, best, rates[i], strict=True) if b == i and r > 0]
        found |= _of_one(library, grounds[i], chosen, pool, n)
    return found


def _of_one(
    library: Library, ground: Ground, features: Sequence[int], pool: Pool, n: int
) -> dict[int, list[SampleProof]]:
    if ground.within is None:
        return proven(library, ground.source, features, pool, n)
    with library.home.database.reading() as session:
        segments = segments_of(session, ground.source.pair)
    return proofs(library, ground.source, segments, features, pool, n, ground.within)
