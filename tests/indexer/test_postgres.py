"""The whole job with a PostgreSQL database: the same rows and the same answers as with SQLite, alone and shared."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from api.app import create_app
from indexer.run import index, register
from schema.database import Database, upgrade
from schema.home import make_home, open_home
from schema.recipe import Recipe
from schema.settings import Settings
from schema.tables import Base, Shard
from tests.indexer.test_run import config, everything
from tests.lengths import LONG
from tests.schema.test_ledger import MODEL, SURVEY, do, sae_card
from tests.scopebase.test_cli import Call, call

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
__all__ = ["call"]  # the fixture
CHANGING = {"created_at", "finished_at", "leased_until", "owner", "token"}
INDEX = ("models", "saes", "datasets", "runs", "run_saes", "segments", "shards")
T = TypeVar("T")


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    """A home whose database is a server's."""
    return Settings.read(tmp_path / "home", {"SCOPEBASE_DATABASE_URL": database_url})


def described(settings: Settings) -> dict[str, list[dict[str, Any]]]:
    """Every row of the database, but for times and workers and the store's id."""
    database = Database(settings.database_url)
    tables = {name: table for name, table in Base.metadata.tables.items() if name != "settings"}
    with database.reading() as session:
        rows = {
            name: [
                {column: value for column, value in row.items() if column not in CHANGING}
                for row in session.execute(table.select().order_by(*table.primary_key.columns)).mappings()
            ]
            for name, table in tables.items()
        }
    database.close()
    return rows


