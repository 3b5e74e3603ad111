"""Who wrote what."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query

from api.deps import Books, Cursor, Limit, needs
from api.services.access.audit import entries
from schema.wire.access import AuditItem
from schema.wire.base import Page

router = APIRouter(tags=["access"])


@router.get("/audit", dependencies=[needs("admin")])
def get_audit(
    library: Books,
    actor: Annotated[str | None, Query(max_length=128, description="Only this key's or person's")] = None,
    action: Annotated[
        str | None, Query(max_length=64, description="Only this action; `label.*` for all of a kind")
    ] = None,
    target: Annotated[str | None, Query(max_length=512, description="Only what was done to this")] = None,
    since: Annotated[
        datetime | None, Query(description="Only from this moment on; UTC unless it says its zone")
    ] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[AuditItem]:
    """The log of writes, newest first."""
    with library.home.database.reading() as session:
        return entries(session, actor, action, target, since, limit, cursor)
