"""Storing what the describer says, so that it can be searched, voted on and exported like any other label."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from api.services.labels.describer import describe
from api.services.labels.merge import Counts, Incoming, merge
from api.services.labels.search_index import catch_up, texts
from api.services.library import Library
from schema.audit import audit
from schema.lookup import check_index, find_sae
from schema.tables import Sae
from schema.wire.labels import DescribeReport
from schema.wire.packs import PackLabel

METHOD = "firing-tokens-1"
AUTHOR = "scopebase"
BATCH = 2_000


def store_descriptions(
    library: Library,
    sae: str | None,
    actor: str,
    features: Sequence[int] | None = None,
    advance: Callable[[int, int], None] = lambda _n, _total: None,
) -> DescribeReport:
    """Describes features that fire. A description that says something else than the one before replaces it; what somebody deleted
    stays deleted.

    Args:
        features: those wanted; every one of the SAE unless given.
        advance: told how many samples were read for it, and of how many; first (0, n), when everything is checked. Where it raises,
            the work ends.

    Raises:
        NotFound, InputError: see `schema.lookup.find_sae`; an index that the SAE does not have.
    """
    with library.home.database.reading() as session:
        found = find_sae(session, sae)
    wanted = None if features is None else list(dict.fromkeys(features))
    for feature in wanted or ():
        check_index(found, feature)
    advance(0, 0)
    said = describe(library, found, wanted, advance)
    rows = [_row(found, feature, text) for feature, text in said.items()]
    counts = Counts()
    for begin in range(0, len(rows), BATCH):
        with library.home.database.writing(alone=True) as session:
            merge(session, rows[begin : begin + BATCH], "update", False, actor, counts)
            audit(session, actor, "label.describe", found.name, {"labels": counts.written})
    catch_up(library, texts())
    n_wanted = found.d_sae if wanted is None else len(wanted)
    return DescribeReport(
        sae=found.name, described=len(said), written=counts.written, never_firing=n_wanted - len(said)
    )


def _row(sae: Sae, feature: int, text: str) -> Incoming:
    uid = "described:" + hashlib.sha256(f"{sae.sha256}/{feature}".encode()).hexdigest()[:40]
    label = PackLabel(text=text, author=AUTHOR, source="describer", method=METHOD)
    return Incoming(0, uid, sae, feature, label)
