"""The search tables of labels, kept level with SQL. They are derived: lost or damaged, they are made again.

Every change of a label is an event, and label writes wait for each other (`writing(alone=True)`), so that the ids of events are in
the order of their commits: the newest id that a table has seen, its *mark*, says exactly what it lacks. Rows are changed and the mark
is moved under the same lock; who dies in between leaves rows beyond the mark, which the next one removes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import pyarrow as pa
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.services.library import Library
from schema.lab import Label, LabelEvent
from schema.layout import fence_row, label_vectors_table, schema_of
from schema.meaning import Meaning
from schema.publish import storage_faults
from schema.tables import Setting
from schema.upkeep import forced, giving_way

TEXTS = "label_texts"
BATCH = 20_000
"""Events caught up with in one transaction."""
EMBEDDED = 512
"""The same where each text goes through a sentence model."""
TAIL = 2_000
"""Rows that an index may lack: they are read through, which costs a millisecond a thousand."""
MANY_VECTORS = 200_000
"""From so many on, vectors get an index of their own; below, all are compared as they stand."""
PARTITION = 4_096
"""Vectors in a partition of that index. Few and large: they are quick to find, and a question goes through all of them, because labels
lie too evenly for a part to hold the nearest."""
MANY_VERSIONS = 64
KEPT = timedelta(minutes=10)
"""How long a version that somebody may still be reading is kept."""


@dataclass(frozen=True)
class Mark:
    """How far a search table has come."""

    event: int = 0
    """The newest event it has seen."""
    label: int = 0
    """The largest label id it has a row of."""
    model: str | None = None
    """The sentence model of its vectors."""


@dataclass(frozen=True)
class Derived:
    """One search table, and how labels become its rows."""

    name: str
    rows: Callable[[Sequence[Any]], pa.Table]
    """From rows of id, sae_id, feature and text."""
    model: str | None = None
    batch: int = BATCH


def texts() -> Derived:
    """The table that is searched by words."""
    schema = schema_of(TEXTS)

    def rows(labels: Sequence[Any]) -> pa.Table:
        return pa.table([[getattr(label, n) for label in labels] for n in _columns(schema)], schema=schema)

    return Derived(TEXTS, rows)


def vectors(meaning: Meaning) -> Derived:
    """The table that is searched by meaning."""
    name = label_vectors_table(meaning.dimension)
    schema = schema_of(name)

    def rows(labels: Sequence[Any]) -> pa.Table:
        flat = pa.array(meaning.embed([label.text for label in labels]).astype("float16").reshape(-1), pa.float16())
        kind = schema.field("vector").type
        columns = [[label.id for label in labels], [label.sae_id for label in labels]]
        return pa.table([*columns, pa.FixedSizeListArray.from_arrays(flat, type=kind)], schema=schema)

    return Derived(name, rows, meaning.name, EMBEDDED)


def _columns(schema: pa.Schema) -> list[str]:
    """What a label calls the columns."""
    return [{"key": "id", "sae": "sae_id"}.get(name, name) for name in schema.names]


def read_mark(session: Session, table: str) -> Mark:
    known = session.get(Setting, table)
    return Mark(**json.loads(known.value)) if known is not None else Mark()


def lacking(library: Library, derived: Derived) -> int:
    """How many changes the table has not seen."""
    with library.home.database.reading() as session:
        mark = _usable(library, read_mark(session, derived.name), derived)
        return session.scalar(select(func.count()).where(LabelEvent.id > mark.event)) or 0


def catch_up(library: Library, derived: Derived, advance: Callable[[int], None] = lambda _n: None) -> Mark:
    """Brings a search table level with SQL.

    Args:
        advance: told how many more changes were seen, after each batch.

    Returns:
        The mark; on a read-only home the one that is there.
    """
    moved = False
    while True:
        with library.home.database.reading() as session:
            mark = _usable(library, read_mark(session, derived.name), derived)
            past = select(LabelEvent.id, LabelEvent.label_id).where(LabelEvent.id > mark.event)
            events = session.execute(past.order_by(LabelEvent.id).limit(derived.batch)).all()
            if not events or library.home.database.read_only:
                break
            upto, seen = events[-1].id, sorted({event.label_id for event in events})
            changed = select(LabelEvent.label_id).where(LabelEvent.id > mark.event, LabelEvent.id <= upto)
            wanted = select(Label.id, Label.sae_id, Label.feature, Label.text)
            living = wanted.where(Label.id.in_(changed), Label.deleted_at.is_(None)).order_by(Label.id)
            labels = session.execute(living).all()
        rows = derived.rows(labels) if labels else None
        new = Mark(upto, max(mark.label, seen[-1]), derived.model)
        if _store(library, derived, mark, new, seen, rows):
            moved = True
            advance(len(events))
    if moved:
        maintain(library, derived)
    return mark


def _usable(library: Library, mark: Mark, derived: Derived) -> Mark:
    """From the beginning where the table is gone, or holds another model's vectors."""
    return mark if mark.model == derived.model and library.store.has(derived.name) else Mark(model=derived.model)


