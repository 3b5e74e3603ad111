"""Which samples hold a feature above a value, read from postings alone.

Postings keep the upper 9 bits of a sample's float16 value. For a value of 0 they are enough: what is listed fires. For another one,
the samples whose code straddles it are settled by their float16 values, from the token detail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from api.services.evidence import Place, firings
from api.services.firing import Posting, postings_by_pair
from api.services.library import Library
from api.services.rules.expressions import Bools, Leaf
from api.services.rules.ground import Ground
from schema.errors import InputError
from schema.lookup import Source
from schema.packing import CODE_SHIFT, VALUE_OF_BITS, value_of_code
from schema.records import Pool

CHUNK = 256
"""Samples whose token detail is held at a time."""


def holding(library: Library, ground: Ground, leaves: Sequence[Leaf], pool: Pool) -> list[dict[Leaf, Bools]]:
    """For each dataset: leaf -> (n_samples,) True where the feature is above its value.

    Raises:
        InputError: a feature that its SAE does not have.
    """
    check_leaves(ground, leaves)
    found: list[dict[Leaf, Bools]] = [{} for _ in ground.datasets]
    for layer in ground.layers:
        own = [leaf for leaf in leaves if leaf.sae == layer.sae.name]
        if not own:
            continue
        segments = [segment for each in layer.segments.values() for segment in each]
        by_pair = postings_by_pair(library.store, segments, [leaf.index for leaf in own], pool)
        for place, source in enumerate(layer.sources):
            for leaf in own:
                posting = by_pair.get(source.pair, {}).get(leaf.index)
                found[place][leaf] = _above(library, source, leaf, posting, pool)
    return found


def check_leaves(ground: Ground, leaves: Sequence[Leaf]) -> None:
    """Raises InputError for a feature that its SAE does not have."""
    widths = {layer.sae.name: layer.sae.d_sae for layer in ground.layers}
    for leaf in leaves:
        if leaf.index >= widths[leaf.sae]:
            raise InputError(
                f"{leaf.sae} has no feature {leaf.index:,}; its features are 0 to {widths[leaf.sae] - 1:,}"
            )


def _above(library: Library, source: Source, leaf: Leaf, posting: Posting | None, pool: Pool) -> Bools:
    holds = np.zeros(source.n_samples, np.bool_)
    if posting is None:
        return holds
    if not leaf.above:
        holds[posting.ordinals] = True
        return holds
    bits = posting.codes.astype(np.int64) << CODE_SHIFT
    smallest, largest = VALUE_OF_BITS[bits], VALUE_OF_BITS[bits | (1 << CODE_SHIFT) - 1]
    holds[posting.ordinals[smallest > leaf.above]] = True
    open_ = posting.ordinals[(smallest <= leaf.above) & (leaf.above < largest)]
    for begin in range(0, len(open_), CHUNK):
        wanted = [Place(source, int(ordinal)) for ordinal in open_[begin : begin + CHUNK]]
        for firing in firings(library.store, {leaf.index: wanted}, pool)[leaf.index]:
            holds[firing.place.ordinal] = firing.activation > leaf.above
    return holds


def matrix(
    library: Library, ground: Ground, features: Mapping[str, Sequence[int]], pool: Pool
) -> list[dict[str, Bools]]:
    """For each dataset: SAE -> (n_features, n_samples) True where the sample fires the feature."""
    leaves = [Leaf(sae, int(index), 0.0) for sae, indices in features.items() for index in indices]
    held = holding(library, ground, leaves, pool)
    return [
        {
            sae: np.array([holds[Leaf(sae, int(index), 0.0)] for index in indices], np.bool_).reshape(len(indices), -1)
            for sae, indices in features.items()
        }
        for holds in held
    ]


def values(library: Library, ground: Ground, sae: str, features: Sequence[int], pool: Pool) -> npt.NDArray[np.float32]:
    """(n_samples, n_features) pooled activations of the first dataset, to within 3 %."""
    layer, source = ground.layer(sae), ground.layer(sae).sources[0]
    found = postings_by_pair(library.store, layer.segments[source.pair], features, pool).get(source.pair, {})
    dense = np.zeros((source.n_samples, len(features)), np.float32)
    for column, feature in enumerate(features):
        if feature in found:
            dense[found[feature].ordinals, column] = value_of_code(found[feature].codes)
    return dense
