"""API keys in the database: what is kept, what is refused, and what the audit log says of it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, text

from schema.database import Database, upgrade
from schema.errors import Conflict, InputError, NotFound
from schema.keys import LADDER, create_key, digest, lifetime, list_keys, revoke_key, state_of
from schema.lab import AuditEntry, Key
from schema.tables import now


@pytest.fixture
def database(database_url: str) -> Database:
    made = Database(database_url)
    upgrade(made)
    yield made
    made.close()


def test_only_the_hash_of_a_secret_is_kept(database: Database) -> None:
    with database.writing() as session:
        key, secret = create_key(session, "ann", "label", timedelta(days=90), "root")
        assert len(secret) == 3 + 43  # sb_ and 32 bytes
        assert secret.startswith("sb_")
        assert key.prefix == secret[:8]
    with database.reading() as session:
        for table in ("api_keys", "audit"):
            for row in session.execute(text(f"SELECT * FROM {table}")):
                assert secret not in str(row)
        kept = list_keys(session)[0]
        assert kept.sha256 == digest(secret)
        assert kept.scopes == ["read", "label"]
        assert kept.expires_at is not None
        assert timedelta(days=89) < kept.expires_at - now() <= timedelta(days=90)


@pytest.mark.parametrize(("scope", "may"), [(scope, list(LADDER[: i + 1])) for i, scope in enumerate(LADDER)])
def test_a_scope_holds_those_below_it(tmp_path: object, scope: str, may: list[str]) -> None:
    database = Database(f"sqlite:///{tmp_path}/keys.db")
    upgrade(database)
    with database.writing() as session:
        assert create_key(session, "k", scope, None, "root")[0].scopes == may  # type: ignore[arg-type]
    database.close()


def test_revoked_for_good_and_once_in_the_log(database: Database) -> None:
    with database.writing() as session:
        create_key(session, "ann", "read", None, "root")
    for _ in range(2):
        with database.writing() as session:
            key = revoke_key(session, "ann", "eve")
            assert state_of(key) == "revoked"
    with database.reading() as session:
        entries = list(session.scalars(select(AuditEntry).order_by(AuditEntry.id)))
    assert [(e.actor, e.action, e.target) for e in entries] == [
        ("root", "key.create", "ann"),
        ("eve", "key.revoke", "ann"),
    ]
    with pytest.raises(Conflict, match=r"there is a key named 'ann' \(revoked\)"), database.writing() as session:
        create_key(session, "ann", "read", None, "root")
    with pytest.raises(NotFound, match="no key named 'anne'; did you mean ann?"), database.writing() as session:
        revoke_key(session, "anne", "root")


def test_a_key_lives_until_it_expires() -> None:
    moment = now()
    key = Key(name="k", expires_at=moment)
    assert state_of(key, moment - timedelta(microseconds=1)) == "live"
    assert state_of(key, moment) == "expired"
    assert state_of(Key(name="k", expires_at=None), moment + timedelta(days=10_000)) == "live"


@pytest.mark.parametrize("name", ["", "a b", "-x", "x" * 65, "ann\n", "ann\x1b[0m"])
def test_names_that_a_log_could_not_show(database: Database, name: str) -> None:
    with pytest.raises(InputError, match="cannot name a key"), database.writing() as session:
        create_key(session, name, "read", None, "root")
    with database.reading() as session:
        assert list_keys(session) == []


@given(st.integers(1, 99_999), st.sampled_from("hdw"))
def test_lifetimes(n: int, unit: str) -> None:
    assert lifetime(f"{n}{unit}") == timedelta(hours=n) * {"h": 1, "d": 24, "w": 168}[unit]


@pytest.mark.parametrize("text", ["90", "0d", "1y", "-3d", "d", "forever", "1.5d", ""])
def test_lifetimes_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="90d"):
        lifetime(text)


def test_never_is_for_ever() -> None:
    assert lifetime("never") is None
