"""Decoder directions: read in blocks, kept while there is room, compared by cosine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from api.services.library import HELD_BYTES, Library
from schema.errors import NotFound
from schema.layout import FEATURE_BITS, directions_table, feature_key
from schema.tables import Sae

Floats = npt.NDArray[np.float32]
BLOCK = 4_096


@dataclass(frozen=True)
class Direction:
    """One feature's decoder column."""

    norm: float
    unit: Floats
    """(d_model,)"""


@dataclass(frozen=True)
class Block:
    """Directions of consecutive features in the store's order, at length 1; a zero one stays zero."""

    features: npt.NDArray[np.int64]
    unit: Floats
    """(n, d_model)"""

    @property
    def nbytes(self) -> int:
        return self.features.nbytes + self.unit.nbytes


def read_direction(library: Library, sae: Sae, feature: int) -> Direction | None:
    """A feature's direction, None where the home has none."""
    if not library.store.offers(directions_table(sae.d_model)):
        return None
    rows = library.store.rows(directions_table(sae.d_model), [feature_key(sae.id, feature)], ["norm", "vector"])
    if not len(rows):
        return None
    vector = rows.column("vector").combine_chunks().flatten().to_numpy().astype(np.float32)
    return Direction(rows.column("norm")[0].as_py(), _unit(vector[None])[0])


def read_columns(library: Library, sae: Sae, features: Sequence[int]) -> Floats:
    """(n, d_model) decoder columns as the home keeps them: float16, at their own lengths.

    Raises:
        NotFound: the home does not have them.
    """
    if not library.store.offers(directions_table(sae.d_model)):
        raise no_directions(sae)
    keys = [feature_key(sae.id, int(feature)) for feature in features]
    parts = []
    for begin in range(0, len(keys), BLOCK):
        wanted = keys[begin : begin + BLOCK]
        rows = library.store.rows(directions_table(sae.d_model), wanted, ["vector"])
        if len(rows) < len(wanted):
            raise no_directions(sae)
        flat = rows.column("vector").combine_chunks().flatten().to_numpy().astype(np.float32)
        parts.append(flat.reshape(-1, sae.d_model))
    return np.concatenate(parts) if parts else np.empty((0, sae.d_model), np.float32)


def blocks(library: Library, sae: Sae) -> Iterator[Block]:
    """All directions of an SAE, from memory where they take at most half of what is held there, else streamed.

    Raises:
        NotFound: the home does not have them.
    """
    if not fits(sae):
        yield from _stream(library, sae)
        return
    yield library.held.get(("directions", sae.id), lambda: _whole(library, sae))


def fits(sae: Sae) -> bool:
    """Whether all its directions are kept in memory once they were read."""
    return 4 * sae.d_sae * sae.d_model <= HELD_BYTES // 2


def nearest(library: Library, sae: Sae, unit: Floats, n: int, without: int | None = None) -> list[tuple[int, float]]:
    """The n features of an SAE with the largest cosine to a direction, nearest first, ties to the lower index.

    Args:
        without: a feature that is not wanted, such as the one whose direction it is.
    """
    features, cosines = np.empty(0, np.int64), np.empty(0, np.float32)
    for block in blocks(library, sae):
        features, cosines = np.concatenate([features, block.features]), np.concatenate([cosines, block.unit @ unit])
        if without is not None:
            kept = features != without
            features, cosines = features[kept], cosines[kept]
        if len(features) > n:
            best = np.argpartition(-cosines, n - 1)[:n]
            best = np.flatnonzero(cosines >= cosines[best].min())
            features, cosines = features[best], cosines[best]
    order = np.lexsort((features, -cosines))[:n]
    return [(int(features[i]), float(np.clip(cosines[i], -1, 1))) for i in order]


def _whole(library: Library, sae: Sae) -> Block:
    unit = np.zeros((sae.d_sae, sae.d_model), np.float32)
    for part in _stream(library, sae):
        unit[part.features] = part.unit
    return Block(np.arange(sae.d_sae), unit)


def _stream(library: Library, sae: Sae) -> Iterator[Block]:
    return (Block(features, _unit(columns)) for features, columns in stream_columns(library, sae))


def stream_columns(library: Library, sae: Sae) -> Iterator[tuple[npt.NDArray[np.int64], Floats]]:
    """All decoder columns of an SAE as the home keeps them, block by block: ((n,) features, (n, d_model)).

    Raises:
        NotFound: the home does not have them.
    """
    table = directions_table(sae.d_model)
    if read_direction(library, sae, sae.d_sae - 1) is None:
        raise no_directions(sae)
    first, stop = feature_key(sae.id), feature_key(sae.id + 1)
    for batch in library.store.span(table, first, stop, ["key", "vector"], settled=True):
        flat = batch.column("vector").flatten().to_numpy().astype(np.float32)
        if batch.num_rows:
            features = batch.column("key").to_numpy() & ((1 << FEATURE_BITS) - 1)
            yield features, flat.reshape(batch.num_rows, sae.d_model)


def no_directions(sae: Sae) -> NotFound:
    return NotFound(f"this home has no decoder directions of {sae.name}; index something with it again to get them")


def _unit(vectors: Floats) -> Floats:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
