"""Homes that older code made, with data in them, come up to date and answer as they did.

`homes/schema-<revision>.tar.xz` holds a home, as the last code of that schema left it, and what that code answered
over HTTP: two datasets through one SAE, labels with a change, a vote and a comment, a rule, a key, from 0003 on a steering vector, and in
0006 a job.
"""

# ruff: noqa: F811 - pytest hands fixtures over by their names
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import MetaData, inspect, select, text

from api.app import create_app
from schema.database import Database, check_revision, current_revision, newest_revision, upgrade
from schema.errors import HomeError
from schema.home import open_home
from schema.settings import Settings
from schema.verify import verify
from tests.scopebase.test_cli import Call, call  # noqa: F401

HOMES = Path(__file__).parent / "homes"
NEWEST = max(file.name.removeprefix("schema-").removesuffix(".tar.xz") for file in HOMES.glob("*.tar.xz"))
BREAKS_OFF = """
import os, signal, sys
from alembic import op
from schema.database import Database, upgrade
op.create_index = lambda *_args, **_options: os.kill(os.getpid(), signal.SIGKILL)
upgrade(Database(sys.argv[1]))
"""


class Old:
    """A home of an older schema, in either kind of database."""

    def __init__(self, folder: Path, revision: str, database_url: str) -> None:
        with tarfile.open(HOMES / f"schema-{revision}.tar.xz") as packed:
            packed.extractall(folder, filter="data")
        self.answers: dict[str, Any] = json.loads((folder / "answers.json").read_text())
        self.settings = Settings.read(folder / "home", {})
        if database_url.startswith("postgresql"):
            move(self.settings.database_url, database_url, revision)
            self.settings = Settings.read(folder / "home", {"SCOPEBASE_DATABASE_URL": database_url})

    @property
    def database(self) -> Database:
        return Database(self.settings.database_url)


def move(source: str, target: str, revision: str) -> None:
    """Every row, into a database of the same schema."""
    old, new = Database(source), Database(target)
    upgrade(new, revision)
    tables = MetaData()
    with old.reading() as read, new.writing() as write:
        tables.reflect(write.connection())
        for table in (table for table in tables.sorted_tables if table.name != "alembic_version"):
            rows = [{k: zoned(v) for k, v in row.items()} for row in read.execute(select(table)).mappings()]
            if rows:
                write.execute(table.insert(), rows)
            if "id" in table.c and rows and isinstance(rows[0]["id"], int):
                setval = text(
                    "SELECT setval(pg_get_serial_sequence(:name, 'id'), (SELECT max(id) FROM " + table.name + "))"
                )
                write.execute(setval, {"name": table.name})
    old.close()
    new.close()


def zoned(value: Any) -> Any:
    return value.replace(tzinfo=value.tzinfo or UTC) if isinstance(value, datetime) else value


def missing(before: Any, now: Any, where: str = "") -> Iterator[str]:
    """What was told before and is not, or otherwise, told now. More may be told."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key, value in before.items():
            yield from missing(value, now[key], f"{where}.{key}") if key in now else [f"{where}.{key} is gone"]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for i, value in enumerate(before):
            yield from missing(value, now[i], f"{where}[{i}]")
    elif before != now:
        yield f"{where} was {before!r} and is {now!r}"


@pytest.mark.parametrize(
    ("revision", "database_url"),
    [("0002", "postgresql"), ("0003", "sqlite"), (NEWEST, "sqlite"), (NEWEST, "postgresql")],
    indirect=["database_url"],
)
def test_an_older_home_comes_up_to_date_and_answers_as_before(
    tmp_path: Path, revision: str, database_url: str, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    old = Old(tmp_path, revision, database_url)
    with pytest.raises(HomeError, match="has an older schema; upgrade it with 'scopebase db upgrade'"):
        open_home(old.settings)
    monkeypatch.setenv("SCOPEBASE_HOME", str(old.settings.home))
    monkeypatch.setenv("SCOPEBASE_DATABASE_URL", old.settings.database_url)
    assert call("db", "upgrade").out == f"schema {newest_revision()}: upgraded\n"
    assert call("db", "upgrade").out == f"schema {newest_revision()}: up to date\n"
    home = open_home(old.settings)
    assert verify(home, deep=True).findings == []
    with TestClient(create_app(home), base_url="http://127.0.0.1") as client:
        for path, before in old.answers.items():
            answer = client.get(path)
            assert answer.status_code == 200, answer.text
            assert list(missing(before, answer.json(), path)) == []
        label = client.get("/v1/labels").json()["data"][0]
        for path, body in (("votes", {"value": -1}), ("comments", {"text": "still true"})):
            assert client.post(f"/v1/labels/{label['id']}/{path}", json=body).status_code in (200, 201)
        made = client.post("/v1/labels", json={"feature": f"{label['sae']}/9", "text": "new"})
        assert made.status_code == 201, "numbers that were given are not given again"


def test_an_upgrade_that_is_killed_leaves_the_older_schema(tmp_path: Path, database_url: str) -> None:
    old = Old(tmp_path, NEWEST, database_url)
    before = set(inspect(old.database.engine).get_table_names())
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    killed = subprocess.run([sys.executable, "-c", BREAKS_OFF, old.settings.database_url], env=environ)
    assert killed.returncode == -signal.SIGKILL
    assert current_revision(old.database) == NEWEST
    assert set(inspect(old.database.engine).get_table_names()) == before
    upgrade(old.database)
    assert check_revision(old.database) == "current"


def test_older_code_refuses_a_newer_home(tmp_path: Path, call: Call) -> None:
    old = Old(tmp_path, NEWEST, "")
    upgrade(old.database)
    with old.database.writing() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for words in (
        ("runs",),
        ("db", "upgrade"),
        ("db", "check"),
        ("index", "--model", "m", "--sae", "s", "--dataset", "a=b"),
    ):
        said = call("--home", old.settings.home, *words)
        assert said.status == 2
        assert "this home was made by a newer Scopebase (schema 9999, this one knows up to" in said.err
        assert "pip install -U scopebase" in said.err
    assert current_revision(old.database) == "9999"
