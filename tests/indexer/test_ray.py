"""`--engine ray`: the same rows as the local engine's while workers are killed; who is replaced, and what users are told."""

from __future__ import annotations

import importlib
import itertools
import os
import pickle
import signal
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from indexer.config import Cluster, IndexConfig
from indexer.lifeline import Line
from indexer.machines import Machine, pin, share
from indexer.run import index as index_locally
from schema.errors import InputError, NoCluster, WorkFailed
from schema.home import find_home, make_home
from schema.settings import Settings
from schema.store import Store
from tests.indexer.ray_chaos import leases, named_contents

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'scopebase[ray]'")

from indexer import on_ray, spread  # noqa: E402
from indexer.on_ray import Crew  # noqa: E402
from indexer.progress import Bar, Silent  # noqa: E402
from indexer.remote import Group, Hello, Job, Order, RemoteWorker  # noqa: E402
from indexer.seats import Ask, Seat, note  # noqa: E402
from schema.ledger import Tally  # noqa: E402
from tests.indexer.test_run import config  # noqa: E402
from tests.lengths import LONG  # noqa: E402


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray on this machine, shared by this module's tests."""
    on_ray.connect(Cluster(workers=2), Silent())
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def plan(index_args: dict[str, Any], data_dir: Path) -> IndexConfig:
    """Two datasets in about ten shards, two layers, small batches."""
    return config(index_args, data_dir, names=("tales", "songs"), layers="0,2", batch_tokens=48)


