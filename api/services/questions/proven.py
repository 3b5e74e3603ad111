"""Proofs that were shown before. A feature is shown in many answers over a dataset, and what proves it never changes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from api.services.evidence import proofs
from api.services.library import Library
from schema.lookup import Source, segments_of
from schema.records import Pool
from schema.wire.questions import SampleProof

MOST = 50_000
"""Proofs kept: samples of about 1,000 characters, 100 MB or so."""

_Key = tuple[int, Pool, int, int]


class _Shelf:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.found: OrderedDict[_Key, list[SampleProof]] = OrderedDict()
        self.n = 0


_SHELVES: WeakKeyDictionary[Library, _Shelf] = WeakKeyDictionary()


def proven(
    library: Library, source: Source, features: Sequence[int], pool: Pool, n: int
) -> dict[int, list[SampleProof]]:
    """As `proofs`; only the features that were not shown lately are read."""
    shelf = _SHELVES.setdefault(library, _Shelf())
    keys: dict[int, _Key] = {feature: (source.pair, pool, n, feature) for feature in features}
    with shelf.lock:
        shown = {feature: shelf.found[key] for feature, key in keys.items() if key in shelf.found}
        for feature in shown:
            shelf.found.move_to_end(keys[feature])
    missing = [feature for feature in features if feature not in shown]
    if not missing or not n:
        return shown
    with library.home.database.reading() as session:
        segments = segments_of(session, source.pair)
    read = proofs(library, source, segments, missing, pool, n)
    with shelf.lock:
        for feature, found in read.items():
            shelf.n += len(found) - len(shelf.found.pop(keys[feature], ()))
            shelf.found[keys[feature]] = found
        while shelf.n > MOST:
            shelf.n -= len(shelf.found.popitem(last=False)[1])
    return shown | read
