"""How large a feature's activations usually are, and the strengths that follow from it.

The paper gives no strengths; the official application offers 5, 20 and 100 for whatever feature. What makes a strength carry over
from feature to feature is the feature's own mean activation where it fires: c times that, for c of 1/4 to 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from api.services.features.profiles import EDGES, histogram_of, token_counts
from api.services.library import Library
from schema.lookup import Source
from schema.wire.vectors import Suggestion, TypicalActivation

SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
Name = Literal["light", "medium", "strong"]
OF_MEAN: tuple[tuple[float, Name | None], ...] = (
    (0.25, None),
    (0.5, "light"),
    (1.0, "medium"),
    (2.0, "strong"),
    (4.0, None),
)
"""c of c x mean positive activation, and what it is called."""
OF_RESIDUAL: tuple[tuple[float, Name], ...] = ((0.1, "light"), (0.2, "medium"), (0.35, "strong"))
"""Shares of the residual's norm."""
OF_DIFFERENCE: tuple[tuple[float, Name], ...] = ((0.5, "light"), (1.0, "medium"), (2.0, "strong"))
"""Times a difference of means."""


def typical_activation(library: Library, sources: Sequence[Source], feature: int) -> TypicalActivation:
    """Over all tokens that count of these datasets."""
    counts = [library.counts(source.pair) for source in sources]
    detail = [token_counts(library, source.pair) for source in sources]
    bins = np.sum([each.histogram(feature) for each in detail], axis=0)
    n_fired, n_tokens = sum(int(each.tokens[feature]) for each in detail), sum(each.n_tokens for each in counts)
    total = float(sum(each.sums[feature] for each in detail))
    largest = max(float(each.largest[feature]) for each in counts)
    return TypicalActivation(
        n_fired=n_fired,
        n_tokens=n_tokens,
        density=n_fired / n_tokens if n_tokens else None,
        mean=total / n_fired if n_fired else None,
        max=largest,
        quantiles={f"{share:g}": quantile(bins, share, largest) for share in SHARES} if n_fired else {},
        histogram=histogram_of(bins),
    )


def quantile(bins: npt.NDArray[np.int64], share: float, largest: float) -> float:
    """The activation below which a share of the tokens lies, taken geometrically within its half-octave."""
    cumulated = np.cumsum(bins)
    wanted = share * cumulated[-1]
    place = int(np.searchsorted(cumulated, wanted))
    inside = (wanted - (cumulated[place] - bins[place])) / bins[place]
    low, high = EDGES[place], min(EDGES[place + 1], largest)
    return float(low * (high / low) ** inside if low else high * inside)


def suggest_for_feature(typical: TypicalActivation | None) -> list[Suggestion]:
    """In units of its own activation where it fires, and as shares of the residual's norm."""
    found = []
    if typical is not None and typical.mean is not None:
        found = [
            Suggestion(
                name=name,
                strength=c * typical.mean,
                unit="absolute",
                rule=f"{c:g} x its mean activation where it fires",
            )
            for c, name in OF_MEAN
        ]
    return [*found, *_of_residual()]


def suggest_for_vector(made: str) -> list[Suggestion]:
    """A difference of means is a size in itself; any vector can be counted in shares of the residual's norm."""
    if made not in ("decoded_means", "residual_means"):
        return _of_residual()
    found = [
        Suggestion(name=name, strength=c, unit="absolute", rule=f"{c:g} x the difference of the means")
        for c, name in OF_DIFFERENCE
    ]
    return [*found, *_of_residual()]


def _of_residual() -> list[Suggestion]:
    return [
        Suggestion(
            name=name,
            strength=share,
            unit="residual_norm",
            rule=f"{share:.0%} of the residual's norm at each token",
        )
        for share, name in OF_RESIDUAL
    ]
