"""Keys, and the log of who wrote what."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from schema.wire.base import Wire
from schema.words import Scope


class KeyItem(Wire):
    """An API key without its secret."""

    id: str = Field(description="Its name")
    prefix: str = Field(description="The secret's first characters")
    scopes: list[Scope]
    state: Literal["live", "expired", "revoked"]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    used_at: datetime | None = Field(description="Last use, to the minute")


class NewKey(KeyItem):
    """A key just made."""

    secret: str = Field(description="Shown once: only its hash is kept")


class AuditItem(Wire):
    """One write: who did what to what."""

    id: int
    at: datetime
    actor: str = Field(description="The key's name; on the command line the user's; `local` where nobody is asked")
    action: str = Field(description="Such as `label.create`")
    target: str = Field(description="What it was done to, such as a feature's or a rule's name")
    detail: dict[str, Any] | None
