"""`--engine ray` as a team has it: several nodes, PostgreSQL, the store in a bucket. Long; `make torture` runs it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from schema.home import open_home
from schema.settings import Settings
from schema.verify import verify
from tests.indexer.ray_chaos import Named, await_committed, finish, leases, make_case, named_contents, progress, start
from tests.lengths import LONG
from tests.objects import Bucket, Fault

pytest.importorskip("ray", reason="Ray is not installed: pip install 'scopebase[ray]'")

from tests.indexer.ray_nodes import nodes

pytestmark = [
    pytest.mark.skipif(not LONG, reason="make torture starts clusters; the suite has Ray on one node"),
    pytest.mark.parametrize("database_url", ["postgresql"], indirect=True),
]
SLOW = Fault("slow", seconds=0.8, methods=("PUT",))
"""Makes shards long enough for nodes to go and come meanwhile."""
PATIENCE = 120.0


@dataclass(frozen=True)
class Case:
    options: list[str]
    rows: Named
    """Of the local engine on SQLite and a directory."""


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("case")
    options = make_case(folder)
    alone = Settings.read(folder / "alone", {})
    finish(start(alone, options))
    return Case(options, named_contents(alone))


@pytest.fixture
def shared(tmp_path: Path, bucket: Bucket, database_url: str) -> Iterator[Settings]:
    """A home in PostgreSQL and a bucket, in a slow network."""
    bucket.fail(SLOW)
    places = {"SCOPEBASE_DATABASE_URL": database_url, "SCOPEBASE_STORE_URL": bucket.url(tmp_path.name)}
    yield Settings.read(tmp_path / "home", places)
    bucket.remove(tmp_path.name)


def as_if_nothing_had_been(case: Case, settings: Settings, bucket: Bucket) -> None:
    bucket.fail()
    found = named_contents(settings)
    assert [table for table in case.rows if found[table] != case.rows[table]] == []
    home = open_home(settings)
    assert [*verify(home, deep=True).findings] == []
    home.close()


def until(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Waits for it while the command runs."""
    end = time.monotonic() + PATIENCE
    while not what():
        assert process.poll() is None, f"it ended before: {finish(process, well=False)[-3000:]}"
        assert time.monotonic() < end
        time.sleep(0.02)


def works_on(raylet: int, settings: Settings) -> bool:
    """Whether a worker of this node holds a shard."""
    there = {child.pid for child in psutil.Process(raylet).children()}
    return not there.isdisjoint(progress(settings)[1])


def test_a_node_dies_and_another_comes_in_the_midst(case: Case, shared: Settings, bucket: Bucket) -> None:
    with nodes(2) as cluster:
        process = start(shared, case.options, "--engine", "ray", "--address", cluster.address)
        holders = await_committed(shared, 2, process)
        until(lambda: len(progress(shared)[1]) == 2, process)  # both nodes are at it
        cluster.kill_node_of(holders[0])
        new = cluster.add()
        until(lambda: works_on(new, shared), process)
        bucket.fail()
        said = finish(process)
    assert f"(pid {holders[0]}) is lost" in said
    shards, leased = leases(shared)
    assert leased - shards <= 1
    as_if_nothing_had_been(case, shared, bucket)


def test_the_head_dies_and_the_same_command_goes_on_with_another_cluster(
    case: Case, shared: Settings, bucket: Bucket
) -> None:
    bucket.fail(replace(SLOW, seconds=0.4))
    with nodes(2) as cluster:
        process = start(shared, case.options, "--engine", "ray", "--address", cluster.address)
        await_committed(shared, 3, process)
        cluster.kill_head()
        begin = time.monotonic()
        said = finish(process, well=False)
    bucket.fail()
    assert process.returncode == 1
    assert (
        time.monotonic() - begin < 50
    )  # Ray itself would have waited a minute, and ended the process without a word of ours
    assert "the head of the Ray cluster at" in said
    assert "run the same command again" in said.strip().splitlines()[-1]
    done, _ = progress(shared)
    assert done >= 3
    with nodes(2) as cluster:
        finish(start(shared, case.options, "--engine", "ray", "--address", cluster.address))
    shards, leased = leases(shared)
    assert leased - shards <= 2
    as_if_nothing_had_been(case, shared, bucket)


@contextmanager
def door(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, psutil.Process]]:
    """A cluster of one machine, as `ray start` makes it, with a door for those outside: its address, and what runs all of it."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with socket.socket() as first, socket.socket() as second:
        first.bind(("", 0))
        second.bind(("", 0))
        port, outside = first.getsockname()[1], second.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="ray-")  # its sockets need a short path
    words = ["--num-cpus", "2", "--include-dashboard", "false", "--object-store-memory", str(100 << 20)]
    words += ["--port", str(port), "--ray-client-server-port", str(outside), "--temp-dir", folder]
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as head:
        try:
            end = time.monotonic() + PATIENCE
            while socket.socket().connect_ex(("127.0.0.1", outside)):
                assert time.monotonic() < end
                time.sleep(0.2)
            yield f"ray://127.0.0.1:{outside}", psutil.Process(head.pid)
        finally:
            for each in [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]:
                each.kill()
            shutil.rmtree(folder, ignore_errors=True)


def test_from_outside_a_worker_dies_then_the_line(
    case: Case, shared: Settings, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("grpc", reason="Ray's client is not installed: pip install 'ray[client]'")
    bucket.fail(replace(SLOW, seconds=0.4))
    with door(monkeypatch) as (address, head):
        process = start(shared, case.options, "--engine", "ray", "--address", address)
        (holder, *_) = await_committed(shared, 2, process)
        os.kill(holder, signal.SIGKILL)
        until(lambda: bool({*progress(shared)[1]} - {holder}), process)  # another is at it
        for each in head.children(recursive=True):
            with suppress(psutil.Error):
                if "specific-server" in " ".join(each.cmdline()):
                    each.kill()
        said = finish(process, well=False)
        bucket.fail()
        assert f"(pid {holder}) is lost" in said
        assert f"the connection to {address} broke; run the same command again" in said.strip().splitlines()[-1]
        finish(start(shared, case.options, "--engine", "ray", "--address", address))
    shards, leased = leases(shared)
    assert leased - shards <= 2
    as_if_nothing_had_been(case, shared, bucket)
