"""What a feature seems to be about, said without a model: the tokens on which it fires most, and where. So a new index is never bare.

For any number of features the work is bounded: postings are read once, then each sample that is among some feature's strongest, once.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.services.library import Library
from schema.layout import FEATURE_BITS, feature_key, flat_column, sample_key
from schema.lookup import Source, segments_by_pair
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


def describe(
    library: Library,
    sae: Sae,
    features: Sequence[int] | None = None,
    advance: Callable[[int, int], None] = lambda _n, _total: None,
) -> dict[int, str]:
    """Feature -> what it seems to be about; features that never fire are left out. The same index gives the same words.

    Args:
        features: those wanted; every one of the SAE unless given.
        advance: told how many samples were read, and of how many; (0, 0) while that is being found out.
    """
    with library.home.database.reading() as session:
        sources = sources_of(session, sae)
        segments = segments_by_pair(session, [source.pair for source in sources])
    if not sources:
        return {}
    sights = _strongest(library.store, [segments[source.pair] for source in sources], features, advance)
    _read(library.store, sources, sights, advance)
    library.expect(source.pair for source in sources)
    counts = np.stack([library.counts(source.pair).samples_any for source in sources])
    promoted = promoted_by(library.store, sae, sorted(sights))
    names = [source.name for source in sources]
    return {
        feature: _say(sights[feature], counts[:, feature], names, promoted.get(feature, []))
        for feature in sorted(sights)
    }


def _strongest(
    store: Store,
    segments: Sequence[Sequence[Segment]],
    features: Sequence[int] | None,
    advance: Callable[[int, int], None],
) -> dict[int, Sight]:
    """The samples that fire each feature most, over all datasets."""
    sights: dict[int, Sight] = {}
    begins = {segment.id: (place, segment.first) for place, each in enumerate(segments) for segment in each}
    for table in _posted(store, begins, features):
        _collect(table, begins, features, sights)
        advance(0, 0)
    return sights


def _posted(
    store: Store, segments: Iterable[int], features: Sequence[int] | None
) -> Iterator[pa.Table | pa.RecordBatch]:
    """Postings of all segments: of a few features in one read, else scanned."""
    columns = ["key", "samples", "maxima"]
    if features is not None and len(features) <= FEW:
        yield store.rows("postings", [feature_key(segment, f) for segment in segments for f in features], columns)
        return
    for segment in segments:
        yield from store.span("postings", feature_key(segment), feature_key(segment + 1), columns, settled=True)


def _collect(
    table: pa.Table | pa.RecordBatch,
    begins: dict[int, tuple[int, int]],
    features: Sequence[int] | None,
    sights: dict[int, Sight],
) -> None:
    """Keeps the strongest samples of every row.

    Args:
        begins: segment -> the place of its dataset, and its first sample.
    """
    keys = table.column("key").to_numpy()
    wanted = None if features is None else set(features)
    (differing, offsets), (codes, _) = (flat_column(table.column(name)) for name in ("samples", "maxima"))
    samples = accumulate(differing.astype(np.int64), offsets)
    for key, begin, stop in zip(keys.tolist(), offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        feature = key & ((1 << FEATURE_BITS) - 1)
        if begin == stop or (wanted is not None and feature not in wanted):
            continue
        place, first = begins[key >> FEATURE_BITS]
        mine = codes[begin:stop].astype(np.int64)
        best = np.lexsort((samples[begin:stop], -mine))[:TOP]
        found = [(-int(mine[i]), place, int(samples[begin + i]) + first) for i in best]
        sight = sights.setdefault(feature, Sight())
        sight.strongest = sorted([*sight.strongest, *found])[:TOP]


def _read(
    store: Store, sources: Sequence[Source], sights: dict[int, Sight], advance: Callable[[int, int], None]
) -> None:
    """Counts the tokens on which each feature fires in its strongest samples."""
    wanted: dict[tuple[int, int], list[int]] = {}
    for feature, sight in sights.items():
        for _, place, ordinal in sight.strongest:
            wanted.setdefault((place, ordinal), []).append(feature)
    for feature, piece in _firings(store, sources, wanted, advance):
        sights[feature].pieces[piece] += 1


def _firings(
    store: Store,
    sources: Sequence[Source],
    wanted: dict[tuple[int, int], list[int]],
    advance: Callable[[int, int], None],
) -> Iterator[tuple[int, str]]:
    """Every firing of the features wanted in a sample: the feature and the token's text.

    Args:
        wanted: (place of the dataset, ordinal) -> features.
    """
    everything = sorted(wanted)
    for at in range(0, len(everything), BLOCK):
        block = [(sources[place], place, ordinal) for place, ordinal in everything[at : at + BLOCK]]
        forward = store.rows("forward", [sample_key(s.pair, o) for s, _, o in block], ["features", "detail"])
        tokens = store.rows("tokens", [sample_key(s.run, o) for s, _, o in block], ["starts", "ends"])
        samples = store.rows("samples", [sample_key(s.dataset_id, o) for s, _, o in block], ["record"])
        differing, offsets = flat_column(forward.column("features"))
        absolute = accumulate(differing.astype(np.int64), offsets)
        (starts, edges), (ends, _) = (flat_column(tokens.column(name)) for name in ("starts", "ends"))
        blobs, records = forward.column("detail").to_pylist(), samples.column("record").to_pylist()
        for i, (source, place, ordinal) in enumerate(block):
            text = source.recipe.render(json.loads(records[i]))
            detail = read_detail(blobs[i], absolute[offsets[i] : offsets[i + 1]])
            kept = np.isin(detail.feature, wanted[place, ordinal])
            where = detail.position[kept] + edges[i]
            for feature, begin, end in zip(detail.feature[kept].tolist(), starts[where], ends[where], strict=True):
                yield feature, text[begin:end].strip()
        advance(len(block), len(everything))


def promoted_by(store: Store, sae: Sae, features: Sequence[int]) -> dict[int, list[str]]:
    """Feature -> the tokens that its direction promotes, where that was computed."""
    if not features or not store.offers("logits"):
        return {}
    if len(features) > FEW:
        tables = store.span("logits", feature_key(sae.id), feature_key(sae.id + 1), ["key", "top_tokens"], settled=True)
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