class Murder(threading.Thread):
    """Kills one process that holds a shard to encode, once another is committed."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(daemon=True)
        self.settings = settings
        self.killed = 0

    def run(self) -> None:
        ours = "FROM shards WHERE kind = 'encode' AND state"
        while not self.killed:
            time.sleep(0.002)
            with closing(sqlite3.connect(self.settings.database_file or "", timeout=10)) as sql:
                if sql.execute(f"SELECT count(*) {ours} = 'committed'").fetchone()[0]:
                    for (owner,) in sql.execute(f"SELECT owner {ours} = 'leased'").fetchall()[:1]:
                        self.killed = int(owner.rsplit(":", 2)[1])
                        os.kill(self.killed, signal.SIGKILL)


class Told(Silent):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.usefixtures("cluster")
def test_rows_are_the_local_engines_though_a_worker_is_killed_and_one_shard_is_done_again(
    tmp_path: Path, plan: IndexConfig
) -> None:
    alone, shared = Settings.read(tmp_path / "alone", {}), Settings.read(tmp_path / "shared", {})
    wanted = index_locally(plan, alone)
    make_home(shared).close()
    murder, told = Murder(shared), Told()
    murder.start()
    found = spread.index(plan, shared, Cluster(workers=2), told)
    assert murder.killed
    assert found == wanted
    assert named_contents(shared) == named_contents(alone)
    shards, leased = leases(shared)
    assert leased - shards == 1
    assert [line for line in told.lines if f"(pid {murder.killed}) is lost" in line]


class Here:
    """A crew whose workers are in this process and take turns."""

    def __init__(self, cluster: Cluster, *_args: Any) -> None:
        self.seats = [Seat(number, None, None) for number in range(cluster.workers or 1)]
        self.held: list[tuple[int, int]] = []

    @contextmanager
    def at_work(self, order: Callable[[int], Order]) -> Iterator[None]:
        carried = pickle.dumps(order(1))
        for seat in self.seats:
            seat.handle = RemoteWorker(pickle.loads(carried))
            seat.hello = seat.handle.hello()
        yield

    def work(self, ask: Callable[[Seat], Ask], over: Callable[[], bool], _bar: Bar) -> None:
        for seat in itertools.cycle(self.seats):
            if over():
                return
            method, asked = ask(seat)
            getattr(seat.handle, method)(*asked)
            self.held.append((seat.number, seat.group))


@pytest.mark.skipif(not LONG, reason="make torture does it; a Ray of its own takes seconds to start")
def test_layers_in_groups_become_runs_with_the_same_rows(
    tmp_path: Path, plan: IndexConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Here] = []
    monkeypatch.setattr(spread, "Crew", lambda *args: made.append(Here(*args)) or made[-1])
    whole, split = Settings.read(tmp_path / "whole", {}), Settings.read(tmp_path / "split", {})
    plan = replace(plan, logits="yes")
    (reported,) = {(r.dataset, tuple(r.logits)) for r in index_locally(plan, whole) if r.dataset == "songs"}
    reports = spread.index(plan, split, Cluster(workers=2, layers_per_worker=1))
    assert [(r.run, r.dataset, r.saes, r.already) for r in reports] == [
        (1, "tales", ["tiny-qwen3/0-tiny"], False),
        (2, "tales", ["tiny-qwen3/2-tiny"], False),
        (3, "songs", ["tiny-qwen3/0-tiny"], False),
        (4, "songs", ["tiny-qwen3/2-tiny"], False),
    ]
    assert [name for r in reports[2:] for name in r.logits] == [*reported[1]]
    assert named_contents(split) == named_contents(whole)
    assert logits_of(split) == logits_of(whole)
    first = {number: group for number, group in reversed(made[0].held)}
    assert sorted(first.values()) == [0, 1]

    monkeypatch.setattr(spread, "Crew", None)  # nothing is started where nothing is left to do
    again = spread.index(plan, split, Cluster(layers_per_worker=1))
    assert [report.already for report in again] == [True] * 4


def logits_of(settings: Settings) -> list[dict[str, Any]]:
    rows = Store(settings.store_url).latest("logits").to_table(filter="key >= 0").to_pylist()
    return sorted(rows, key=lambda row: row["key"])


def test_another_model_or_store_on_a_workers_machine_is_refused(
    tmp_path: Path, plan: IndexConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spread, "Crew", Here)
    carry = Order.of
    differing: list[tuple[dict[str, Any], str]] = [
        ({"identity": "another"}, "does not see the activation store .*SCOPEBASE_STORE_URL"),
        ({"revision": "f" * 64}, "has revision .* on .*, ffffffffffff where the command runs"),
    ]
    for changed, words in differing:
        monkeypatch.setattr(Order, "of", partial(lambda changed, *args: replace(carry(*args), **changed), changed))
        with pytest.raises(WorkFailed, match=words):
            spread.index(plan, Settings.read(tmp_path / "home", {}), Cluster())


def crew(monkeypatch: pytest.MonkeyPatch, machines: list[Machine], **asked: Any) -> Crew:
    """A crew whose cluster and actors are made up."""
    monkeypatch.setattr(on_ray, "machines", lambda: machines)
    monkeypatch.setattr(on_ray.ray, "kill", lambda _handle: None)
    ledger = SimpleNamespace(free=lambda _owner: 1, held=lambda _owners: {})
    home = SimpleNamespace(ledger=ledger, settings=None)
    made = Crew(Cluster(**asked), home, asked.get("gpus_per_worker") or 0.0, Told())  # type: ignore[arg-type]
    handle = SimpleNamespace(hello=SimpleNamespace(remote=lambda _order: object()))
    made.actor = SimpleNamespace(options=lambda **_options: SimpleNamespace(remote=lambda: handle))
    made.order, made.lifeline = b"", Line()
    return made


def machine(host: str, **resources: float) -> Machine:
    return Machine(host, f"address-of-{host}", resources)


def test_workers_follow_the_machines_that_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    machines = [machine("a", CPU=16, GPU=2), machine("head", CPU=4)]
    made = crew(monkeypatch, machines, gpus_per_worker=1.0, address="auto")
    made.needs = {"CPU": 4, "GPU": 1.0}
    made.fill()
    assert len(made.seats) == 2
    machines.append(machine("b", CPU=16, GPU=4))
    made.fill()
    assert len(made.seats) == 6
    for seat in made.seats[:2]:
        seat.hello = Hello("a:1:1", "a", 1, "0")
    machines.pop()
    made.fill()
    assert [seat.number for seat in made.seats] == [1, 2]
    machines.clear()
    made.seats.clear()
    made.fill()
    assert made.progress.lines == [  # type: ignore[attr-defined]
        "the cluster has room for 0 workers of 4 cores and 1 GPUs; others start when machines come"
    ]


def test_cores_are_shared_by_the_workers() -> None:
    machines = [machine("a", CPU=16), machine("b", CPU=8), machine("c", CPU=16, GPU=2)]
    for asked, cores in ({}, 8), ({"workers": 2}, 16), ({"workers": 4}, 10), ({"workers": 100}, 1):
        assert share(machines, Cluster(**asked), 0) == cores
    assert share(machines, Cluster(), 1) == 8
    assert share(machines, Cluster(cpus_per_worker=3), 1) == 3


def test_sqlite_stays_on_its_machine(tmp_path: Path) -> None:
    here = machine(socket.gethostname(), CPU=2)
    plain = Settings.read(tmp_path, {})
    assert pin([here], plain) == {f"node:{here.address}": 0.001}
    with pytest.raises(InputError, match="SQLite is for one machine, but the Ray cluster is of a, .*use PostgreSQL"):
        pin([machine("a", CPU=2), here], plain)
    shared = Settings.read(tmp_path, {"SCOPEBASE_DATABASE_URL": "postgresql://db.example.org/scopebase"})
    assert pin([machine("a", CPU=2), here], shared) == {}


def test_who_fails_again_and_again_ends_the_command_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    made = crew(monkeypatch, [machine("a", CPU=2)])
    seat = Seat(1, None, None, Hello("a:1:1", "a", 1, "0"))
    made.seats = [seat]
    with pytest.raises(InputError, match="no such model"):
        made._failed(seat, InputError("no such model"))  # before anything was done: nobody can do it
    for _ in range(on_ray.PATIENCE):
        made._failed(seat, MemoryError("CUDA out of memory\nmore"))
    assert seat.rests_until > time.monotonic() + 3  # the last of 1, 2 and 4 seconds
    with pytest.raises(WorkFailed, match=r"worker 1 on a \(pid 1\) failed: MemoryError: CUDA out of memory; nothing"):
        made._failed(seat, MemoryError("CUDA out of memory\nmore"))


def test_another_scopebase_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = crew(monkeypatch, [machine("a", CPU=2)])
    with pytest.raises(WorkFailed, match="a has Scopebase 99.0, this machine .*install the same"):
        made._greet(Seat(1, None, None), Hello("a:1:1", "a", 1, "99.0"))


def test_a_worker_takes_another_group_only_where_there_is_more_than_the_others_can_hold() -> None:
    groups = [Group([], [Job(1, None, None)]), Group([], [Job(2, None, None)])]  # type: ignore[arg-type]
    seats = [Seat(number, None, None) for number in range(3)]
    work = spread.Spread(None, None, groups, SimpleNamespace(seats=seats), Silent())  # type: ignore[arg-type]

    def tally(*waiting: int) -> None:
        work.tallies = {run: Tally(n, 0, False) for run, n in enumerate(waiting, 1)}

    tally(10, 8)
    for seat in seats:
        seat.group = work._group_for(seat)
    assert [seat.group for seat in seats] == [0, 1, 0]
    tally(0, 3)
    assert work._group_for(seats[0]) == 1
    tally(0, 1)
    assert work._group_for(seats[0]) == 0


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"address": "ray://head:10001"}, "SQLite is for one machine"),
        ({"gpus_per_worker": 1.0, "device": "cpu"}, "--device cpu with --gpus-per-worker"),
        ({"gpus_per_worker": 2.0}, "--gpus-per-worker 2.0"),
        ({"layers_per_worker": 0}, "--layers-per-worker 0"),
        ({"cpus_per_worker": 0}, "--cpus-per-worker 0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    tmp_path: Path, index_args: dict[str, Any], data_dir: Path, asked: dict[str, Any], words: str
) -> None:
    settings = Settings.read(tmp_path / "home", {})
    device = {"device": asked.pop("device")} if "device" in asked else {}
    with pytest.raises(InputError, match=words):
        spread.index(config(index_args, data_dir, **device), settings, Cluster(**asked))
    assert find_home(settings) is None


def test_no_cluster_and_no_ray_are_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(**_options: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nmore")

    monkeypatch.setattr(on_ray.ray, "init", away)
    with pytest.raises(InputError, match="no Ray cluster answers at --address auto: Could not find .*instance.; start"):
        on_ray.connect(Cluster("auto"), Silent())
    monkeypatch.setattr(on_ray.ray, "init", lambda **_options: pytest.fail("Ray would try for two minutes"))
    with socket.create_server(("127.0.0.1", 0)) as gone:
        place = f"127.0.0.1:{gone.getsockname()[1]}"
    for address in (place, f"ray://{place}"):
        with pytest.raises(
            NoCluster, match=f"no Ray cluster answers at --address {address}: nothing takes a connection"
        ):
            on_ray.connect(Cluster(address), Silent())
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "indexer.on_ray")
    with pytest.raises(InputError, match="pip install 'scopebase\\[ray\\]'"):
        importlib.import_module("indexer.on_ray")


def test_who_does_what_is_told() -> None:
    assert note([Seat(1, None, None)], {}) == "workers start"
    seats = [Seat(n, None, None, Hello(f"o{n}", f"host{n % 2}", n, "0")) for n in range(1, 7)]
    kinds = {"o1": "encode", "o2": "encode", "o3": "seal"}
    assert note(seats, kinds) == "6 workers on 2 machines: 2 encode, 1 seal"
    assert note(seats[:2] + seats[5:], kinds) == "1@host1 encode, 2@host0 encode, 6@host0 waits"
