"""Versions under a name: the number of the next one, for those whose change names the version it was made from."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from schema.errors import Conflict
from schema.lab import Rule
from schema.steer import SteeringVector


def next_version(session: Session, row: Rule | SteeringVector, what: str, based_on: int | None) -> int:
    """The number under which a row is stored. Inside `writing(alone=True)`, so that of two who ask the second sees the first.

    Args:
        based_on: the newest version in use that its author knows, 0 where there is none; None where it does not matter.

    Raises:
        Conflict: by now another one is the newest.
    """
    table = type(row)
    mine = select(func.max(table.version)).where(table.name == row.name)
    if based_on is not None:
        used = mine.where(SteeringVector.deleted_at.is_(None)) if isinstance(row, SteeringVector) else mine
        newest = session.scalar(used) or 0
        if newest != based_on:
            there = f"is at version {newest}" if newest else "is not there"
            raise Conflict(f"{what} {row.name} {there}, you saw {based_on}: somebody changed it; read it again")
    return (session.scalar(mine) or 0) + 1
