"""Which features have a label that says something: one place, so that how labels are searched is decided once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.services.library import Library
from schema.errors import InputError
from schema.lab import Label
from schema.labels import best_labels


def matching(library: Library, sae_id: int, text: str, limit: int) -> list[tuple[int, str, float]]:
    """Features whose labels hold a text: (feature, label shown, score from 0 to 1), best first.

    The score is the share of the label that the text makes up, so that `cat` stands before `a cat among many other animals`.
    """
    with library.home.database.reading() as session:
        found = features_labelled(session, sae_id, text)
        labels = best_labels(session, sae_id, found.tolist())
        shown = {feature: label.text for feature, label in labels.items()}
    scored = [(feature, label, min(1.0, len(text) / len(label))) for feature, label in shown.items()]
    return sorted(scored, key=lambda hit: (-hit[2], hit[0]))[:limit]


def features_labelled(session: Session, sae_id: int, text: str | None = None) -> npt.NDArray[np.int64]:
    """Features with a label, or with one that holds a text whatever the case; ascending."""
    query = select(Label.feature).where(Label.sae_id == sae_id, Label.deleted_at.is_(None)).distinct()
    if text is not None:
        if "\x00" in text:
            raise InputError("label: holds a NUL character, which no label has")
        query = query.where(Label.text.icontains(text, autoescape=True))
    return np.array(sorted(session.scalars(query)), np.int64)
