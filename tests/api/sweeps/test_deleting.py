"""Sweeps are deleted with what they hold, at rest and under who works on them; and all that steering stores, on PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from api.app import create_app
from api.services.library import Library
from api.services.sweeps.book import begin, delete_sweep, list_sweeps, show_sweep
from api.services.sweeps.work import work
from indexer.run import index
from schema.errors import NotFound
from schema.generation import Piece
from schema.home import Home, open_home
from schema.keys import create_key
from schema.lab import AuditEntry
from schema.settings import Settings
from schema.steer import SweepPoint
from tests.api.sweeps.plain_generator import PlainGenerator
from tests.api.sweeps.test_sweeps import SAE, asked, copy_home
from tests.indexer.test_run import config

SMALL: dict[str, Any] = {
    "strengths": [2.0],
    "prompts": ["Once upon a time"],
    "samples": 1,
    "max_tokens": 2,
    "controls": {"random_features": 1, "random_directions": 0, "negative": False},
}
PARTS = [{"feature": f"{SAE}/26"}]


@pytest.fixture
def books(indexed: Settings, tmp_path: Path) -> Iterator[Library]:
    found = copy_home(indexed, tmp_path)
    yield found
    found.home.close()


def n_points(home: Home) -> int:
    with home.database.reading() as session:
        return session.scalar(select(func.count()).select_from(SweepPoint)) or 0


def client_of(home: Home, generator: Any) -> TestClient:
    return TestClient(create_app(home, generator=generator))


def test_a_sweep_that_is_deleted_under_its_worker_stores_nothing_more(books: Library, model_dir: Path) -> None:
    """Not even where another sweep has taken its name and its id."""
    request, generator = asked(**SMALL), PlainGenerator(books.home, model_dir)
    begin(books, generator, request, "ann")

    def tell(done: int, _tokens: int) -> None:
        if done == 1:
            assert delete_sweep(books, "first", "bob").n_done == 1
            assert n_points(books.home) == 0
            begin(books, generator, request, "bob")

    with pytest.raises(NotFound, match="sweep first was deleted while it was at work"):
        work(books, generator, "first", threading.Event(), tell)
    assert (show_sweep(books, "first").n_done, show_sweep(books, "first").author) == (0, "bob")
    with books.home.database.reading() as session:
        entry = session.scalars(select(AuditEntry).where(AuditEntry.action == "sweep.delete")).one()
    assert (entry.actor, entry.target, entry.detail) == ("bob", "first", {"points": 1, "author": "ann"})


def test_one_that_is_at_work_in_the_service_is_stopped_first(books: Library, model_dir: Path) -> None:
    generator, go_on = PlainGenerator(books.home, model_dir), threading.Event()
    submit = generator.submit

    def slowly(*args: Any) -> Any:
        go_on.wait(10)
        return submit(*args)

    generator.submit = slowly  # type: ignore[method-assign]
    with client_of(books.home, generator) as client:
        client.post("/v1/sweeps", json=asked(**SMALL).model_dump(mode="json"))
        refused = client.delete("/v1/sweeps/first")
        assert (refused.status_code, refused.json()["detail"]) == (
            409,
            "sweep first is at work; stop it, and delete it then",
        )
        client.post("/v1/sweeps/first/stop")
        go_on.set()
        while client.get("/v1/sweeps/first").json()["state"] in ("running", "waiting"):
            pass
        assert client.delete("/v1/sweeps/first").json()["state"] == "stopped"
        gone = client.delete("/v1/sweeps/first")
        assert (gone.status_code, "no sweep named 'first'" in gone.json()["detail"]) == (404, True)


def test_deleting_needs_the_scope_write(books: Library) -> None:
    from api.gate.access import Access

    with books.home.database.writing() as session:
        _, secret = create_key(session, "ann", "label", None, "test")
    with TestClient(create_app(books.home, access=Access(auth=True))) as client:
        refused = client.delete("/v1/sweeps/first", headers={"x-api-key": secret})
    assert refused.status_code == 403


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_vectors_and_sweeps_on_postgresql(
    tmp_path: Path, database_url: str, index_args: dict[str, Any], data_dir: Path, model_dir: Path
) -> None:
    """The same sweep as on SQLite, point by point, and the same vector; from a model that writes NUL, which PostgreSQL takes nowhere."""

    def with_nul(submit: Any, choices: Any, deliver: Any) -> Any:
        return submit(choices, lambda e: deliver(replace(e, text=f"{e.text}\0") if isinstance(e, Piece) else e))

    told = []
    for folder, environment in (("server", {"SCOPEBASE_DATABASE_URL": database_url}), ("file", {})):
        settings = Settings.read(tmp_path / folder, environment)
        index(config(index_args, data_dir, layers="2"), settings)
        home = open_home(settings)
        generator = PlainGenerator(home, model_dir)
        generator.submit = partial(with_nul, generator.submit)  # type: ignore[method-assign]
        with client_of(home, generator) as client:
            saved = client.post("/v1/steering-vectors", json={"name": "calm", "components": PARTS})
            assert saved.status_code == 201
            noted = client.post("/v1/steering-vectors", json={"name": "n", "description": "a\0b", "components": PARTS})
            assert (noted.status_code, "a text holds a NUL character" in noted.text) == (
                (422, True) if folder == "server" else (201, False)
            )
            body = asked(**{**SMALL, "target": [{"vector": "calm", "unit": "residual_norm"}]}).model_dump(mode="json")
            client.post("/v1/sweeps", json=body)
            while client.get("/v1/sweeps/first").json()["state"] != "done":
                assert client.get("/v1/sweeps/first").json()["state"] in ("waiting", "running", "done")
            answer = client.get("/v1/sweeps/first").json()
            texts = client.get("/v1/sweeps/first/texts", params={"point": 1}).json()
            assert texts["data"][0]["text"].endswith("\ufffd")
            told.append((saved.json()["sha256"], answer["points"], answer["suggestion"], texts))
            assert client.delete("/v1/sweeps/first").json()["n_done"] == len(answer["points"])
            assert client.delete("/v1/steering-vectors/calm").status_code == 200
            assert list_sweeps(Library(home), 10, None, {}).data == []
            assert n_points(home) == 0
    assert told[0] == told[1]
