"""Which features fire in the same samples as one feature, and which avoid them.

Of the samples that fire it, all or a seeded random part are read with everything that they fire. Another feature that has nothing to do
with it fires in them as in any samples: the count is hypergeometric, which Fisher's exact test looks at, whole or part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from api.services.features.chosen import Ranked
from api.services.firing import count_places
from api.services.library import Library
from api.services.statistics import benjamini_hochberg, fisher_exact
from schema.lookup import Source
from schema.records import Pool
from schema.wire.features import Together

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Coactivation:
    """One feature against all of an SAE that fire; arrays have an entry for each of them."""

    features: Ints
    both: Ints
    """Of the samples read, those that fire the other one."""
    base: Ints
    """Of all samples."""
    phi: Floats
    p: Floats
    q: Floats
    n_read: int
    n_fired: int
    n_samples: int

    def strongest(self, n: int, *, rivals: bool, without: int | None = None) -> list[tuple[int, Together]]:
        """The n of largest phi, or of smallest where they are negative; the other sign is left out."""
        sign = 1.0 if rivals else -1.0
        order = np.lexsort((self.features, sign * self.phi))
        kept = [i for i in order if sign * self.phi[i] < 0 and self.features[i] != without][:n]
        return [(int(self.features[i]), self._together(int(i))) for i in kept]

    def _together(self, i: int) -> Together:
        rate, base = self.both[i] / self.n_read, self.base[i] / self.n_samples
        return Together(
            both=int(self.both[i]),
            n=self.n_read,
            rate=float(rate),
            base_rate=float(base),
            lift=float(rate / base),
            phi=float(self.phi[i]),
            p_value=float(self.p[i]),
            q_value=float(self.q[i]),
        )


def draw(ranked: Ranked, most: int, seed: int) -> list[Ints]:
    """For each source the samples to read, ascending: all that fire the feature, or a random part of `most`."""
    chosen = np.arange(len(ranked))
    if len(ranked) > most:
        chosen = np.random.default_rng(seed).choice(len(ranked), most, replace=False)
    return [np.sort(ranked.ordinal[chosen][ranked.source[chosen] == place]) for place in range(len(ranked.sources))]


def coactivation(
    library: Library, sources: Sequence[Source], drawn: Sequence[Ints], d_sae: int, n_fired: int, pool: Pool
) -> Coactivation:
    """Counts an SAE's features in the samples drawn.

    Args:
        sources: the datasets in the runs of the SAE to look at.
        drawn: the samples of each.
        n_fired: samples that fire the feature, drawn or not.
    """
    library.expect(source.pair for source in sources)
    base = np.sum([library.counts(source.pair).samples(pool) for source in sources], axis=0)
    places = {source.pair: ordinals for source, ordinals in zip(sources, drawn, strict=True)}
    both = count_places(library.store, places, d_sae, pool)
    features = np.flatnonzero(base)
    both, base = both[features], base[features]
    n_read, n_samples = sum(len(o) for o in drawn), sum(library.counts(s.pair).n_samples for s in sources)
    p = fisher_exact(both, n_read, base - both, n_samples - n_read) if n_read else np.ones(len(features))
    return Coactivation(
        features,
        both,
        base,
        _phi(both, base, n_read, n_fired, n_samples),
        p,
        benjamini_hochberg(p),
        n_read,
        n_fired,
        n_samples,
    )


def _phi(both: Ints, base: Ints, n_read: int, n_fired: int, n_samples: int) -> Floats:
    """(P(b|a) - P(b)) sqrt(P(a) / (1 - P(a))) / sqrt(P(b) (1 - P(b))), 0 where either fires always or never."""
    a, b = n_fired / n_samples, base / n_samples
    if not n_read or a == 1:
        return np.zeros(len(base))
    spread = np.sqrt(b * (1 - b))
    phi = np.divide((both / n_read - b) * np.sqrt(a / (1 - a)), spread, out=np.zeros(len(base)), where=spread > 0)
    return np.asarray(np.clip(phi, -1, 1))