def _store(library: Library, derived: Derived, old: Mark, new: Mark, seen: list[int], rows: pa.Table | None) -> bool:
    """Replaces the rows of changed labels, if nobody else has done it meanwhile."""
    with library.home.database.writing(alone=True) as session:
        if _usable(library, read_mark(session, derived.name), derived) != old:
            return False
        with storage_faults(library.store), forced(library.store, derived.name):
            _replace(library, derived, old, seen, rows)
        session.merge(Setting(name=derived.name, value=json.dumps(asdict(new))))
    return True


def _replace(library: Library, derived: Derived, old: Mark, seen: list[int], rows: pa.Table | None) -> None:
    if old.event == 0:
        _make(library, derived)
    table = library.store.latest(derived.name)
    known = [key for key in seen if key <= old.label]
    doomed = [f"key IN ({', '.join(map(str, known[i : i + 5_000]))})" for i in range(0, len(known), 5_000)]
    for where in [*doomed, f"key > {old.label}"]:
        if table.count_rows(where):
            table.delete(where)
    if rows is not None:
        library.store.save(derived.name, rows, "append")


def _make(library: Library, derived: Derived) -> None:
    """An empty table with its indexes, instead of one that may be there.

    Words of any script are told apart (ICU), English ones found by their stems. Small words count: some features are about nothing else.
    """
    mode = "overwrite" if library.store.has(derived.name) else "create"
    table = library.store.save(derived.name, fence_row(derived.name), mode)
    table.create_scalar_index("key", "BTREE")
    table.create_scalar_index("sae", "BITMAP")
    if derived.name == TEXTS:
        words = {"base_tokenizer": "icu", "stem": True, "remove_stop_words": False, "with_position": False}
        table.create_scalar_index("text", "INVERTED", **words)


def maintain(library: Library, derived: Derived) -> None:
    """Completes the indexes where too much lies outside them, and sweeps old versions. What is overtaken, the next one does."""
    if not library.store.has(derived.name):
        return
    table = library.store.latest(derived.name)
    with storage_faults(library.store), giving_way():
        if _tail(table) > TAIL:
            table.optimize.compact_files()
            table.optimize.optimize_indices()
        if len(table.versions()) > MANY_VERSIONS:
            table.cleanup_old_versions(older_than=KEPT)


def index_vectors(library: Library, derived: Derived) -> None:
    """Gives many vectors their index: a byte for each number, by which all are compared, and the best then by what they truly are.

    It takes seconds, so questions do not do it; what comes later is added by `maintain`.
    """
    maintain(library, derived)
    table = library.store.latest(derived.name)
    n = table.count_rows()
    if n <= MANY_VECTORS or any(index.field_names == ["vector"] for index in table.describe_indices()):
        return
    with storage_faults(library.store), giving_way(), forced(library.store, derived.name):
        table.create_index("vector", "IVF_SQ", metric="cosine", num_partitions=max(1, n // PARTITION))


def _tail(table: Any) -> int:
    """Rows that the index of keys does not cover."""
    covered = next(i for i in table.describe_indices() if i.field_names == ["key"])
    return int(table.count_rows() - covered.num_rows_indexed)
