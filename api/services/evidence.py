"""The samples that prove a feature: which fire it most, on which tokens, in their text.

Four reads whatever the number of features: postings (which samples), forward rows (which positions), tokens (which
characters), samples (text).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from api.services.firing import postings
from api.services.library import Library
from schema.layout import flat_column, sample_key
from schema.lookup import Source
from schema.packing import Detail, accumulate, read_detail
from schema.records import Pool
from schema.store import Store
from schema.tables import Segment
from schema.wire.questions import SampleProof, Token

SPARE = 3
"""So many candidates more than asked for are read: values of one code differ by up to 6 %, their float16 values settle the order."""
WINDOW = 1200
"""Characters of text shown around the strongest token."""


class Place(NamedTuple):
    """One sample of a dataset in a run."""

    source: Source
    ordinal: int

    @property
    def key(self) -> int:
        """Of its row in `forward`."""
        return sample_key(self.source.pair, self.ordinal)


@dataclass(frozen=True)
class Firing:
    """One feature in one sample."""

    feature: int
    place: Place
    position: npt.NDArray[np.int64]
    value: npt.NDArray[np.float32]

    @property
    def activation(self) -> float:
        return float(self.value.max())


def proofs(
    library: Library,
    source: Source,
    segments: Sequence[Segment],
    features: Sequence[int],
    pool: Pool,
    n: int,
    within: npt.NDArray[np.int64] | None = None,
) -> dict[int, list[SampleProof]]:
    """For each feature the n samples of a dataset that fire it most, strongest first.

    Args:
        within: ordinals of the samples to choose from; all unless given.
    """
    if not n or not features:
        return {}
    candidates = _candidates(library.store, source, segments, features, pool, n + SPARE, within)
    return show(library, {feature: found[:n] for feature, found in firings(library.store, candidates, pool).items()})


def firings(store: Store, places: Mapping[int, Sequence[Place]], pool: Pool) -> dict[int, list[Firing]]:
    """Where each feature fires in samples that fire it, strongest first.

    Args:
        places: feature -> samples.
    """
    details = read_details(store, [place for found in places.values() for place in found])
    return {
        feature: sorted(
            (_firing(feature, place, details[place.key], pool) for place in found),
            key=lambda firing: (-firing.activation, firing.place.source.pair, firing.place.ordinal),
        )
        for feature, found in places.items()
    }


def show(library: Library, chosen: Mapping[int, Sequence[Firing]]) -> dict[int, list[SampleProof]]:
    """The same with their texts, in the order given."""
    places = {firing.place.key: firing.place for found in chosen.values() for firing in found}
    texts = read_texts(library.store, list(places.values()))
    return {feature: [_proof(firing, texts[firing.place.key]) for firing in found] for feature, found in chosen.items()}


def common_tokens(samples: Sequence[SampleProof], most: int = 6) -> list[str]:
    """The tokens on which a feature fires in the samples shown, most frequent first."""
    pieces = (sample.text[token.start : token.end].strip() for sample in samples for token in sample.tokens)
    return [piece for piece, _ in Counter(piece for piece in pieces if piece).most_common(most)]


def _candidates(
    store: Store,
    source: Source,
    segments: Sequence[Segment],
    features: Sequence[int],
    pool: Pool,
    n: int,
    within: npt.NDArray[np.int64] | None,
) -> dict[int, list[Place]]:
    """Feature -> the n samples with the largest codes, over all segments."""
    best = {}
    for feature, posting in postings(store, segments, features, pool).items():
        order = np.lexsort((posting.ordinals, -posting.codes.astype(np.int64)))
        if within is not None:
            order = order[np.isin(posting.ordinals[order], within)]
        best[feature] = [Place(source, int(ordinal)) for ordinal in posting.ordinals[order[:n]]]
    return best


def read_details(store: Store, places: Sequence[Place]) -> dict[int, Detail]:
    """Key of a forward row -> every activation of its sample."""
    rows = store.rows("forward", sorted({place.key for place in places}), ["features", "detail"])
    differing, offsets = flat_column(rows.column("features"))
    absolute = accumulate(differing.astype(np.int64), offsets)
    return {
        key: read_detail(_blob(rows, i), absolute[offsets[i] : offsets[i + 1]])
        for i, key in enumerate(rows.column("key").to_pylist())
    }


def _firing(feature: int, place: Place, detail: Detail, pool: Pool) -> Firing:
    here = slice(*np.searchsorted(detail.feature, [feature, feature + 1]))
    position, value = detail.position[here], detail.value[here]
    if pool == "last":  # what fires there fires at the last position of all
        at_last = position == detail.position.max()
        position, value = position[at_last], value[at_last]
    return Firing(feature, place, position, value)


def _blob(rows: pa.Table, i: int) -> bytes:
    return bytes(rows.column("detail")[i].as_py())


class SampleText(NamedTuple):
    """A sample as the model read it."""

    id: str
    record: dict[str, object]
    text: str
    token_ids: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]


def read_texts(store: Store, places: Sequence[Place]) -> dict[int, SampleText]:
    """Key of a forward row -> its sample's text and tokens."""
    unique = list({place.key: place for place in places}.values())
    runs = [sample_key(place.source.run, place.ordinal) for place in unique]
    datasets = [sample_key(place.source.dataset_id, place.ordinal) for place in unique]
    tokens = store.rows("tokens", runs, ["token_ids", "starts", "ends"])
    samples = store.rows("samples", datasets)
    (ids, offsets), (starts, _), (ends, _) = (flat_column(tokens.column(n)) for n in ("token_ids", "starts", "ends"))
    texts = {}
    for i, place in enumerate(unique):
        record = json.loads(samples.column("record")[i].as_py())
        row = slice(offsets[i], offsets[i + 1])
        text = place.source.recipe.render(record)
        texts[place.key] = SampleText(samples.column("id")[i].as_py(), record, text, ids[row], starts[row], ends[row])
    return texts


def _proof(firing: Firing, sample: SampleText) -> SampleProof:
    strongest = int(firing.position[firing.value.argmax()])
    begin, stop = window(len(sample.text), int(sample.starts[strongest]))
    return SampleProof(
        dataset=firing.place.source.name,
        id=sample.id,
        activation=firing.activation,
        text=sample.text[begin:stop],
        offset=begin,
        tokens=spans(firing.position, firing.value, sample.starts, sample.ends, (begin, stop)),
    )


def window(length: int, centre: int) -> tuple[int, int]:
    """The part of a text that is shown around a character."""
    begin = max(0, centre - WINDOW // 2)
    return begin, min(length, begin + WINDOW)


def spans(
    position: npt.NDArray[np.int64],
    value: npt.NDArray[np.float32],
    starts: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    shown: tuple[int, int],
) -> list[Token]:
    """The tokens at these positions that lie in the part of a text that is shown, as spans of it."""
    begin, stop = shown
    return [
        Token(start=int(starts[p]) - begin, end=int(ends[p]) - begin, activation=float(v), position=int(p))
        for p, v in zip(position, value, strict=True)
        if begin <= starts[p] and ends[p] <= stop
    ]
