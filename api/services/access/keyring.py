"""Whose key it is. All keys are read anew after SECONDS at the latest, so a revoked one stops working within them, and a key that
nobody has costs no query of its own."""

from __future__ import annotations

import hmac
import logging
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.exc import SQLAlchemyError

from schema.database import Database
from schema.errors import ScopebaseError, Unauthorized
from schema.keys import digest, state_of
from schema.lab import Key
from schema.tables import now

SECONDS = 2.0
AGAIN = 0.2
"""A key that is not known may just have been made: it is looked for once more, but not more often than this."""
NOTED = timedelta(minutes=1)
"""How exactly a key's last use is kept."""
LOG = logging.getLogger("scopebase.keys")


@dataclass(frozen=True)
class Holder:
    """Who a key stands for."""

    name: str
    scopes: tuple[str, ...]


class Keyring:
    """The keys of a home. Safe for several threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._keys: dict[str, Key] = {}
        self._read_at = float("-inf")
        self._used: dict[int, datetime] = {}
        self._lock = threading.Lock()

    def is_fresh(self) -> bool:
        """Whether `find` will answer a known key from memory."""
        return time.monotonic() - self._read_at < SECONDS

    def knows(self, secret: str) -> bool:
        return digest(secret) in self._keys

    def find(self, secret: str) -> Holder:
        """The holder of a key.

        Raises:
            Unauthorized: nobody's, expired or revoked.
        """
        wanted = digest(secret)
        if not self.is_fresh() or (wanted not in self._keys and time.monotonic() - self._read_at > AGAIN):
            self._read()
        key = self._keys.get(wanted)
        if key is None or not hmac.compare_digest(key.sha256, wanted):
            raise Unauthorized("this key is unknown; 'scopebase key create' makes one")
        moment = now()
        state = state_of(key, moment)
        if state != "live":
            when = key.revoked_at if state == "revoked" else key.expires_at
            verb = "was revoked" if state == "revoked" else "expired"
            raise Unauthorized(f"the key {key.name!r} {verb} on {when:%Y-%m-%d %H:%M} UTC; ask for a new one")
        if key.used_at is None or moment - key.used_at > NOTED:
            self._used[key.id] = moment
        return Holder(key.name, tuple(key.scopes))

    def _read(self) -> None:
        with self._lock:
            self._note()
            with self._database.reading() as session:
                self._keys = {key.sha256: key for key in session.scalars(select(Key))}
            self._read_at = time.monotonic()

    def _note(self) -> None:
        """Writes down when keys were last used. A database that cannot be written answers all the same."""
        if not self._used:
            return
        used, self._used = self._used, {}
        try:
            with self._database.writing() as session:
                for id_, moment in used.items():
                    session.execute(update(Key).where(Key.id == id_).values(used_at=moment))
        except (ScopebaseError, SQLAlchemyError) as error:
            LOG.debug("last use of %d keys was not kept: %s", len(used), error)
