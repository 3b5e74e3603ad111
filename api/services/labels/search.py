"""Labels by what they say: by their words (BM25 over an inverted index), by their meaning (a sentence model), or both.

The search tables only nominate; what is answered is what SQL lists with that very text, so that a label that was deleted or
rewritten a moment ago never comes up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from lance.query import FullTextOperator, MatchQuery
from sqlalchemy import select

from api.services.labels.search_index import Derived, Mark, catch_up, index_vectors, lacking, texts, vectors
from api.services.library import Library
from schema.errors import Conflict, InputError
from schema.lab import Label
from schema.wire.labels import How

MOST = 10_000
LONGEST = 1_000
"""Characters of a question."""
PATIENCE = 2_000
"""So many labels without vectors are embedded while a question waits; more are a job of their own."""
ALL_PARTITIONS = 1 << 20
REFINED = 5
"""So many times more vectors than asked for are compared exactly, where an index only nominates them."""
RANK_OFFSET = 60.0
"""Of reciprocal rank fusion (Cormack, Clarke and Büttcher 2009), as published."""


@dataclass(frozen=True)
class Hit:
    """A label that a search found."""

    label: Label
    score: float
    """BM25, cosine, or the sum of 1 / (60 + rank) over both; comparable within one answer only."""


def search(library: Library, sae_id: int | None, text: str, limit: int = 50, how: How = "text") -> list[Hit]:
    """The labels nearest to a text, best first.

    By words, labels that have all of them; where no label has, those that have any.

    Args:
        sae_id: the id in SQL of the SAE whose labels are searched; those of all SAEs unless given.

    Raises:
        InputError: nothing to search for, or meaning is asked for without a sentence model.
        Conflict: too many labels have no vector yet.
    """
    if not text.strip() or len(text) > LONGEST or "\x00" in text:
        raise InputError(f"search for 1 to {LONGEST:,} characters of text")
    if not 1 <= limit <= MOST:
        raise InputError(f"limit={limit}: 1 to {MOST:,}")
    if how == "text":
        return _by_words(library, sae_id, text, limit)
    if how == "meaning":
        return _by_meaning(library, sae_id, text, limit)
    return _fused([_by_words(library, sae_id, text, limit), _by_meaning(library, sae_id, text, limit)], limit)


def embed(library: Library, advance: Callable[[int], None]) -> int:
    """Gives every label its vector, and many vectors their index; how many changes were worked through."""
    derived = _vectors(library)
    n = lacking(library, derived)
    catch_up(library, derived, advance)
    if not library.home.database.read_only:
        index_vectors(library, derived)
    return n


def _by_words(library: Library, sae_id: int | None, text: str, limit: int) -> list[Hit]:
    mark = catch_up(library, texts())
    if not mark.label:
        return []
    for operator in (FullTextOperator.AND, FullTextOperator.OR):
        asked = {"full_text_query": MatchQuery(text, "text", operator=operator), "columns": ["key", "text", "_score"]}
        rows = _ask(library, texts(), mark, sae_id, limit, asked)
        if rows:
            break
    said = {row["key"]: (row["text"], row["_score"]) for row in reversed(rows)}
    return [
        Hit(label, said[label.id][1])
        for label in _living(library, list(reversed(said)))
        if label.text == said[label.id][0]
    ]


def _by_meaning(library: Library, sae_id: int | None, text: str, limit: int) -> list[Hit]:
    derived = _vectors(library)
    behind = lacking(library, derived)
    if behind > PATIENCE:
        raise Conflict(
            f"{behind:,} changes of labels have no vector yet, more than a question can wait for; run 'scopebase label embed' once"
        )
    mark = catch_up(library, derived)
    if not mark.label:
        return []
    nearest = {
        "column": "vector", "q": _vector(library, text), "k": limit, "metric": "cosine",
        "nprobes": ALL_PARTITIONS, "refine_factor": REFINED,
    }  # fmt: skip
    rows = _ask(library, derived, mark, sae_id, limit, {"nearest": nearest, "columns": ["key", "_distance"]})
    cosine = {row["key"]: 1.0 - row["_distance"] for row in reversed(rows)}
    return [Hit(label, cosine[label.id]) for label in _living(library, list(reversed(cosine)))]


def _vectors(library: Library) -> Derived:
    if library.meaning is None:
        raise InputError(
            "search by meaning needs a sentence model: pip install 'scopebase[meaning]' and name one with --meaning "
            "or SCOPEBASE_MEANING (a directory, or a name on the hub)"
        )
    return vectors(library.meaning)


def _vector(library: Library, text: str) -> Any:
    assert library.meaning is not None
    return library.meaning.embed([text])[0]


def _ask(
    library: Library, derived: Derived, mark: Mark, sae_id: int | None, limit: int, asked: dict[str, Any]
) -> list[dict[str, Any]]:
    """Rows of a search table, best first. The handle is kept while nothing changes, and with it Lance's caches."""
    where = "key >= 0" if sae_id is None else f"sae = {int(sae_id)} AND key >= 0"
    asked = {**asked, "limit": limit, "filter": where, "prefilter": True}
    try:
        table = library.opened(derived.name, mark)
        rows = table.scanner(**asked).to_table()
    except (OSError, pa.ArrowInvalid) as error:
        if "not found" not in str(error).lower():
            raise
        rows = library.store.open(derived.name).scanner(**asked).to_table()  # tidied up since by another process
    return rows.to_pylist()


def _living(library: Library, keys: list[int]) -> list[Label]:
    """The labels with these ids that are not deleted, in that order."""
    with library.home.database.reading() as session:
        found = {
            label.id: label
            for begin in range(0, len(keys), 1_000)
            for label in session.scalars(
                select(Label).where(Label.id.in_(keys[begin : begin + 1_000]), Label.deleted_at.is_(None))
            )
        }
    return [found[key] for key in keys if key in found]


def _fused(lists: list[list[Hit]], limit: int) -> list[Hit]:
    """Reciprocal rank fusion: what both find comes first."""
    scores: dict[int, float] = {}
    labels = {hit.label.id: hit.label for hits in lists for hit in hits}
    for hits in lists:
        for rank, hit in enumerate(hits, start=1):
            scores[hit.label.id] = scores.get(hit.label.id, 0.0) + 1.0 / (RANK_OFFSET + rank)
    best = sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:limit]
    return [Hit(labels[key], score) for key, score in best]
