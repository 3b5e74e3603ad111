"""The audit log: one entry for each write, in the transaction that makes it."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from schema.lab import AuditEntry


def audit(session: Session, actor: str, action: str, target: str, detail: dict[str, Any] | None = None) -> None:
    """Notes who did what to what, such as ("ann", "label.create", "m/3-tiny/12").

    Args:
        detail: as JSON; never a secret.
    """
    session.add(AuditEntry(actor=actor, action=action, target=target, detail=detail))
