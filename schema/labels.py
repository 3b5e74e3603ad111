"""Which label of a feature is shown where there is room for one."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import case, exists, func, select
from sqlalchemy.orm import Session

from schema.lab import Label

SOURCES = ("person", "import", "model", "describer")
"""Where labels come from, the most trusted first."""
CHUNK = 10_000
"""Features asked for in one statement."""


def best_labels(session: Session, sae_id: int, features: Sequence[int]) -> dict[int, Label]:
    """Feature -> its best label: most votes, then a person's before a model's, then the higher score, then the newer one.

    Features without a label are left out.
    """
    if not session.scalar(select(exists().where(Label.sae_id == sae_id))):
        return {}  # a list of features is dear to ask for
    trust = case({source: i for i, source in enumerate(SOURCES)}, value=Label.source, else_=len(SOURCES))
    order = (
        Label.votes.desc(),
        trust,
        func.coalesce(Label.score, -1.0).desc(),
        Label.updated_at.desc(),
        Label.id.desc(),
    )
    rank = func.row_number().over(partition_by=Label.feature, order_by=order)
    best: dict[int, Label] = {}
    wanted = [*dict.fromkeys(int(feature) for feature in features)]
    for begin in range(0, len(wanted), CHUNK):
        where = (Label.sae_id == sae_id, Label.deleted_at.is_(None), Label.feature.in_(wanted[begin : begin + CHUNK]))
        ranked = select(Label.id, rank.label("rank")).where(*where).subquery()
        chosen = select(Label).join(ranked, ranked.c.id == Label.id).where(ranked.c.rank == 1)
        best |= {label.feature: label for label in session.scalars(chosen)}
    return best


def every_label(session: Session, sae_id: int, feature: int) -> list[Label]:
    """All labels of a feature, the best first, the others by their votes."""
    best = best_labels(session, sae_id, [feature]).get(feature)
    where = (Label.sae_id == sae_id, Label.feature == feature, Label.deleted_at.is_(None))
    found = session.scalars(select(Label).where(*where).order_by(Label.votes.desc(), Label.id)).all()
    return sorted(found, key=lambda label: best is None or label.id != best.id)
