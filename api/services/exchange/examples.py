"""The examples of features over a whole index: the strongest samples, and some from each interval of activation.

For a block of features at a time: postings say which samples, forward rows on which tokens, tokens and samples how they read.
What is held grows with the block, not with the corpus.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from api.services.exchange.whole import Whole
from schema.layout import FEATURE_BITS, feature_key, flat_column, sample_key
from schema.packing import CODE_SHIFT, VALUE_OF_BITS, accumulate, read_detail
from schema.store import Store

Ints = npt.NDArray[np.int64]

N_TOP = 20
N_INTERVALS = 5
N_EACH = 5
WINDOW = 128
MOST_TIES = 200
"""Postings rank to within 6 %, the float16 values settle the order: every sample that may be among the strongest is read, but of
a feature that fires alike in more samples than this the first ones."""
CHUNK = 256
"""Samples read at once."""
TOP = -1


@dataclass(frozen=True)
class Choice:
    """How many examples of a feature are wanted, and how long."""

    n_top: int = N_TOP
    n_intervals: int = N_INTERVALS
    n_each: int = N_EACH
    window: int = WINDOW
    """Tokens around the strongest one."""


@dataclass(frozen=True)
class SampleText:
    """One sample as the model read it."""

    dataset: str
    id: str
    text: str
    starts: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int32]

    @cached_property
    def cuts(self) -> list[int]:
        """Where each token's piece of the text ends."""
        real = np.flatnonzero(self.ends > self.starts)
        following = np.append(self.starts[real[1:]], len(self.text))
        ends = np.zeros(len(self.ends), np.int64)
        ends[real] = np.minimum(self.ends[real], following) if len(real) else 0
        return np.maximum.accumulate(ends).tolist()

    def pieces(self, first: int, stop: int) -> list[str]:
        """The text of tokens [first, stop), so that joined they are the text.

        What stands between two tokens belongs to the later one, and so does a character that both have a part of: the bytes of an
        emoji, or the space that some tokenizers put before a text. A token that stands for no text gets none.
        """
        cuts = [0, *self.cuts]
        return [self.text[cuts[i] : cuts[i + 1]] for i in range(first, stop)]


@dataclass(frozen=True)
class Example:
    """One sample that fires a feature, as far as it is shown."""

    sample: SampleText
    group: int
    """Its interval, or TOP."""
    positions: Ints
    """Where in the sample the feature fires."""
    values: npt.NDArray[np.float32]
    first: int
    """The window shown: tokens [first, stop) of the sample."""
    stop: int

    @property
    def maximum(self) -> float:
        return float(self.values.max())

    @property
    def strongest(self) -> int:
        """Where in the window the activation is largest."""
        return int(self.positions[self.values.argmax()]) - self.first

    def tokens(self) -> list[str]:
        return self.sample.pieces(self.first, self.stop)

    def activations(self) -> list[float]:
        """The activation at each token of the window."""
        dense = np.zeros(self.stop - self.first, np.float64)
        inside = (self.positions >= self.first) & (self.positions < self.stop)
        dense[self.positions[inside] - self.first] = self.values[inside]
        return dense.tolist()


@dataclass
class Examples:
    """What is shown of one feature."""

    edges: list[float] = field(default_factory=list)
    """(n_intervals + 1,) of activation; a sample belongs where its maximum lies."""
    shares: list[float] = field(default_factory=list)
    """(n_intervals,) of the firing samples."""
    n_samples: int = 0
    """Samples that fire it."""
    found: list[Example] = field(default_factory=list)
    """The strongest first, then the intervals from the highest down."""


_Where = tuple[int, int]
"""(place of the source, ordinal of the sample)"""


def find_examples(store: Store, whole: Whole, features: Sequence[int], choice: Choice) -> dict[int, Examples]:
    """For each feature of a block its examples."""
    found: dict[int, Examples] = {}
    wanted: dict[_Where, list[tuple[int, int]]] = {}
    for feature, (places, ordinals, codes) in _postings(store, whole, features).items():
        found[feature], chosen = _choose(places, ordinals, codes, choice)
        for i, group in chosen:
            wanted.setdefault((int(places[i]), int(ordinals[i])), []).append((feature, group))
    for feature, example in _read(store, whole, wanted, choice.window):
        found[feature].found.append(example)
    for examples in found.values():
        examples.found = _ordered(examples.found, choice.n_top)
    return found


def _postings(
    store: Store, whole: Whole, features: Sequence[int]
) -> dict[int, tuple[Ints, Ints, npt.NDArray[np.int16]]]:
    """For each feature: sources, ordinals and codes of the samples that fire it."""
    place_of = {segment.id: (place, segment.first) for place, segment in whole.segments}
    keys = [feature_key(segment, feature) for segment in place_of for feature in features]
    rows = store.rows("postings", keys, ["samples", "maxima"])
    (differences, offsets), (codes, _) = (flat_column(rows.column(name)) for name in ("samples", "maxima"))
    parts: dict[int, list[tuple[Ints, Ints, npt.NDArray[np.int16]]]] = {feature: [] for feature in features}
    for i, key in enumerate(rows.column("key").to_pylist()):
        row = slice(offsets[i], offsets[i + 1])
        place, first = place_of[key >> FEATURE_BITS]
        ordinals = np.cumsum(differences[row], dtype=np.int64) + first
        parts[key & ((1 << FEATURE_BITS) - 1)].append((np.full(len(ordinals), place), ordinals, codes[row]))
    none = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int16))
    return {
        feature: (
            np.concatenate([p for p, _, _ in found or [none]]),
            np.concatenate([o for _, o, _ in found or [none]]),
            np.concatenate([c for _, _, c in found or [none]]),
        )
        for feature, found in parts.items()
    }


