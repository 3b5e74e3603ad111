"""Labels of samples, and the split into a part to discover on and a part held out.

The split is decided by each sample's id: within a class, samples are ordered by SHA-256 of `<seed>`, a newline and the id, and the
first `discovery_share` of them, rounded, are the discovery part. So it does not depend on the order of the rows, and a sample that
is added later moves none of the others but those at the border.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from api.services.library import Library
from api.services.slices import Condition, group_samples, select_samples
from schema.errors import InputError
from schema.layout import SAMPLE_BITS, sample_key
from schema.lookup import Source
from schema.wire.discovery import LabelValue, TaskBody
from schema.wire.discovery import Split as SplitShape

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
DISCOVERY_NEGATIVE, DISCOVERY_POSITIVE, HELD_OUT_NEGATIVE, HELD_OUT_POSITIVE = range(4)
LEFT_OUT = -1


@dataclass(frozen=True)
class Labelled:
    """The samples of a selection that have a label, ascending."""

    ordinals: Ints
    positive: Bools
    n_unlabelled: int


@dataclass(frozen=True)
class Split:
    """(n_samples,) the part and class of each sample of a dataset, LEFT_OUT for those of neither."""

    state: npt.NDArray[np.int8]
    n_unlabelled: int
    share: float
    seed: int

    @property
    def discovery(self) -> Bools:
        return (self.state == DISCOVERY_NEGATIVE) | (self.state == DISCOVERY_POSITIVE)

    @property
    def held_out(self) -> Bools:
        return self.state >= HELD_OUT_NEGATIVE

    @property
    def positive(self) -> Bools:
        return (self.state == DISCOVERY_POSITIVE) | (self.state == HELD_OUT_POSITIVE)

    @property
    def sizes(self) -> Ints:
        """(4,) samples of each part and class."""
        return np.bincount(self.state[self.state >= 0], minlength=4)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.state.tobytes()).hexdigest()

    def shape(self) -> SplitShape:
        n = [int(size) for size in self.sizes]
        return SplitShape(
            discovery={"positive": n[DISCOVERY_POSITIVE], "negative": n[DISCOVERY_NEGATIVE]},
            held_out={"positive": n[HELD_OUT_POSITIVE], "negative": n[HELD_OUT_NEGATIVE]},
            n_unlabelled=self.n_unlabelled,
            share=self.share,
            seed=self.seed,
        )


def label_samples(
    library: Library, source: Source, field: str, positive: LabelValue, where: Condition, within: Ints | None = None
) -> Labelled:
    """The samples of a slice with their classes; those whose field is missing or null have none.

    Args:
        within: of these ordinals only.

    Raises:
        NotFound: no sample has the field.
        InputError: none of them has the positive value.
    """
    groups = group_samples(library, source, field)
    value = positive if isinstance(positive, str) else json.dumps(positive)
    if value not in groups:
        there = ", ".join([name for name in groups if name != "null"][:10])
        raise InputError(f"no sample of {source.name} has {field} = {value}; its values are {there}")
    state = np.zeros(source.n_samples, np.int8)
    state[groups[value]] = 1
    if value != "null" and "null" in groups:
        state[groups["null"]] = LEFT_OUT
    chosen = select_samples(library, source, where)
    if within is not None:
        chosen = chosen[np.isin(chosen, within, assume_unique=True)]
    labelled = chosen[state[chosen] != LEFT_OUT]
    return Labelled(labelled, state[labelled] == 1, len(chosen) - len(labelled))


def split(library: Library, source: Source, body: TaskBody, within: Ints | None = None) -> Split:
    """The split that a request asks for.

    Raises:
        NotFound, InputError: as `label_samples`, or a class with too few samples to split.
    """
    labelled = label_samples(library, source, body.label_field, body.positive, body.where, within)
    rank = ranks(library, source, body.seed)
    state = np.full(source.n_samples, LEFT_OUT, np.int8)
    for positive in (False, True):
        own = labelled.ordinals[labelled.positive == positive]
        n = round(len(own) * body.discovery_share)
        if not 0 < n < len(own):
            raise InputError(
                f"{source.name} has {len(own)} {'positive' if positive else 'negative'} samples, too few to discover on "
                f"{body.discovery_share:g} of them and hold out the rest"
            )
        ordered = own[np.argsort(rank[own])]
        state[ordered[:n]] = DISCOVERY_POSITIVE if positive else DISCOVERY_NEGATIVE
        state[ordered[n:]] = HELD_OUT_POSITIVE if positive else HELD_OUT_NEGATIVE
    return Split(state, labelled.n_unlabelled, body.discovery_share, body.seed)


def ranks(library: Library, source: Source, seed: int | str) -> npt.NDArray[np.int64]:
    """(n_samples,) each sample's place in the order that a seed gives to the whole dataset."""

    def order() -> npt.NDArray[np.int64]:
        digests = np.zeros((source.n_samples, 2), np.uint64)
        for ordinal, id_ in sample_ids(library, source):
            digests[ordinal] = np.frombuffer(hashlib.sha256(f"{seed}\n{id_}".encode()).digest()[:16], ">u8")
        place = np.empty(source.n_samples, np.int64)
        place[np.lexsort((digests[:, 1], digests[:, 0]))] = np.arange(source.n_samples)
        return place

    return library.remembered(("rule order", source.dataset_id, seed), order)


def sample_ids(library: Library, source: Source) -> Iterator[tuple[int, str]]:
    """Every sample's ordinal and id, streamed."""
    first, stop = sample_key(source.dataset_id), sample_key(source.dataset_id + 1)
    for batch in library.store.span("samples", first, stop, ["key", "id"], settled=True):
        for key, id_ in zip(batch.column("key").to_pylist(), batch.column("id").to_pylist(), strict=True):
            yield key & ((1 << SAMPLE_BITS) - 1), id_
