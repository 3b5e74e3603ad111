"""The samples that prove a feature: which fire it most, on which tokens, in their text.

Four reads whatever the number of features: postings (which samples), forward rows (which positions), tokens (which
characters), samples (text).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from api.services.firing import postings
from api.services.library import Library
from schema.layout import SAMPLE_BITS, flat_column, sample_key
from schema.lookup import Source
from schema.packing import accumulate, read_detail
from schema.records import Pool
from schema.store import Store
from schema.tables import Segment
from schema.wire.questions import SampleProof, Token

SPARE = 3
"""So many candidates more than asked for are read: values of one code differ by up to 6 %, their float16 values settle the order."""
WINDOW = 1200
"""Characters of text shown around the strongest token."""


@dataclass(frozen=True)
class Firing:
    """One feature in one sample."""

    feature: int
    ordinal: int
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
    candidates = _candidates(library.store, segments, features, pool, n + SPARE, within)
    firings = _firings(library.store, source.pair, candidates, pool)
    chosen = {
        feature: sorted(found, key=lambda f: (-f.activation, f.ordinal))[:n] for feature, found in firings.items()
    }
    ordinals = sorted({firing.ordinal for found in chosen.values() for firing in found})
    texts = _texts(library.store, source, ordinals)
    return {
        feature: [_proof(source.name, firing, *texts[firing.ordinal]) for firing in found]
        for feature, found in chosen.items()
    }


def common_tokens(samples: Sequence[SampleProof], most: int = 6) -> list[str]:
    """The tokens on which a feature fires in the samples shown, most frequent first."""
    pieces = (sample.text[token.start : token.end].strip() for sample in samples for token in sample.tokens)
    return [piece for piece, _ in Counter(piece for piece in pieces if piece).most_common(most)]


def _candidates(
    store: Store,
    segments: Sequence[Segment],
    features: Sequence[int],
    pool: Pool,
    n: int,
    within: npt.NDArray[np.int64] | None,
) -> dict[int, list[int]]:
    """Feature -> ordinals of the n samples with the largest codes, over all segments."""
    best = {}
    for feature, posting in postings(store, segments, features, pool).items():
        order = np.lexsort((posting.ordinals, -posting.codes.astype(np.int64)))
        if within is not None:
            order = order[np.isin(posting.ordinals[order], within)]
        best[feature] = [int(ordinal) for ordinal in posting.ordinals[order[:n]]]
    return best


def _firings(store: Store, pair: int, candidates: dict[int, list[int]], pool: Pool) -> dict[int, list[Firing]]:
    """Where each feature fires in its candidates."""
    ordinals = sorted({ordinal for found in candidates.values() for ordinal in found})
    rows = store.rows("forward", [sample_key(pair, ordinal) for ordinal in ordinals], ["features", "detail"])
    place = {key & ((1 << SAMPLE_BITS) - 1): i for i, key in enumerate(rows.column("key").to_pylist())}
    differing, offsets = flat_column(rows.column("features"))
    absolute = accumulate(differing.astype(np.int64), offsets)
    details = {
        ordinal: read_detail(_blob(rows, i), absolute[offsets[i] : offsets[i + 1]]) for ordinal, i in place.items()
    }
    found: dict[int, list[Firing]] = {}
    for feature, samples in candidates.items():
        found[feature] = []
        for ordinal in samples:
            detail = details[ordinal]
            here = slice(*np.searchsorted(detail.feature, [feature, feature + 1]))
            position, value = detail.position[here], detail.value[here]
            if pool == "last":  # what fires there fires at the last position of all
                at_last = position == detail.position.max()
                position, value = position[at_last], value[at_last]
            found[feature].append(Firing(feature, ordinal, position, value))
    return found


def _blob(rows: pa.Table, i: int) -> bytes:
    return bytes(rows.column("detail")[i].as_py())


_Text = tuple[str, str, npt.NDArray[np.int64], npt.NDArray[np.int64]]


def _texts(store: Store, source: Source, ordinals: Sequence[int]) -> dict[int, _Text]:
    """Ordinal -> the sample's id, text, and its tokens' starts and ends."""
    tokens = store.rows("tokens", [sample_key(source.run, ordinal) for ordinal in ordinals], ["starts", "ends"])
    samples = store.rows("samples", [sample_key(source.dataset_id, ordinal) for ordinal in ordinals])
    starts, offsets = flat_column(tokens.column("starts"))
    ends, _ = flat_column(tokens.column("ends"))
    texts = {}
    for i, ordinal in enumerate(ordinals):
        text = source.recipe.render(json.loads(samples.column("record")[i].as_py()))
        row = slice(offsets[i], offsets[i + 1])
        texts[ordinal] = (samples.column("id")[i].as_py(), text, starts[row], ends[row])
    return texts


def _proof(
    dataset: str, firing: Firing, id_: str, text: str, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> SampleProof:
    strongest = int(firing.position[firing.value.argmax()])
    begin = max(0, int(starts[strongest]) - WINDOW // 2)
    stop = min(len(text), begin + WINDOW)
    shown = [
        Token(start=int(starts[p]) - begin, end=int(ends[p]) - begin, activation=float(v), position=int(p))
        for p, v in zip(firing.position, firing.value, strict=True)
        if begin <= starts[p] and ends[p] <= stop
    ]
    return SampleProof(
        dataset=dataset, id=id_, activation=firing.activation, text=text[begin:stop], offset=begin, tokens=shown
    )
