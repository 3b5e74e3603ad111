"""Which features have a label that says something: one place, so that how labels are searched is decided once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.services.labels.search import search
from api.services.library import Library
from schema.errors import InputError
from schema.lab import Label
from schema.wire.labels import How


def matching(library: Library, sae_id: int, text: str, limit: int, how: How = "text") -> list[tuple[int, float]]:
    """Features whose labels say a text, best first, each with the share that its score is of the best one's.

    Raises:
        InputError, Conflict: see `label_search.search`.
    """
    scores: dict[int, float] = {}
    for hit in search(library, sae_id, text, limit, how):
        scores.setdefault(hit.label.feature, hit.score)  # several labels of a feature: the best one counts
    best = max(scores.values(), default=0.0)
    return [(feature, score / best if best > 0 else 1.0) for feature, score in scores.items()]


def features_labelled(session: Session, sae_id: int, text: str | None = None) -> npt.NDArray[np.int64]:
    """Features with a label, or with one that holds a text whatever the case; ascending."""
    query = select(Label.feature).where(Label.sae_id == sae_id, Label.deleted_at.is_(None)).distinct()
    if text is not None:
        if "\x00" in text:
            raise InputError("label: holds a NUL character, which no label has")
        query = query.where(Label.text.icontains(text, autoescape=True))
    return np.array(sorted(session.scalars(query)), np.int64)
