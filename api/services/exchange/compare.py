"""How far another tool's file agrees with the index: largest activations and densities, feature by feature.

What differs says where to look: another template or mask moves single features, another SAE moves all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from api.services.exchange.whole import Whole, totals
from api.services.library import Library
from api.services.provenance import provenance
from api.services.statistics import rank_data
from schema.errors import Conflict, InputError
from schema.wire.exchange import CompareAnswer, Compared

CLOSE = 0.01
SHOWN = 10


@dataclass(frozen=True)
class Theirs:
    """One feature as a file says."""

    index: int
    maximum: float
    density: float | None


def compare(library: Library, whole: Whole, format: str, theirs: Iterable[Theirs]) -> CompareAnswer:
    """Compares every feature that the file speaks of.

    Raises:
        Conflict: the file has features that the SAE does not.
        InputError: it has none.
    """
    counts, sae = totals(library, whole), whole.sae
    largest = np.zeros(sae.d_sae)
    density = np.full(sae.d_sae, np.nan)
    spoken = np.zeros(sae.d_sae, bool)
    for each in theirs:
        if not 0 <= each.index < sae.d_sae:
            raise Conflict(f"the file has feature {each.index:,}, {sae.name} has {sae.d_sae:,}: it is of another SAE")
        spoken[each.index] = True
        largest[each.index] = max(largest[each.index], each.maximum)
        density[each.index] = np.nan if each.density is None else each.density
    if not spoken.any():
        raise InputError("the file speaks of no feature")
    here = counts.largest.astype(np.float64)
    ours = counts.tokens / max(counts.n_tokens, 1)
    compared = np.flatnonzero(spoken & ((here > 0) | (largest > 0)))
    apart = np.abs(here - largest) / np.maximum(np.maximum(here, largest), 1e-9)
    furthest = compared[np.lexsort((compared, -apart[compared]))][:SHOWN]
    known = compared[~np.isnan(density[compared])]
    return CompareAnswer(
        format=format,
        sae=sae.name,
        n_compared=len(compared),
        n_same_max=int((apart[compared] < CLOSE).sum()),
        n_only_here=int((largest[compared] == 0).sum()),
        n_only_there=int((here[compared] == 0).sum()),
        rank_correlation_max=_correlation(here[compared], largest[compared]),
        rank_correlation_density=_correlation(ours[known], density[known]),
        furthest=[
            Compared(
                feature=f"{sae.name}/{i}",
                index=int(i),
                max_activation=float(here[i]),
                their_max_activation=float(largest[i]),
                density=float(ours[i]),
                their_density=None if np.isnan(density[i]) else float(density[i]),
            )
            for i in furthest
        ],
        provenance=provenance(whole.subject, "any"),
    )


def _correlation(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float | None:
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(rank_data(a), rank_data(b))[0, 1])
