"""Short forms of faults that `python -m tests.torture` tries many times: the service dies, the database goes away, the clock jumps."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select, text

from api.app import create_app
from api.services.labels.book import Filter, create, list_labels
from api.services.library import Library
from schema import ledger
from schema.database import Database
from schema.errors import LeaseLost, WorkFailed
from schema.home import open_home
from schema.ledger import Ledger
from schema.settings import Settings
from schema.tables import Run, Shard
from schema.wire.labels import NewLabel
from tests.api.test_traces import collector, read
from tests.laboratory import make_lab
from tests.lengths import LONG
from tests.races import race, spread
from tests.schema.test_ledger import database, run
from tests.team import free_port

__all__ = ["database", "run"]

FEATURE = "m/3-tiny/7"
N_PROCESSES, N_ROUNDS = (3, 20) if LONG else (2, 2)


def test_labels_outlive_the_service(tmp_path: Path) -> None:
    """kill -9 while three people write: what was answered with 201 is there, once."""
    make_lab(tmp_path).home.close()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "scopebase", "--home", str(tmp_path), "serve", "--port", str(port)]
    service = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    acknowledged: list[str] = []
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)

        def write(number: int) -> None:
            for n in range(1000):
                said = f"{number} says {n}"
                try:
                    answer = httpx.post(f"http://127.0.0.1:{port}/v1/labels", json={"feature": FEATURE, "text": said})
                except httpx.HTTPError:
                    return
                assert answer.status_code == 201
                acknowledged.append(said)

        writers = [threading.Thread(target=write, args=(number,)) for number in range(3)]
        for writer in writers:
            writer.start()
        while len(acknowledged) < 12 and time.monotonic() < until:
            time.sleep(0.002)
    finally:
        service.send_signal(signal.SIGKILL)
        service.wait()
    for writer in writers:
        writer.join()
    home = open_home(Settings.read(tmp_path, {}))
    there = [label.text for label in list_labels(Library(home), Filter(), 1000).data]
    home.close()
    assert len(acknowledged) >= 12
    assert {said: there.count(said) for said in acknowledged} == dict.fromkeys(acknowledged, 1)
    assert len(there) == len(set(there))


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_of_many_writers_through_several_processes_one_wins(tmp_path: Path, database_url: str) -> None:
    """Whatever they asked is in the numbers of any process, and in the traces though the service ends right behind the last answer."""
    make_lab(tmp_path, database_url).home.close()
    port = free_port()
    command = [sys.executable, "-m", "scopebase", "--home", str(tmp_path), "serve", "--port", str(port)]
    log = tmp_path / "log"
    with log.open("w") as said, contextlib.ExitStack() as stack:
        traces, bodies = stack.enter_context(collector())
        environ = {**os.environ, "SCOPEBASE_DATABASE_URL": database_url, "OTEL_EXPORTER_OTLP_ENDPOINT": traces}
        service = subprocess.Popen([*command, "--workers", str(N_PROCESSES)], env=environ, stdout=said, stderr=said)
        stack.callback(service.wait)
        stack.callback(service.kill)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        clients = spread(f"http://127.0.0.1:{port}", service.pid, N_PROCESSES, each=2)
        for client in clients:
            stack.callback(client.close)
        race(clients, FEATURE, width=4, rounds=N_ROUNDS)
        counted = r'scopebase_requests_total\{(?=[^}]*method="POST")[^}]*route="/v1/jobs"[^}]*\} ([\d.]+)'
        told = [sum(map(float, re.findall(counted, client.get("/metrics").text))) for client in clients]
        assert told == [2 * len(clients)] * len(clients)
        service.terminate()
        assert service.wait(30) == 0
    assert "Traceback" not in log.read_text()
    submitted = [span for span in read(bodies)[0] if span["name"] == "POST /v1/jobs"]
    assert len(submitted) == 2 * len(clients)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_service_finds_its_database_again(tmp_path: Path, database_url: str) -> None:
    """Connections are thrown out, between questions and in the middle of a write; the service answers on without a restart."""
    lab = make_lab(tmp_path, database_url)
    outside = Database(database_url)

    def throw_out() -> None:
        here = "pid <> pg_backend_pid() AND datname = current_database()"
        others = f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {here}"
        with outside.writing() as session:
            assert session.scalar(text(others))

    with TestClient(create_app(lab.home)) as client:
        new = {"feature": FEATURE, "text": "before"}
        assert client.post("/v1/labels", json=new).status_code == 201
        throw_out()
        assert client.get("/v1/labels").json()["data"][0]["text"] == "before"
        with pytest.raises(WorkFailed, match="run the same command again"), lab.home.database.writing() as session:
            session.execute(text("UPDATE labels SET text = 'half'"))
            throw_out()
            session.execute(text("SELECT 1"))
        assert [each["text"] for each in client.get("/v1/labels").json()["data"]] == ["before"]
        assert client.post("/v1/labels", json={**new, "text": "after"}).status_code == 201
    outside.close()
    lab.home.close()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_writer_that_is_suspended_does_not_stop_the_others(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the lock that writers wait for, and is not heard of any more: the server throws it out."""
    monkeypatch.setattr("schema.database.ALONE_SECONDS", 1)
    lab = make_lab(tmp_path, database_url)
    with pytest.raises(WorkFailed, match="idle"), lab.home.database.writing(alone=True) as session:
        session.execute(text("SELECT 1"))
        other = threading.Thread(target=lambda: create(lab, NewLabel(feature=FEATURE, text="others go on"), "ann"))
        other.start()
        other.join(30)
        assert not other.is_alive()
        session.execute(text("SELECT 1"))
    assert [label.text for label in list_labels(lab, Filter()).data] == ["others go on"]
    lab.home.close()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_clock_that_jumps_loses_nothing(database: Database, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each step of two workers it may jump by an hour, so that living leases look lapsed; each shard is still done once."""
    rng, ahead = random.Random(4), [0.0]
    monkeypatch.setattr(ledger.time, "time", lambda real=time.time: real() + ahead[0])
    workers = [Ledger(database, f"host-{name}:1:1") for name in "ab"]
    held: list[Shard | None] = [None, None]
    lost = committed = 0
    for _ in range(400):
        ahead[0] += rng.choice((0, 0, 3600, -3600))
        k = rng.randrange(2)
        mine = held[k]
        if mine is None:
            held[k] = workers[k].lease(run.id)
            continue
        held[k] = None
        stats = {"tokens": 7, "postings": {str(pair.id): 5 for pair in run.pairs}} if mine.kind == "encode" else {}
        try:
            workers[k].stage(mine, {"forward": ["{}"]}, stats)
        except LeaseLost:
            lost += 1
            continue
        workers[k].commit(workers[k].staged())
        committed += 1
    with database.reading() as session:
        assert session.get_one(Run, run.id).finished == 1
        assert session.get_one(Run, run.id).counts["tokens"] == 21
        assert session.scalar(select(func.count()).where(Shard.state != "committed")) == 0
        assert committed == session.scalar(select(func.count()).select_from(Shard))
    assert lost > 0
