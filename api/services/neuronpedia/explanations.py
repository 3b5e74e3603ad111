"""Searching labels and exporting them in bulk, in Neuronpedia's shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.services.exchange.whole import find_whole, totals
from api.services.labels.search import Hit
from api.services.labels.search import search as search_labels
from api.services.library import Library
from api.services.neuronpedia.names import find_model, find_source, source_id
from api.services.neuronpedia.rows import release_name
from schema.database import Database
from schema.errors import InputError, not_found
from schema.lab import Label
from schema.tables import Sae
from schema.wire.labels import How
from schema.wire.neuronpedia import NpExported, NpFound, NpFoundPage
from schema.wire.neuronpedia_requests import NpSearch

PAGE = 20
PART = 1_000


def search(library: Library, asked: NpSearch, within: str) -> NpFoundPage:
    """One page of the labels nearest to a query: by meaning where a sentence model is loaded, else by words.

    Args:
        within: `sources` (of a model), `model`, `release` or `all`.

    Raises:
        NotFound: no such model, source or release.
        InputError: what `within` needs is not given, or the offset is beyond what a search finds.
    """
    with library.home.database.reading() as session:
        saes = {sae.id: sae for sae in _searched(session, asked, within)}
    hits = _ranked(library, None if within == "all" else list(saes), asked)
    page = hits[asked.offset : asked.offset + PAGE]
    by_meaning = library.meaning is not None
    with library.home.database.reading() as session:
        results = [_found(library, session, saes[hit.label.sae_id], hit, by_meaning) for hit in page]
    more = len(hits) > asked.offset + PAGE
    return NpFoundPage(
        request=asked.model_dump(exclude_none=True),
        results=results,
        resultsCount=len(results),
        hasMore=more,
        nextOffset=asked.offset + PAGE if more else None,
    )


def _ranked(library: Library, saes: Sequence[int] | None, asked: NpSearch) -> list[Hit]:
    """What is found, best first, with one more than this page needs if there is one."""
    how: How = "meaning" if library.meaning is not None else "text"
    limit = asked.offset + PAGE + 1
    searched: Sequence[int | None] = [None] if saes is None else saes
    found = [hit for sae in searched for hit in search_labels(library, sae, asked.query, limit, how)]
    return sorted(found, key=lambda hit: (-hit.score, hit.label.id))


def export(database: Database, model: str, source: str) -> Iterator[NpExported]:
    """Every label of an SAE, by feature.

    Raises:
        NotFound: no such model or source; before the first one is given.
    """
    with database.reading() as session:
        sae = find_source(session, model, source)
    return _exported(database, sae)


def _exported(database: Database, sae: Sae) -> Iterator[NpExported]:
    after = (-1, -1)
    while True:
        with database.reading() as session:
            following = (Label.feature > after[0]) | ((Label.feature == after[0]) & (Label.id > after[1]))
            where = (Label.sae_id == sae.id, Label.deleted_at.is_(None), following)
            part = list(session.scalars(select(Label).where(*where).order_by(Label.feature, Label.id).limit(PART)))
        for label in part:
            yield NpExported(
                modelId=sae.model.name,
                layer=source_id(sae),
                index=str(label.feature),
                description=label.text,
                explanationModelName=label.explainer,
                typeName=label.method,
            )
        if len(part) < PART:
            return
        after = (part[-1].feature, part[-1].id)


def _searched(session: Session, asked: NpSearch, within: str) -> Sequence[Sae]:
    """The SAEs whose labels are searched."""
    if within == "all":
        return list(session.scalars(select(Sae)))
    if within == "release":
        return _of_release(session, asked.releaseName)
    if not asked.modelId:
        raise InputError("name the model, as `modelId`")
    if within == "model":
        model = find_model(session, asked.modelId)
        return list(session.scalars(select(Sae).where(Sae.model_id == model.id)))
    if not asked.layers:
        raise InputError("name the sources, as `layers`; to search the whole model, ask /api/explanation/search-model")
    return [find_source(session, asked.modelId, source) for source in asked.layers]


def _of_release(session: Session, name: str | None) -> Sequence[Sae]:
    if not name:
        raise InputError("name the release, as `releaseName`")
    saes = list(session.scalars(select(Sae).order_by(Sae.layer)))
    found = [sae for sae in saes if name.lower() in (release_name(sae), sae.release.lower())]
    if not found:
        raise not_found("release", name, {release_name(sae) for sae in saes}, "scopebase saes")
    return found


def _found(library: Library, session: Session, sae: Sae, hit: Hit, by_meaning: bool) -> NpFound:
    label = hit.label
    counts = totals(library, find_whole(session, sae))
    return NpFound(
        modelId=sae.model.name,
        layer=source_id(sae),
        source=source_id(sae),
        index=str(label.feature),
        description=label.text,
        explanationModelName=label.explainer,
        typeName=label.method,
        cosine_similarity=hit.score if by_meaning else None,
        neuron={
            "modelId": sae.model.name,
            "layer": source_id(sae),
            "index": str(label.feature),
            "maxActApprox": float(counts.largest[label.feature]),
            "frac_nonzero": counts.density(label.feature),
        },
    )
