"""Snapshots: the numbers of what was finished or removed, in the order in which it was. An answer as of one can be repeated."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import func, select, union_all
from sqlalchemy.orm import Session

from schema.errors import Conflict
from schema.tables import Removal, Run

_ENDS = union_all(select(func.max(Run.finished).label("n")), select(func.max(Removal.snapshot))).subquery()
NEWEST = select(func.max(_ENDS.c.n))


def newest_snapshot(session: Session) -> int:
    """The number of the run that finished last, or of the removal after it; 0 before the first."""
    return session.scalar(NEWEST) or 0


def refuse_removed(session: Session, snapshot: int, sae_id: int, datasets: Iterable[str] | None = None) -> None:
    """Raises Conflict where an answer as of a snapshot would lack what was removed since.

    Args:
        datasets: names; any unless given.
    """
    wanted = None if datasets is None else set(datasets)
    for removal in session.scalars(select(Removal).where(Removal.snapshot > snapshot).order_by(Removal.id)):
        for dataset, sae, since in removal.pairs:
            if sae == sae_id and since <= snapshot and (wanted is None or dataset in wanted):
                raise Conflict(
                    f"as of {snapshot} there was an index of {dataset} that was removed since ({removal.kind} {removal.name}); "
                    "ask without as_of, and for the first page again"
                )
