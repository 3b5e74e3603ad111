"""Features by what their labels say."""

from __future__ import annotations

from sqlalchemy import select

from api.services.labels.book import item
from api.services.labels.search import search
from api.services.library import Library
from schema.lookup import find_sae
from schema.tables import Sae
from schema.wire.labels import FeatureFound, FeaturesFound, How

LABELS_A_FEATURE = 4
"""So many more labels than features are asked for, because a feature may be found by several."""


def find_features(
    library: Library, text: str, sae: str | None = None, how: How = "text", limit: int = 50
) -> FeaturesFound:
    """Features whose labels are nearest to a text, best first, each by its best label.

    Raises:
        NotFound: no such SAE.
        InputError, Conflict: see `api.services.label_search.search`.
    """
    with library.home.database.reading() as session:
        wanted = None if sae is None else find_sae(session, sae).id
    hits = search(library, wanted, text, LABELS_A_FEATURE * limit, how)
    with library.home.database.reading() as session:
        saes = {s.id: s for s in session.scalars(select(Sae).where(Sae.id.in_({h.label.sae_id for h in hits})))}
    found: dict[str, FeatureFound] = {}
    for hit in hits:
        label = item(hit.label, saes[hit.label.sae_id])
        found.setdefault(
            label.feature,
            FeatureFound(id=label.feature, index=label.index, sae=label.sae, score=hit.score, label=label),
        )
    model = library.meaning.name if library.meaning is not None and how != "text" else None
    return FeaturesFound(data=list(found.values())[:limit], how=how, model=model)
