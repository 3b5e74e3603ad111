"""Whatever two labs do to labels, votes and comments, and in whatever order packs go between them, each holds what plain Python says."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import text

from api.services.labels import importing
from api.services.library import Library
from schema.home import open_home
from schema.settings import Settings
from tests.api.labels.machine import LabelMachine
from tests.laboratory import make_lab

QUIET = {
    "deadline": None,
    "database": None,
    "derandomize": True,
    "suppress_health_check": list(HealthCheck),
}


@pytest.fixture(autouse=True)
def _searched_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import brings the search table level at once; here a search does, which takes the same way."""
    monkeypatch.setattr(importing, "catch_up", lambda *_: None)


def test_two_labs_on_sqlite(tmp_path: Path) -> None:
    made = [tmp_path / "a", tmp_path / "b"]
    for folder in made:
        make_lab(folder).home.close()

    def copies(folder: Path) -> list[Library]:
        return [Library(open_home(Settings.read(shutil.copytree(each, folder / each.name), {}))) for each in made]

    class OnSqlite(LabelMachine):
        make = staticmethod(copies)

    run_state_machine_as_test(OnSqlite, settings=settings(max_examples=12, stateful_step_count=24, **QUIET))


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_lab_on_postgresql_and_one_on_sqlite(tmp_path: Path, database_url: str) -> None:
    shared = make_lab(tmp_path / "server", database_url)
    (tmp_path / "own").mkdir()
    make_lab(tmp_path / "own").home.close()

    def pair(folder: Path) -> list[Library]:
        with shared.home.database.writing() as session:
            session.execute(text("DELETE FROM label_votes"))
            session.execute(text("DELETE FROM label_comments"))
            session.execute(text("DELETE FROM label_events"))
            session.execute(text("DELETE FROM labels"))
            session.execute(text("DELETE FROM settings WHERE name = 'label_texts'"))
        server = open_home(Settings(folder, database_url, str(tmp_path / "server" / "store")))
        own = shutil.copytree(tmp_path / "own", folder / "own")
        return [Library(server), Library(open_home(Settings.read(own, {})))]

    class Mixed(LabelMachine):
        make = staticmethod(pair)

    run_state_machine_as_test(Mixed, settings=settings(max_examples=3, stateful_step_count=20, **QUIET))
    shared.home.close()
