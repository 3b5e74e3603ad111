"""Proofs that were shown before. A feature is shown in many answers over a dataset, and what proves it never changes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from pydantic import TypeAdapter

from api.services.evidence import proofs
from api.services.library import Library
from schema.lookup import Source, segments_of
from schema.records import Pool
from schema.wire.questions import SampleProof

MOST_BYTES = 64 << 20
"""Of proofs kept, as JSON: samples of up to 1,200 characters."""
_PROOFS = TypeAdapter(list[SampleProof])

_Key = tuple[int, Pool, int, int]


class _Shelf:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.found: OrderedDict[_Key, bytes] = OrderedDict()
        self.n_bytes = 0


_SHELVES: WeakKeyDictionary[Library, _Shelf] = WeakKeyDictionary()


def proven(
    library: Library, source: Source, features: Sequence[int], pool: Pool, n: int
) -> dict[int, list[SampleProof]]:
    """As `proofs`; only the features that were not shown lately are read."""
    shelf = _SHELVES.setdefault(library, _Shelf())
    keys: dict[int, _Key] = {feature: (source.pair, pool, n, feature) for feature in features}
    with shelf.lock:
        kept = {feature: shelf.found[key] for feature, key in keys.items() if key in shelf.found}
        for feature in kept:
            shelf.found.move_to_end(keys[feature])
    shown = {feature: _PROOFS.validate_json(json) for feature, json in kept.items()}
    missing = [feature for feature in features if feature not in shown]
    if not missing or not n:
        return shown
    with library.home.database.reading() as session:
        segments = segments_of(session, source.pair)
    read = proofs(library, source, segments, missing, pool, n)
    with shelf.lock:
        for feature, found in read.items():
            json = _PROOFS.dump_json(found)
            shelf.n_bytes += len(json) - len(shelf.found.pop(keys[feature], b""))
            shelf.found[keys[feature]] = json
        while shelf.n_bytes > MOST_BYTES:
            shelf.n_bytes -= len(shelf.found.popitem(last=False)[1])
    return shown | read