def _choose(
    places: Ints, ordinals: Ints, codes: npt.NDArray[np.int16], choice: Choice
) -> tuple[Examples, list[tuple[int, int]]]:
    """Which samples to read, as (index, group). Intervals are equally wide, their edges put where a code ends."""
    if not len(codes):
        return Examples(), []
    order = np.lexsort((ordinals, places, -codes.astype(np.int64)))
    weakest = codes[order[min(choice.n_top, len(order)) - 1]] if choice.n_top else np.iinfo(np.int16).max
    n_read = min(int((codes >= weakest).sum()), max(MOST_TIES, choice.n_top))
    chosen = [(int(i), TOP) for i in order[:n_read]]
    top = np.zeros(len(codes), bool)
    top[order[: choice.n_top]] = True
    largest = int(codes.max())
    width = VALUE_OF_BITS[(largest + 1 << CODE_SHIFT) - 1] / max(choice.n_intervals, 1)
    edges = [0, *(_code(width * i) for i in range(1, choice.n_intervals)), largest + 1]
    shares = []
    for group in range(choice.n_intervals):
        inside = (codes >= edges[group]) & (codes < edges[group + 1])
        shares.append(float(inside.mean()))
        rest = np.flatnonzero(inside & ~top)
        rest = rest[np.lexsort((ordinals[rest], places[rest]))]
        evenly = np.linspace(0, len(rest) - 1, min(choice.n_each, len(rest))).round().astype(int)
        chosen += [(int(rest[i]), group) for i in evenly]
    bounds = [float(VALUE_OF_BITS[edge << CODE_SHIFT]) for edge in edges[:-1]]
    bounds.append(float(VALUE_OF_BITS[(edges[-1] << CODE_SHIFT) - 1]))
    return Examples(bounds if choice.n_intervals else [], shares, len(codes)), chosen


def _code(value: float) -> int:
    return int(np.searchsorted(VALUE_OF_BITS, value)) >> CODE_SHIFT


def _read(
    store: Store, whole: Whole, wanted: dict[_Where, list[tuple[int, int]]], window: int
) -> Iterator[tuple[int, Example]]:
    """The examples of the samples wanted, a few hundred samples at a time."""
    where = sorted(wanted)
    for begin in range(0, len(where), CHUNK):
        here = where[begin : begin + CHUNK]
        keys = [sample_key(whole.sources[place].pair, ordinal) for place, ordinal in here]
        rows = store.rows("forward", keys, ["features", "detail"])
        differences, offsets = flat_column(rows.column("features"))
        features = accumulate(differences.astype(np.int64), offsets)
        texts = read_texts(store, whole, here)
        for i, (at, sample) in enumerate(zip(here, texts, strict=True)):
            detail = read_detail(bytes(rows.column("detail")[i].as_py()), features[offsets[i] : offsets[i + 1]])
            for feature, group in wanted[at]:
                row = slice(*np.searchsorted(detail.feature, [feature, feature + 1]))
                yield feature, _example(sample, group, detail.position[row], detail.value[row], window)


def _example(sample: SampleText, group: int, positions: Ints, values: npt.NDArray[np.float32], window: int) -> Example:
    """A window of tokens around the strongest, moved inwards at the ends of the sample."""
    strongest, length = int(positions[values.argmax()]), len(sample.starts)
    first = max(0, min(strongest - window // 2, length - window))
    return Example(sample, group, positions.copy(), values.copy(), first, min(length, first + window))


def read_texts(store: Store, whole: Whole, where: Sequence[_Where]) -> list[SampleText]:
    """These samples as the model read them, in their order."""
    sources = whole.sources
    tokens = store.rows("tokens", [sample_key(sources[p].run, o) for p, o in where], ["starts", "ends"])
    samples = store.rows("samples", [sample_key(sources[p].dataset_id, o) for p, o in where], ["id", "record"])
    starts, offsets = flat_column(tokens.column("starts"))
    ends, _ = flat_column(tokens.column("ends"))
    ids, records = samples.column("id").to_pylist(), samples.column("record").to_pylist()
    return [
        SampleText(
            sources[place].name,
            ids[i],
            sources[place].recipe.render(json.loads(records[i])),
            starts[offsets[i] : offsets[i + 1]].copy(),
            ends[offsets[i] : offsets[i + 1]].copy(),
        )
        for i, (place, _) in enumerate(where)
    ]


def _ordered(found: list[Example], n_top: int) -> list[Example]:
    """The n strongest by their exact values, then the intervals from the highest down, none twice."""

    def rank(example: Example) -> tuple[float, str, str]:
        return (-example.maximum, example.sample.dataset, example.sample.id)

    top = sorted((e for e in found if e.group == TOP), key=rank)[:n_top]
    shown = {(e.sample.dataset, e.sample.id) for e in top}
    rest = (e for e in found if e.group != TOP and (e.sample.dataset, e.sample.id) not in shown)
    return [*top, *sorted(rest, key=lambda e: (-e.group, *rank(e)))]
