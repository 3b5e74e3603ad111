"""/v1/jobs: who may submit and end what, lists, events that go on where they were left, and one sentence for each refusal."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from api.app import create_app
from api.gate.access import Access
from api.services.jobs import feed as feeding
from api.services.jobs.book import show_job
from api.services.jobs.feed import Feed
from schema.database import Database
from schema.home import open_home
from schema.keys import create_key
from schema.queue import Queue
from schema.settings import Settings
from schema.wire.jobs import JobEvent

BODY = {"kind": "index", "model": "a/b", "sae": "a/s", "datasets": [{"name": "d", "source": "d.jsonl"}]}
SCOPES = {"reader": "read", "ann": "write", "bob": "write", "root": "admin"}


@pytest.fixture(scope="module")
def service(indexed: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, dict[str, str]]]:
    """A service that asks for keys, and one of each kind."""
    copy = Settings.read(tmp_path_factory.mktemp("jobs") / "home", {})
    shutil.copytree(indexed.home, copy.home)
    home = open_home(copy)
    with home.database.writing() as session:
        keys = {name: create_key(session, name, scope, None, "root")[1] for name, scope in SCOPES.items()}  # type: ignore[arg-type]
    app = create_app(home, access=Access(auth=True))
    app.state.jobs = Feed(home.database, look_seconds=0.01)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client, keys


@pytest.fixture
def ask(service: tuple[TestClient, dict[str, str]]) -> Any:
    client, keys = service

    def send(who: str, method: str, path: str, status: int, body: Any = None, **headers: str) -> Any:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = client.request(method, f"/v1{path}", json=body, headers={"x-api-key": keys[who], **headers})
        assert answer.status_code == status, answer.text
        if answer.headers.get("content-type", "").startswith("application/"):
            return answer.json()
        return answer.text

    return send


@pytest.fixture
def database(service: tuple[TestClient, dict[str, str]]) -> Database:
    found: Database = service[0].app.state.library.home.database  # type: ignore[attr-defined]
    return found


def events_of(text: str) -> list[JobEvent]:
    blocks = [block.split("\n") for block in text.split("\n\n") if block.startswith("id: ")]
    events = [JobEvent.model_validate_json(lines[2].removeprefix("data: ")) for lines in blocks]
    for lines, event in zip(blocks, events, strict=True):
        assert lines[:2] == [f"id: {event.id}", f"event: {event.event}"]
    return events


def test_a_job_is_submitted_shown_listed_and_forgotten(ask: Any, service: Any) -> None:
    client, keys = service
    answer = client.post("/v1/jobs", json={**BODY, "layers": "0,2-3", "limit": 5}, headers={"x-api-key": keys["ann"]})
    job = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (202, f"/v1/jobs/{job['id']}")
    assert (job["state"], job["author"], job["attempts"], job["runs"]) == ("queued", "ann", 0, [])
    assert {**job["request"], **BODY, "layers": "0,2-3", "limit": 5} == job["request"]
    assert ask("reader", "GET", f"/jobs/{job['id']}", 200) == job
    other = ask("bob", "POST", "/jobs", 202, BODY)
    newest = ask("reader", "GET", "/jobs?limit=1", 200)
    assert [each["id"] for each in newest["data"]] == [other["id"]]
    late = ask("bob", "POST", "/jobs", 202, BODY)  # moves nothing on the pages after
    rest = ask("reader", "GET", f"/jobs?limit=1000&cursor={newest['next_cursor']}", 200)
    assert next(each["id"] for each in rest["data"]) == job["id"]
    assert rest["next_cursor"] is None
    assert [e["id"] for e in ask("reader", "GET", "/jobs?author=bob", 200)["data"]] == [late["id"], other["id"]]
    ask("ann", "POST", f"/jobs/{job['id']}/cancel", 200)
    assert job["id"] in [each["id"] for each in ask("reader", "GET", "/jobs?state=cancelled", 200)["data"]]
    assert ask("ann", "DELETE", f"/jobs/{job['id']}", 200) == {"id": job["id"], "state": "cancelled"}
    assert "no job has the number" in ask("reader", "GET", f"/jobs/{job['id']}", 404)["detail"]
    actions = [
        (entry["actor"], entry["action"])
        for entry in ask("root", "GET", f"/audit?target={job['id']}&action=job.*", 200)["data"]
    ]
    assert actions == [("ann", "job.remove"), ("ann", "job.cancel"), ("ann", "job.submit")]


def test_own_jobs_are_anybodys_who_writes_and_others_an_admins(ask: Any) -> None:
    assert "may read, and not write" in ask("reader", "POST", "/jobs", 403, BODY)["detail"]
    job = ask("ann", "POST", "/jobs", 202, BODY)["id"]
    ask("reader", "POST", f"/jobs/{job}/cancel", 403)
    for method, what in (("POST", "/cancel"), ("POST", "/retry"), ("DELETE", "")):
        said = ask("bob", method, f"/jobs/{job}{what}", 403)["detail"]
        assert said.startswith(f"job {job} is ann's; ann or a key with the scope admin may")
    assert ask("root", "POST", f"/jobs/{job}/cancel", 200)["state"] == "cancelled"
    assert ask("ann", "POST", f"/jobs/{job}/cancel", 200)["state"] == "cancelled"  # once more is no error
    assert ask("ann", "POST", f"/jobs/{job}/retry", 200)["state"] == "queued"


def test_what_cannot_be_asked_of_a_job_in_its_state_is_refused(ask: Any, database: Database) -> None:
    job = ask("ann", "POST", "/jobs", 202, BODY)["id"]
    assert f"job {job} is queued; only" in ask("ann", "POST", f"/jobs/{job}/retry", 409)["detail"]
    assert f"job {job} is queued; cancel it first" in ask("ann", "DELETE", f"/jobs/{job}", 409)["detail"]
    queue = Queue(database, "far:1:0")
    while (taken := queue.take()) is not None and taken.id != job:
        queue.finish(taken, [])
    assert taken is not None
    running = ask("ann", "POST", f"/jobs/{job}/cancel", 200)
    assert (running["state"], running["cancelling"], running["worker"]) == ("running", True, "far:1:0")
    assert f"job {job} is running; cancel it first" in ask("ann", "DELETE", f"/jobs/{job}", 409)["detail"]
    queue.finish(taken, [])
    assert (
        "has finished already; there is nothing to cancel" in ask("ann", "POST", f"/jobs/{job}/cancel", 409)["detail"]
    )
    assert "has finished; only a job" in ask("ann", "POST", f"/jobs/{job}/retry", 409)["detail"]


def test_a_submission_sent_twice_makes_one_job(ask: Any) -> None:
    first = ask("ann", "POST", "/jobs", 202, BODY, idempotency_key="mine")
    assert ask("ann", "POST", "/jobs", 202, {**BODY, "layers": "all"}, idempotency_key="mine") == first  # the default
    said = ask("ann", "POST", "/jobs", 422, {**BODY, "layers": "1"}, idempotency_key="mine")["detail"]
    assert f"'mine' came with another request before, which became job {first['id']}" in said
    assert ask("bob", "POST", "/jobs", 202, BODY, idempotency_key="mine")["id"] != first["id"]


@pytest.mark.parametrize(
    ("change", "field", "why"),
    [
        ({"model": "/etc"}, "model", "under the worker's --data-root"),
        ({"sae": "a/../../b"}, "sae", "leads out of the worker's --data-root"),
        ({"model": "hub:a/b"}, "model", "'hub:' is for datasets"),
        ({"datasets": []}, "datasets", "at least 1"),
        ({"datasets": BODY["datasets"] * 2}, "", "dataset 'd' is given twice"),
        ({"datasets": [{"name": "-x", "source": "d.jsonl"}]}, "datasets.0.name", "letters, digits"),
        ({"datasets": [{"name": "x", "source": "~root/d.jsonl"}]}, "datasets.0.source", "--data-root"),
        ({"layers": "3;4"}, "layers", "pattern"),
        ({"template": "{question"}, "template", "a literal brace is written twice"),
        ({"text_field": "a\0"}, "text_field", "NUL"),
        ({"limit": 0}, "limit", "greater than or equal to 1"),
        ({"device": "cuda"}, "device", "Extra inputs"),
        ({"kind": "sweep"}, "kind", "index"),
    ],
)
def test_what_a_worker_would_refuse_is_refused_before_it_is_queued(
    ask: Any, change: dict[str, Any], field: str, why: str
) -> None:
    before = ask("ann", "GET", "/jobs?limit=1", 200)["data"]
    refused = ask("ann", "POST", "/jobs", 422, {**BODY, **change})
    assert [error["field"] for error in refused["errors"]] == [field]
    assert why in refused["errors"][0]["problem"]
    assert ask("ann", "GET", "/jobs?limit=1", 200)["data"] == before


def test_events_go_on_after_the_last_one_that_was_seen(ask: Any, database: Database) -> None:
    job = ask("ann", "POST", "/jobs", 202, BODY)["id"]
    queue = Queue(database, "far:1:0")
    while (taken := queue.take()) is not None and taken.id != job:
        queue.finish(taken, [])
    assert taken is not None
    queue.say(taken, "loading\nthe model")
    for done in (1, 2):
        told = {"title": "indexing d", "done": done, "total": 2, "tokens": 7, "tokens_per_second": 7.0}
        queue.beat(taken, {**told, "seconds_left": None, "at": "2026-01-01T00:00:00Z"})
    queue.finish(taken, [])
    all_of_it = ask("reader", "GET", f"/jobs/{job}/events", 200)
    assert all_of_it.startswith("retry: 2000\n\n")
    events = events_of(all_of_it)
    assert [(e.id, e.event, e.state) for e in events] == [
        *((1, "state", "queued"), (2, "state", "running"), (3, "line", "running")),
        *((5, "progress", "running"), (6, "state", "finished")),
    ]
    assert events[2].text == "loading\nthe model"
    assert events[3].progress is not None
    assert events[3].progress.done == 2  # of two steps the newest
    assert [e.id for e in events_of(ask("reader", "GET", f"/jobs/{job}/events", 200, last_event_id="3"))] == [5, 6]
    assert [e.id for e in events_of(ask("reader", "GET", f"/jobs/{job}/events?after=5", 200))] == [6]
    assert ask("reader", "GET", f"/jobs/{job}/events", 204, last_event_id="6") == ""
    assert "no job has the number" in ask("reader", "GET", "/jobs/99999/events", 404)["detail"]


def test_too_many_watchers_are_sent_away_and_those_who_left_are_not_counted(
    ask: Any, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeding, "MOST_WATCHERS", 0)
    job = ask("ann", "POST", "/jobs", 202, BODY)["id"]
    assert "watch jobs here already" in ask("reader", "GET", f"/jobs/{job}/events", 429)["detail"]
    ask("ann", "POST", f"/jobs/{job}/cancel", 200)
    monkeypatch.setattr(feeding, "MOST_WATCHERS", 1)
    for _ in range(3):
        assert len(events_of(ask("reader", "GET", f"/jobs/{job}/events", 200))) == 2


def test_watchers_share_looks_and_none_waits_for_another(
    ask: Any, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty who follow one job, one of whom never takes more than the first event."""
    job = ask("ann", "POST", "/jobs", 202, BODY)["id"]
    looks: list[int] = []
    real = feeding.job_events
    monkeypatch.setattr(feeding, "job_events", lambda *args: (looks.append(1), real(*args))[1])
    monkeypatch.setattr(feeding, "QUIET_SECONDS", 0.05)

    async def watch(feed: Feed) -> list[int]:
        seen = []
        quiet = 0
        async for events in feed.follow(job, 0):
            seen += [event.id for event in events]
            quiet += not events
            if quiet == 2 and show_job(database, job).state == "queued":
                ask("ann", "POST", f"/jobs/{job}/cancel", 200)
        return seen

    async def all_of_them() -> list[list[int]]:
        feed = Feed(database, look_seconds=0.05)
        stalled = feed.follow(job, 0)
        await anext(stalled)
        return await asyncio.wait_for(asyncio.gather(*(watch(feed) for _ in range(30))), 20)

    assert asyncio.run(all_of_them()) == [[1, 2]] * 30
    assert len(looks) < 60  # not 30 for each look


def test_metrics_tell_how_many_jobs_are_in_which_state(service: Any, ask: Any) -> None:
    client, keys = service
    ask("ann", "POST", "/jobs", 202, BODY)
    text = client.get("/metrics", headers={"x-api-key": keys["reader"]}).text
    found = {
        sample.labels["state"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "scopebase_jobs"
    }
    listed = json.loads(json.dumps(ask("reader", "GET", "/jobs?limit=1000", 200)["data"]))
    assert sum(found.values()) == len(listed)
    assert found["queued"] == sum(job["state"] == "queued" for job in listed) > 0


def test_a_queue_on_a_home_of_its_own(tmp_path: Path) -> None:
    """Jobs can wait before anything was ever indexed."""
    from schema.home import make_home

    home = make_home(Settings.read(tmp_path / "home", {}))
    with TestClient(create_app(home)) as client:
        assert client.get("/v1/jobs").json() == {"data": [], "next_cursor": None}
        assert client.post("/v1/jobs", json=BODY).json()["author"] == "local"
