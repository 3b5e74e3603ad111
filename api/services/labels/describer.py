"""What a feature seems to be about, said without a model: the tokens on which it fires most, and where. So a new index is never bare.

For any number of features the work is bounded: postings are read once, then each sample that is among some feature's strongest, once.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.services.library import Library
from schema.layout import FEATURE_BITS, SAMPLE_BITS, feature_key, flat_column, sample_key
from schema.lookup import Source, segments_of
from schema.packing import accumulate, read_detail
from schema.recipe import Recipe
from schema.store import Store
from schema.tables import Dataset, Run, RunSae, Sae, Segment

TOP = 10
"""Samples a feature."""
FEW = 2_000
"""Up to so many features, postings are looked up by their keys; beyond, all are read through."""
BLOCK = 500
"""Samples read at once."""
NAMED = 4
"""Tokens named."""
WORTH_NAMING = 0.05
"""Share of the firings that a token must have, unless it is the first."""
LOGITS = 4
BROKEN = "\ufffd"
"""Stands in tokens that are a part of a character."""

Ints = npt.NDArray[np.int64]


@dataclass
class Sight:
    """What was seen of one feature."""

    strongest: list[tuple[int, int, int]] = field(default_factory=list)
    """(-code, place of the source, ordinal) of its strongest samples."""
    pieces: Counter[str] = field(default_factory=Counter)
    """Token -> firings in those."""


def sources_of(session: Session, sae: Sae) -> list[Source]:
    """The newest finished run of each dataset with an SAE."""
    query = select(RunSae.id, Run, Dataset).join(Run, RunSae.run_id == Run.id).join(Dataset)
    rows = session.execute(query.where(RunSae.sae_id == sae.id, Run.finished.is_not(None)).order_by(Run.finished))
    newest = {
        dataset.name: Source(
            pair, run.id, dataset.name, dataset.version, dataset.id, dataset.n_samples, Recipe(**run.recipe)
        )
        for pair, run, dataset in rows
    }
    return [newest[name] for name in sorted(newest)]


def describe(library: Library, sae: Sae, features: Sequence[int] | None = None) -> dict[int, str]:
    """Feature -> what it seems to be about; features that never fire are left out. The same index gives the same words.

    Args:
        features: those wanted; every one of the SAE unless given.
    """
    with library.home.database.reading() as session:
        sources = sources_of(session, sae)
        segments = [segments_of(session, source.pair) for source in sources]
    if not sources:
        return {}
    sights = _strongest(library.store, segments, features)
    _read(library.store, sources, sights)
    counts = np.stack([library.counts(source.pair).samples_any for source in sources])
    promoted = promoted_by(library.store, sae, sorted(sights))
    names = [source.name for source in sources]
    return {
        feature: _say(sights[feature], counts[:, feature], names, promoted.get(feature, []))
        for feature in sorted(sights)
    }


def _strongest(store: Store, segments: Sequence[Sequence[Segment]], features: Sequence[int] | None) -> dict[int, Sight]:
    """The samples that fire each feature most, over all datasets."""
    sights: dict[int, Sight] = {}
    for place, each in enumerate(segments):
        for segment in each:
            for table in _posted(store, segment, features):
                _collect(table, place, segment, features, sights)
    return sights


def _posted(store: Store, segment: Segment, features: Sequence[int] | None) -> Iterable[pa.Table | pa.RecordBatch]:
    columns = ["key", "samples", "maxima"]
    if features is None or len(features) > FEW:
        return store.span("postings", feature_key(segment.id), feature_key(segment.id + 1), columns)
    return [store.rows("postings", [feature_key(segment.id, f) for f in features], columns)]


def _collect(
    table: pa.Table | pa.RecordBatch,
    place: int,
    segment: Segment,
    features: Sequence[int] | None,
    sights: dict[int, Sight],
) -> None:
    keys = table.column("key").to_numpy() & ((1 << FEATURE_BITS) - 1)
    wanted = None if features is None else set(features)
    (differing, offsets), (codes, _) = (flat_column(table.column(name)) for name in ("samples", "maxima"))
    samples = accumulate(differing.astype(np.int64), offsets)
    for feature, begin, stop in zip(keys.tolist(), offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        if begin == stop or (wanted is not None and feature not in wanted):
            continue
        mine = codes[begin:stop].astype(np.int64)
        best = np.lexsort((samples[begin:stop], -mine))[:TOP]
        found = [(-int(mine[i]), place, int(samples[begin + i]) + segment.first) for i in best]
        sight = sights.setdefault(feature, Sight())
        sight.strongest = sorted([*sight.strongest, *found])[:TOP]


def _read(store: Store, sources: Sequence[Source], sights: dict[int, Sight]) -> None:
    """Counts the tokens on which each feature fires in its strongest samples."""
    for place, source in enumerate(sources):
        wanted: dict[int, list[int]] = {}
        for feature, sight in sights.items():
            for _, where, ordinal in sight.strongest:
                if where == place:
                    wanted.setdefault(ordinal, []).append(feature)
        for ordinal, features, starts, ends, text in _firings(store, source, wanted):
            for feature, begin, end in zip(features, starts, ends, strict=True):
                sights[feature].pieces[text[ordinal][begin:end].strip()] += 1


def _firings(
    store: Store, source: Source, wanted: dict[int, list[int]]
) -> Iterator[tuple[int, list[int], list[int], list[int], dict[int, str]]]:
    """For each sample: the firings of the features wanted, and which characters each is of."""
    ordinals = sorted(wanted)
    for at in range(0, len(ordinals), BLOCK):
        block = ordinals[at : at + BLOCK]
        forward = store.rows("forward", [sample_key(source.pair, o) for o in block], ["features", "detail"])
        tokens = store.rows("tokens", [sample_key(source.run, o) for o in block], ["starts", "ends"])
        samples = store.rows("samples", [sample_key(source.dataset_id, o) for o in block], ["record"])
        records = samples.column("record").to_pylist()
        text = {o: source.recipe.render(json.loads(record)) for o, record in zip(block, records, strict=True)}
        differing, offsets = flat_column(forward.column("features"))
        absolute = accumulate(differing.astype(np.int64), offsets)
        (starts, edges), (ends, _) = (flat_column(tokens.column(name)) for name in ("starts", "ends"))
        details = forward.column("detail").to_pylist()
        for i, key in enumerate(forward.column("key").to_pylist()):
            ordinal = key & ((1 << SAMPLE_BITS) - 1)
            detail = read_detail(details[i], absolute[offsets[i] : offsets[i + 1]])
            kept = np.isin(detail.feature, wanted[ordinal])
            position = detail.position[kept] + edges[i]
            yield ordinal, detail.feature[kept].tolist(), starts[position].tolist(), ends[position].tolist(), text


def promoted_by(store: Store, sae: Sae, features: Sequence[int]) -> dict[int, list[str]]:
    """Feature -> the tokens that its direction promotes, where that was computed."""
    if not features or not store.has("logits"):
        return {}
    if len(features) > FEW:
        tables = store.span("logits", feature_key(sae.id), feature_key(sae.id + 1), ["key", "top_tokens"])
    else:
        tables = [store.rows("logits", [feature_key(sae.id, f) for f in features], ["top_tokens"])]
    return {
        key & ((1 << FEATURE_BITS) - 1): [token for token in tops if token.strip() and BROKEN not in token][:LOGITS]
        for table in tables
        for key, tops in zip(table.column("key").to_pylist(), table.column("top_tokens").to_pylist(), strict=True)
    }


def _say(sight: Sight, counts: Ints, names: Sequence[str], promoted: Sequence[str]) -> str:
    """The sentence."""
    firings = sum(sight.pieces.values())
    ranked = sorted(sight.pieces.items(), key=lambda item: (-item[1], item[0]))
    named = [(piece, n) for i, (piece, n) in enumerate(ranked[:NAMED]) if i == 0 or n >= WORTH_NAMING * firings]
    share = sum(n for _, n in named) / firings
    n = len(sight.strongest)
    top = f"{firings:,} firings in its strongest sample{'s' if n > 1 else ''}"
    parts = [f"fires on {', '.join(_quoted(piece) for piece, _ in named)} ({share:.0%} of {top})"]
    total, leading = int(counts.sum()), int(counts.argmax())
    if len(names) > 1 and counts[leading] * 2 > total:
        parts.append(f"mostly in {names[leading]} ({counts[leading]:,} of {total:,} samples)")
    else:
        parts.append(
            f"in {total:,} sample{'s' if total > 1 else ''} of {np.count_nonzero(counts)} of {len(names)} datasets"
        )
    if promoted:
        parts.append(f"promotes {', '.join(_quoted(str(token).strip()) for token in promoted)}")
    return "; ".join(parts)


def _quoted(piece: str) -> str:
    return f"'{piece}'" if piece else "white space"
