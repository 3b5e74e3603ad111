"""Labels as packs, streamed: JSONL, Parquet, or Neuronpedia's explanations. What is held is a page, whatever their number."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import and_, or_, select

from api.services.labels.book import CONTENT, Filter, filtered, find_label
from api.services.labels.explanations import write
from api.services.labels.heard import talk_of
from api.services.labels.packs import HEADER, JSON_COLUMNS, Chunks
from api.services.library import Library
from schema.errors import InputError
from schema.lab import Label
from schema.tables import Sae, now
from schema.wire.labels import PackFormat
from schema.wire.packs import PACK, PackHeader, PackLabel

PAGE = 2_000
_TIMES = ("created_at", "updated_at")

COLUMNS = pa.schema(
    [
        *((name, pa.utf8()) for name in ("id", "sae", "sae_sha256")),
        ("index", pa.int64()),
        *((name, pa.utf8()) for name in ("text", "author", "source", "explainer", "method")),
        ("score", pa.float64()),
        *((name, pa.utf8()) for name in ("score_method", "prompt", "examples", "licence", "origin")),
        ("version", pa.int64()),
        *((name, pa.timestamp("us", "UTC")) for name in _TIMES),
        *((name, pa.utf8()) for name in ("votes", "comments")),
    ]
)


def export(library: Library, which: Filter, form: PackFormat = "jsonl", after: str | None = None) -> Iterator[bytes]:
    """A pack in pieces.

    Args:
        after: the id of the last label that was received; the pack goes on behind it.

    Raises:
        NotFound, InputError: before anything is sent.
    """
    check_export(library, which, form, after)
    return {"jsonl": _jsonl, "parquet": _parquet, "neuronpedia": _explanations}[form](library, which, after)


def check_export(library: Library, which: Filter, form: PackFormat, after: str | None) -> None:
    """Raises NotFound or InputError for an export that cannot be made."""
    if form == "neuronpedia" and which.sae is None and which.feature is None:
        raise InputError("Neuronpedia's rows are those of one SAE: name it with --sae")
    with library.home.database.reading() as session:
        filtered(session, which)
        if after is not None:
            find_label(session, after, deleted=True)


def header(library: Library) -> PackHeader:
    """What a pack of this home begins with."""
    return PackHeader(scopebase_labels=PACK, home=library.home.store.identity() or "", exported_at=now())


def pages(
    library: Library, which: Filter, after: str | None, by_feature: bool = False
) -> Iterator[list[tuple[Label, Sae]]]:
    """The labels meant in the order of their making, or of their features, a page at a time.

    No transaction stays open in between, so that an export may take its time.
    """
    with library.home.database.reading() as session:
        last = None if after is None else find_label(session, after, deleted=True)
    while True:
        with library.home.database.reading() as session:
            query = filtered(session, which)
            if by_feature:
                query = query.order_by(Label.feature, Label.id)
                if last is not None:
                    same = and_(Label.feature == last.feature, Label.id > last.id)
                    query = query.where(or_(Label.feature > last.feature, same))
            else:
                query = query.order_by(Label.id)
                query = query if last is None else query.where(Label.id > last.id)
            rows = list(session.scalars(query.limit(PAGE)))
            wanted = {label.sae_id for label in rows}
            saes = {sae.id: sae for sae in session.scalars(select(Sae).where(Sae.id.in_(wanted)))}
        if not rows:
            return
        yield [(label, saes[label.sae_id]) for label in rows]
        last = rows[-1]


def _jsonl(library: Library, which: Filter, after: str | None) -> Iterator[bytes]:
    yield header(library).model_dump_json().encode() + b"\n"
    for page in pages(library, which, after):
        rows = _rows(library, page)
        lines = (PackLabel.model_validate(row).model_dump_json(exclude_none=True) for row in rows)
        yield "".join(f"{line}\n" for line in lines).encode()


def _explanations(library: Library, which: Filter, after: str | None) -> Iterator[bytes]:
    for page in pages(library, which, after, by_feature=True):
        yield "".join(json.dumps(write(label, sae), ensure_ascii=False) + "\n" for label, sae in page).encode()


def _parquet(library: Library, which: Filter, after: str | None) -> Iterator[bytes]:
    chunks = Chunks()
    schema = COLUMNS.with_metadata({HEADER: header(library).model_dump_json().encode()})
    with pq.ParquetWriter(chunks, schema, compression="zstd") as writer:
        for page in pages(library, which, after):
            rows = _rows(library, page)
            for row in rows:
                row |= {name: json.dumps(row[name]) for name in JSON_COLUMNS if row[name] is not None}
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            yield chunks.take()
    yield chunks.take()


def _rows(library: Library, page: list[tuple[Label, Sae]]) -> list[dict[str, Any]]:
    """Labels as packs call their fields, with what was said of them."""
    same = (*CONTENT, "author", "source", "origin", "version", *_TIMES)
    said = talk_of(library, [label.id for label, _ in page])
    return [
        {
            "id": label.uid,
            "sae": sae.name,
            "sae_sha256": sae.sha256,
            "index": label.feature,
            **{name: getattr(label, name) for name in same},
            **{"votes": None, "comments": None, **said.get(label.id, {})},
        }
        for label, sae in page
    ]
