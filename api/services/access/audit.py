"""The audit log: who wrote what, newest first."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.services.cursors import read_cursor, write_cursor
from schema.lab import AuditEntry
from schema.wire.access import AuditItem
from schema.wire.base import Page


def entries(
    session: Session,
    actor: str | None = None,
    action: str | None = None,
    target: str | None = None,
    since: datetime | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> Page[AuditItem]:
    """One page; its cursor holds the newest entry there was, so that what is written meanwhile moves nothing.

    Args:
        action: a whole action such as `label.create`, or all of a kind with `label.*`.
        since: with a time zone; UTC without.

    Raises:
        InputError: a cursor that this server did not give.
    """
    offset, newest = read_cursor(cursor)
    newest = newest or session.scalar(select(func.max(AuditEntry.id))) or 0
    query = select(AuditEntry).where(AuditEntry.id <= newest).order_by(AuditEntry.id.desc())
    if actor is not None:
        query = query.where(AuditEntry.actor == actor)
    if action is not None and action.endswith(".*"):
        query = query.where(AuditEntry.action.startswith(action[:-1], autoescape=True))
    elif action is not None:
        query = query.where(AuditEntry.action == action)
    if target is not None:
        query = query.where(AuditEntry.target == target)
    if since is not None:
        query = query.where(AuditEntry.at >= in_utc(since))
    rows = list(session.scalars(query.offset(offset).limit(limit + 1)))
    return Page(
        data=[
            AuditItem(id=e.id, at=e.at, actor=e.actor, action=e.action, target=e.target, detail=e.detail)
            for e in rows[:limit]
        ],
        next_cursor=write_cursor(offset + limit, newest) if len(rows) > limit else None,
    )


def in_utc(moment: datetime) -> datetime:
    """SQLite compares moments as text without a zone."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
