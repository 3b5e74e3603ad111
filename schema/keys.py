"""API keys: made, listed, revoked. A secret is shown once and only its SHA-256 is kept. Functions on a Session."""

from __future__ import annotations

import hashlib
import re
import secrets
from datetime import datetime, timedelta
from typing import Literal, get_args

from sqlalchemy import select
from sqlalchemy.orm import Session

from schema.audit import audit
from schema.errors import Conflict, InputError, not_found
from schema.lab import Key
from schema.tables import now
from schema.words import Scope

PREFIX = "sb_"
N_BYTES = 32
SHOWN = 8
"""Characters of a secret that lists show, so that a person can tell keys apart."""
LADDER: tuple[Scope, ...] = get_args(Scope)
"""Each scope holds those before it."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
SECRET = re.compile(PREFIX + r"[A-Za-z0-9_-]{32,200}")
"""Of a secret that somebody brings along: long enough that nobody guesses it."""
_UNITS = {"h": 1, "d": 24, "w": 24 * 7}
_LIFETIME = re.compile(r"([1-9][0-9]{0,4})([hdw])")


def digest(secret: str) -> str:
    """What is kept of a secret. It is random and long, so a plain hash is enough."""
    return hashlib.sha256(secret.encode()).hexdigest()


def lifetime(text: str) -> timedelta | None:
    """`90d`, `12h`, `4w`; None for `never`.

    Raises:
        InputError: it is none of these.
    """
    if text == "never":
        return None
    found = _LIFETIME.fullmatch(text)
    if found is None:
        raise InputError(f"--expires {text!r}: hours, days or weeks such as 12h, 90d or 4w, or never")
    return timedelta(hours=int(found[1]) * _UNITS[found[2]])


def create_key(
    session: Session, name: str, scope: Scope, lasts: timedelta | None, author: str, given: str | None = None
) -> tuple[Key, str]:
    """A new key and its secret, which nothing can show again.

    Args:
        scope: the highest thing it may do; those below come with it.
        lasts: None for ever.
        given: the secret, where it is known before: a deployment's first key.

    Raises:
        InputError: a name that cannot be one, an unknown scope, or a given secret that is too easy to guess.
        Conflict: a key of that name exists or existed; the audit log speaks of keys by their names.
    """
    if not NAME.fullmatch(name):
        raise InputError(
            f"{name!r} cannot name a key: 1 to 64 letters, digits and . _ @ + - that begin with a letter or digit"
        )
    if scope not in LADDER:
        raise InputError(f"--scope {scope!r}: one of {', '.join(LADDER)}")
    if given is not None and not SECRET.fullmatch(given):
        raise InputError(
            f"a key's secret is {PREFIX} and at least 32 letters, digits, _ or -, such as {PREFIX} and what "
            "'openssl rand -hex 32' gives"
        )
    other = session.scalars(select(Key).where(Key.name == name)).one_or_none()
    if other is not None:
        raise Conflict(f"there is a key named {name!r} ({state_of(other)}); names are not used twice, choose another")
    secret = given or PREFIX + secrets.token_urlsafe(N_BYTES)
    key = Key(
        name=name,
        prefix=secret[:SHOWN],
        sha256=digest(secret),
        scopes=list(LADDER[: LADDER.index(scope) + 1]),
        expires_at=None if lasts is None else now() + lasts,
    )
    session.add(key)
    session.flush()
    expires = None if key.expires_at is None else key.expires_at.isoformat()
    audit(session, author, "key.create", name, {"scopes": key.scopes, "expires_at": expires})
    return key, secret


def find_given(session: Session, name: str, given: str) -> Key | None:
    """The live key of that name and secret, so that who brings a secret along may bring it again."""
    key = session.scalars(select(Key).where(Key.name == name, Key.sha256 == digest(given))).one_or_none()
    return key if key is not None and state_of(key) == "live" else None


def list_keys(session: Session) -> list[Key]:
    """Every key, revoked and expired ones included, oldest first."""
    return list(session.scalars(select(Key).order_by(Key.id)))


def revoke_key(session: Session, name: str, author: str) -> Key:
    """Ends a key; a second time changes nothing.

    Raises:
        NotFound: there is none of that name.
    """
    key = session.scalars(select(Key).where(Key.name == name)).one_or_none()
    if key is None:
        raise not_found("key", name, session.scalars(select(Key.name)), "scopebase key list")
    if key.revoked_at is None:
        key.revoked_at = now()
        audit(session, author, "key.revoke", name)
    return key


def state_of(key: Key, moment: datetime | None = None) -> Literal["live", "expired", "revoked"]:
    """Whether a key opens anything now."""
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= (moment or now()) else "live"
