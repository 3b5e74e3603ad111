"""Jobs from end to end: a service, workers as processes of their own, one of them killed, a client and the command line that watch."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from api.app import create_app
from api.services.jobs.book import Asker, cancel_job, job_events, retry_job, show_job, submit_job
from indexer.config import IndexConfig
from indexer.jobs import Do, index_config, work_off
from indexer.run import index as run_index
from schema.errors import NotFound, WorkFailed
from schema.home import make_home
from schema.queue import Queue
from schema.settings import Settings
from schema.wire.jobs import IndexJob, JobEvent
from scopebase import Client
from tests.indexer.ray_chaos import await_committed, leases, named_contents, progress
from tests.indexer.test_run import everything
from tests.lengths import LONG
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


class OnRay:
    """A `scopebase work --engine ray` in a process of its own."""

    def __init__(self, settings: Settings, root: Path, *more: str) -> None:
        words = ["--home", str(settings.home), "work", "--data-root", str(root), "--engine", "ray", "--workers", "2"]
        command = [sys.executable, "-m", "scopebase", *words, *more]
        self.settings = settings
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def await_holders(self, n: int) -> list[int]:
        """The processes that hold a shard, once n are committed."""
        held = await_committed(self.settings, n, self.process)
        assert held, self.end()
        return held

    def await_state(self, job: int, state: str) -> None:
        home = make_home(self.settings)
        until = time.monotonic() + 120
        while show_job(home.database, job).state != state:
            assert self.process.poll() is None, self.end()
            assert time.monotonic() < until, show_job(home.database, job)
            time.sleep(0.05)
        home.close()

    def of_ray(self, name: str = "") -> list[psutil.Process]:
        """Of the processes below it, those of Ray whose name begins so."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        return [each for each in below if each.name().startswith((name,) if name else ("ray", "gcs_server"))]

    def end(self) -> str:
        """What it said."""
        return self.process.communicate(timeout=120)[1]


@pytest.fixture
def on_ray(settings: Settings, root: Path) -> Iterator[Callable[..., OnRay]]:
    made: list[OnRay] = []

    def begin(*more: str) -> OnRay:
        made.append(OnRay(settings, root, *more))
        return made[-1]

    yield begin
    for each in made:
        each.process.kill()


@pytest.fixture
def job_on_ray(settings: Settings) -> int:
    body = {"kind": "index", "model": "tiny-qwen3", "sae": "saes", "set": "tiny", "layers": "1,2", "batch_tokens": 48}
    datasets = [{"name": name, "source": f"data/{name}.jsonl"} for name in ("problems", "songs", "tales")]
    home = make_home(settings)
    job = submit_job(home.database, IndexJob.model_validate({**body, "datasets": datasets, "logits": "no"}), "ann")
    home.close()
    return job.id


def same_as_at_once(settings: Settings, root: Path, folder: Path) -> None:
    """What is there is what one undisturbed command leaves."""
    plain = Settings.read(folder / "plain", {})
    datasets = tuple((name, str(root / "data" / f"{name}.jsonl")) for name in ("problems", "songs", "tales"))
    model, saes = str(root / "tiny-qwen3"), str(root / "saes")
    run_index(IndexConfig(model, saes, datasets, "1,2", "tiny", batch_tokens=48, logits="no"), plain)
    assert named_contents(settings) == named_contents(plain)


needs_ray = pytest.mark.skipif(
    not LONG or importlib.util.find_spec("ray") is None,
    reason="make torture starts Ray for jobs; it may not be installed",
)


@needs_ray
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_job_on_ray_loses_a_worker_then_the_process_that_took_it(
    settings: Settings, root: Path, tmp_path: Path, on_ray: Callable[..., OnRay], job_on_ray: int
) -> None:
    first = on_ray("--once")
    (holder, *_) = first.await_holders(2)
    os.kill(holder, signal.SIGKILL)
    first.await_holders(5)
    ray_of_first = first.of_ray()
    first.process.kill()
    said = first.end()
    assert f"(pid {holder}) is lost" in said
    assert psutil.wait_procs(ray_of_first, 60)[1] == []  # nothing of its Ray goes on
    second = on_ray("--once")
    assert "finished" in second.end()
    home = make_home(settings)
    done, events = show_job(home.database, job_on_ray), job_events(home.database, job_on_ray)[0]
    home.close()
    assert (done.state, done.attempts) == ("finished", 2)
    assert any("fell silent; attempt 2 of 3" in (event.text or "") for event in events)
    shards, leased = leases(settings)
    assert leased - shards <= 3  # one of the killed worker, two of the killed process
    same_as_at_once(settings, root, tmp_path)


@needs_ray
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_job_on_ray_is_cancelled_tried_again_and_outlives_its_ray(
    settings: Settings, root: Path, tmp_path: Path, on_ray: Callable[..., OnRay], job_on_ray: int
) -> None:
    worker, database = on_ray(), make_home(settings).database
    worker.await_holders(2)
    cancel_job(database, job_on_ray, Asker("root"))
    worker.await_state(job_on_ray, "cancelled")
    assert progress(settings)[1] == []
    assert psutil.wait_procs(worker.of_ray(), 30)[1] == []
    retry_job(database, job_on_ray, Asker("root"))
    worker.await_holders(progress(settings)[0] + 2)
    (head,) = worker.of_ray("gcs_server")
    head.kill()
    worker.await_state(job_on_ray, "queued")
    worker.await_state(job_on_ray, "finished")
    worker.process.terminate()
    said = worker.end()
    assert worker.process.returncode == 0
    assert "Ray on this machine died" in said
    assert "Traceback" not in said
    assert show_job(database, job_on_ray).progress is not None
    same_as_at_once(settings, root, tmp_path)