def start(settings: Settings, *args: str) -> subprocess.Popen[str]:
    """`scopebase ...` as a process of its own, told of the database by the environment."""
    environ = {**os.environ, "SCOPEBASE_HOME": str(settings.home), "SCOPEBASE_DATABASE_URL": settings.database_url}
    command = [sys.executable, "-m", "scopebase", *args]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> str:
    """What it printed, once it has ended well."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def test_rows_and_answers_are_those_of_sqlite(
    tmp_path: Path,
    settings: Settings,
    index_args: dict[str, Any],
    data_dir: Path,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = Settings.read(tmp_path / "plain", {})
    plan = config(index_args, data_dir, names=("tales", "songs"), layers="1,2")
    reports = index(plan, settings)
    assert reports == index(plan, plain)
    assert everything(settings) == everything(plain)
    assert described(settings) == described(plain)
    assert not (settings.home / "scopebase.db").exists()

    question = ("overlap", "tales", "songs", "--sae", "tiny-qwen3/2-tiny", "--json")
    told = call("--home", plain.home, *question).json
    monkeypatch.setenv("SCOPEBASE_DATABASE_URL", settings.database_url)
    assert call("--home", settings.home, *question).json == told
    assert told["datasets"][0]["name"] == "tales"


def test_a_second_call_says_so_and_writes_nothing(
    settings: Settings, index_args: dict[str, Any], data_dir: Path
) -> None:
    plan = config(index_args, data_dir, layers="1")
    first = index(plan, settings)[0]
    before = described(settings), _files(settings.home)
    again = index(plan, settings)[0]
    assert (first.already, again.already, again.run) == (False, True, first.run)
    assert (described(settings), _files(settings.home)) == before


def _files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.skipif(not LONG, reason="make torture starts two at once; the suite shares work on Ray")
def test_two_processes_on_an_empty_database_share_the_work(
    tmp_path: Path, settings: Settings, index_args: dict[str, Any], data_dir: Path
) -> None:
    plain = Settings.read(tmp_path / "plain", {})
    plan = config(index_args, data_dir, names=("tales", "songs"), layers="0,1", batch_tokens=128)
    options = ["--layers", "0,1", "--batch-tokens", "128", "--set", "tiny", "--model", plan.model, "--sae", plan.sae]
    datasets = [part for name, source in plan.datasets for part in ("--dataset", f"{name}={source}")]
    workers = [start(settings, "index", *options, *datasets) for _ in range(2)]
    index(plan, plain)
    for worker in workers:
        end(worker)
    assert everything(settings) == everything(plain)
    assert finished(settings) == [1, 2]


def test_first_calls_at_the_same_moment_make_one_home_and_one_run(settings: Settings) -> None:
    database = Database(settings.database_url)
    upgrade(database)  # not at once: Alembic's context is one a process
    database.close()

    def first_call(_number: int) -> int:
        home = make_home(settings)
        run, _ = register(home, MODEL, "tiny", [sae_card(0), sae_card(1)], SURVEY, Recipe(), 2048, {})
        home.close()
        return run.id

    assert at_once(first_call) == [1] * 6
    assert {name: len(rows) for name, rows in described(settings).items() if name in INDEX} == {
        **{"models": 1, "saes": 2, "datasets": 1, "runs": 1, "run_saes": 2, "segments": 0},
        "shards": 1 + 2 + 3,
    }


def test_runs_that_finish_at_the_same_moment_get_numbers_of_their_own(settings: Settings) -> None:
    home = make_home(settings)
    last: list[Shard] = []
    for number in range(6):
        recipe = Recipe(max_tokens=100 + number)
        run, _ = register(home, MODEL, "tiny", [sae_card(0)], SURVEY, recipe, 2048, {})
        do(home.ledger, run, stop_at="seal")
        with home.database.reading() as session:
            last.append(session.query(Shard).filter_by(run_id=run.id, kind="seal").one())
    for shard in last:
        home.ledger.stage(shard, {}, {})

    with home.database.writing() as session:
        session.execute(text("LOCK TABLE runs IN SHARE MODE"))  # all may look, none may write, until this one ends
        release = threading.Timer(0.5, session.rollback)
        release.start()
        at_once(lambda number: home.ledger.commit([last[number]]))
        release.join()
    home.close()
    assert sorted(finished(settings)) == [1, 2, 3, 4, 5, 6]


def finished(settings: Settings) -> list[int | None]:
    """In which place each run was finished."""
    return [run["finished"] for run in described(settings)["runs"]]


def at_once(call: Callable[[int], T], n: int = 6) -> list[T]:
    """The results of `call(0)`, `call(1)`, ..., all begun at the same moment in threads of their own."""
    barrier = threading.Barrier(n)

    def wait_and_call(number: int) -> T:
        barrier.wait()
        return call(number)

    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(wait_and_call, range(n)))


def test_what_people_add_is_kept_there_too(settings: Settings, index_args: dict[str, Any], data_dir: Path) -> None:
    """Labels, rules, scores and keys through the service, on the server's types and locks."""
    index(config(index_args, data_dir, names=("problems", "songs"), layers="2"), settings)
    sae = "tiny-qwen3/2-tiny"
    with TestClient(create_app(open_home(settings))) as client:

        def post(path: str, body: Any) -> Any:
            answer = client.post(f"/v1/{path}", json=body)
            assert answer.status_code < 300, answer.text
            return answer.json()

        label = post("labels", {"feature": f"{sae}/3", "text": "apples"})
        assert post(f"labels/{label['id']}/votes", {"value": 1})["votes"] == 1
        assert [hit["id"] for hit in post("features/search", {"text": "apples"})["data"]] == [f"{sae}/3"]
        post("rules", {"name": "few", "expression": {"any": [{"feature": f"{sae}/3", "above": 0.0}]}})
        measured = {"datasets": ["problems"], "label_field": "level", "positive": 1}
        assert post("rules/few/evaluate", measured)["data"][0]["metrics"]["n"] == 60
        rows = [{"id": f"p{i}", "score": i % 2} for i in range(60)]
        post("evaluations", {"dataset": "problems", "evaluated": "m1", "metric": "acc", "rows": rows})
        assert client.get("/v1/evaluations").json()["data"][0]["n_scores"] == 60
        assert post("features/query", {"sae": sae, "where": {"dataset": "problems"}})["total"] > 0
        actions = [entry["action"] for entry in client.get("/v1/audit").json()["data"]]
        assert {"label.create", "rule.create"} <= set(actions)
