"""Whatever two processes do to rules, both see the versions that plain Python counts."""

from __future__ import annotations

from pathlib import Path

from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import text

from api.services.library import Library
from schema.home import open_home
from schema.settings import Settings
from tests.api.rules.machine import RuleMachine
from tests.laboratory import make_lab
from tests.lengths import lengths


def test_versions_of_rules(tmp_path: Path, database_url: str) -> None:
    make_lab(tmp_path, database_url).home.close()
    settings = Settings(tmp_path, database_url, str(tmp_path / "store"))

    class OneHome(RuleMachine):
        @staticmethod
        def make(_folder: Path) -> list[Library]:
            handles = [Library(open_home(settings)) for _ in range(2)]
            with handles[0].home.database.writing() as session:
                for table in ("rules", "audit"):
                    session.execute(text(f"DELETE FROM {table}"))
            return handles

    run_state_machine_as_test(OneHome, settings=lengths(4, 60, steps=(12, 30)))
