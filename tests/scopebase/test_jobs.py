"""Jobs from end to end: a service, workers as processes of their own, one of them killed, a client and the command line that watch."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.app import create_app
from indexer.config import IndexConfig
from indexer.jobs import Do, index_config, work_off
from indexer.run import index as run_index
from schema.errors import NotFound, WorkFailed
from schema.home import make_home
from schema.queue import Queue
from schema.settings import Settings
from schema.wire.jobs import JobEvent
from scopebase import Client
from tests.indexer.test_run import everything
from tests.scopebase.test_cli import Call, call  # noqa: F401 - a fixture
from tests.scopebase.test_client import serving

KILLED = """
import os, signal, sys
import scopebase
from indexer import jobs
n = 0
def border(self):
    global n
    n += 1
    if n == 4:
        os.kill(os.getpid(), signal.SIGKILL)
jobs.Watched.border = border
sys.argv = ["scopebase", *sys.argv[1:]]
from scopebase.cli import main
main()
"""
"""`scopebase`, whose worker dies in the middle of its first job."""


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    server = {} if database_url.startswith("sqlite") else {"SCOPEBASE_DATABASE_URL": database_url}
    return Settings.read(tmp_path / "home", server)


@pytest.fixture
def root(tmp_path: Path, model_dir: Path, release_dir: Path, data_dir: Path) -> Path:
    folder = tmp_path / "root"
    shutil.copytree(data_dir, folder / "data")
    shutil.copytree(model_dir, folder / "tiny-qwen3")
    shutil.copytree(release_dir, folder / "saes")
    return folder


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    home = make_home(settings)
    with serving(create_app(home)) as url, Client(url) as made:
        yield made


def work(settings: Settings, root: Path) -> tuple[int, str]:
    """Exit status and last words of a worker in a process of its own, which dies."""
    environ = {**os.environ, "SCOPEBASE_HOME": str(settings.home), "SCOPEBASE_DATABASE_URL": settings.database_url}
    command = [sys.executable, "-c", KILLED, "work", "--data-root", str(root), "--once"]
    done = subprocess.run(command, env=environ, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_killed_workers_job_is_finished_by_another_as_if_nothing_had_been(
    client: Client, settings: Settings, root: Path, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"set": "tiny", "layers": "2", "batch_tokens": 256, "logits": "no"}
    job = client.jobs.submit("tiny-qwen3", "saes", {"songs": "data/songs.jsonl"}, key="once", **asked)
    assert client.jobs.submit("tiny-qwen3", "saes", {"songs": "data/songs.jsonl"}, key="once", **asked).id == job.id
    seen: list[JobEvent] = []
    watching = threading.Thread(target=lambda: seen.extend(client.jobs.events(job.id)))
    watching.start()
    status, words = work(settings, root)
    assert status == -signal.SIGKILL, words
    assert client.jobs.show(job.id).state == "running"
    home, said = make_home(settings), list[str]()
    do: Do = lambda job, progress: run_index(index_config(job, root, "cpu"), settings, progress)  # noqa: E731
    assert work_off(Queue(home.database), do, threading.Event(), said.append, once=True, keep_days=9) == 1, said
    home.close()
    watching.join(30)
    assert [event.state for event in seen if event.event == "state"] == ["queued", "running", "running", "finished"]
    assert "fell silent; attempt 2 of 3" in [event.text or "" for event in seen if event.event == "state"][2]
    assert any(event.progress is not None for event in seen)
    done = client.jobs.show(job.id)
    assert [(run.dataset, run.already) for run in done.runs] == [("songs", False)]
    assert client.runs()[0].id == done.runs[0].id  # the service sees what the worker made
    plain = Settings.read(tmp_path / "plain", {})
    datasets = (("songs", str(root / "data" / "songs.jsonl")),)
    run_index(
        IndexConfig(str(root / "tiny-qwen3"), str(root / "saes"), datasets, "2", "tiny", batch_tokens=256, logits="no"),
        plain,
    )
    assert everything(settings) == everything(plain)


def test_the_client_takes_a_cut_line_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line is cut after two events; the third try is refused for ever."""
    import httpx

    from scopebase.client import jobs as of_client

    monkeypatch.setattr(of_client.time, "sleep", lambda _seconds: None)
    asked_after: list[str] = []

    def event(number: int) -> str:
        said = {"id": number, "event": "line", "state": "running", "text": "x", "at": "2026-01-01T00:00:00Z"}
        return f"id: {number}\nevent: line\ndata: {json.dumps(said)}\n\n"

    def answer(request: httpx.Request) -> httpx.Response:
        after = int(request.headers["last-event-id"])
        asked_after.append(str(after))
        if after >= 4:
            raise httpx.ReadError("cut")

        def body() -> Iterator[bytes]:
            yield (event(after + 1) + event(after + 2)).encode()
            raise httpx.ReadError("cut")

        return httpx.Response(200, content=body(), headers={"content-type": "text/event-stream"})

    client = Client("http://service", transport=httpx.MockTransport(answer), retries=2)
    numbers = []
    with pytest.raises(WorkFailed, match="broke off"):
        for each in client.jobs.events(7):
            numbers.append(each.id)
    assert numbers == [1, 2, 3, 4]
    assert asked_after == ["0", "2", "4", "4"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_command_line_asks_a_home_and_a_service_alike(
    call: Call,  # noqa: F811
    client: Client,
    settings: Settings,
    root: Path,
) -> None:
    service = str(client._http.base_url).removesuffix("/v1/")
    options = ("--model", "tiny-qwen3", "--sae", "saes", "--dataset", "songs=data/songs.jsonl", "--layers", "2")
    for number, where in enumerate((("--home", settings.home), ("--url", service)), 1):
        made = call("jobs", "submit", *options, "--key", f"k{number}", *where, "--json").json
        assert (made["id"], made["state"]) == (number, "queued")
        assert made["request"]["layers"] == "2"
        assert call("jobs", "submit", *options, "--key", f"k{number}", *where, "--json").json == made
        assert [each["id"] for each in call("jobs", "list", *where, "--json").json["data"]] == [*range(number, 0, -1)]
        assert call("jobs", "cancel", number, *where, "--json").json["state"] == "cancelled"
        watched = call("jobs", "watch", number, *where)
        assert watched.status == 1
        assert "queued" in watched.err.splitlines()[0]
        assert "cancelled: cancelled by" in watched.err.splitlines()[1]
        assert call("jobs", "retry", number, *where, "--json").json["state"] == "queued"
        refused = call("jobs", "remove", number, *where)
        assert refused.status == 2
        assert f"job {number} is queued; cancel it first" in refused.err
        assert call("jobs", "show", 99, *where).status == 2
    shown = call("jobs", "list", "--home", settings.home).out
    assert max(len(line) for line in shown.splitlines()) <= 100
    with pytest.raises(NotFound):
        client.jobs.show(99)
    bad = call("jobs", "submit", "--model", "../m", "--sae", "s", "--dataset", "a=b.jsonl", "--home", settings.home)
    assert (bad.status, "model: '../m' leads out of the worker's --data-root" in bad.err) == (2, True)
    assert call("work", "--data-root", root / "nowhere", "--home", settings.home).status == 2
    call("jobs", "cancel", 1, "--home", settings.home)
    assert "is forgotten" in call("jobs", "remove", 1, "--home", settings.home).out
