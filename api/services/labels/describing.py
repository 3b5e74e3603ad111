"""Storing what the describer says, so that it can be searched, voted on and exported like any other label."""

from __future__ import annotations

import hashlib

from api.services.labels.describer import describe
from api.services.labels.merge import Counts, Incoming, merge
from api.services.labels.search_index import catch_up, texts
from api.services.library import Library
from schema.audit import audit
from schema.lookup import find_sae
from schema.tables import Sae
from schema.wire.labels import DescribeReport
from schema.wire.packs import PackLabel

METHOD = "firing-tokens-1"
AUTHOR = "scopebase"
BATCH = 2_000


def store_descriptions(library: Library, sae: str | None, actor: str) -> DescribeReport:
    """Describes every feature that fires. A description that says something else than the one before replaces it; what somebody
    deleted stays deleted.

    Raises:
        NotFound, InputError: see `schema.lookup.find_sae`.
    """
    with library.home.database.reading() as session:
        found = find_sae(session, sae)
    said = describe(library, found)
    rows = [_row(found, feature, text) for feature, text in said.items()]
    counts = Counts()
    for begin in range(0, len(rows), BATCH):
        with library.home.database.writing(alone=True) as session:
            merge(session, rows[begin : begin + BATCH], "update", False, actor, counts)
            audit(session, actor, "label.describe", found.name, {"labels": counts.written})
    catch_up(library, texts())
    return DescribeReport(
        sae=found.name, described=len(said), written=counts.written, never_firing=found.d_sae - len(said)
    )


def _row(sae: Sae, feature: int, text: str) -> Incoming:
    uid = "described:" + hashlib.sha256(f"{sae.sha256}/{feature}".encode()).hexdigest()[:40]
    label = PackLabel(text=text, author=AUTHOR, source="describer", method=METHOD)
    return Incoming(0, uid, sae, feature, label)
