"""What a Ray hangs on, and what becomes of a command whose Ray is gone. No Ray is started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from indexer import lifeline
from indexer.lifeline import Line, Ours, Theirs
from schema.errors import WorkFailed


def test_servers_elsewhere_may_be_silent_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    present = [0.0]
    monkeypatch.setattr(lifeline, "time", SimpleNamespace(monotonic=lambda: present[0]))
    head, node = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in (head, node)]
    theirs = Theirs({"the head": addresses[0], "this machine's part": addresses[1]})
    assert theirs.check()
    node.close()
    assert theirs.holds()  # not asked anew yet
    present[0] = 1
    assert not theirs.check()
    present[0] = 10
    assert not theirs.check()
    assert not theirs.holds()
    node = socket.create_server(("127.0.0.1", int(addresses[1].rpartition(":")[2])))
    present[0] = 11
    assert theirs.check()
    head.close()
    present[0] = 12
    assert not theirs.check()
    present[0] = 22.1
    with pytest.raises(WorkFailed, match=f"the head at {addresses[0]} does not answer any more; run the same command"):
        theirs.check()
    node.close()


def test_ours_die_together() -> None:
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)"]
    first, second = subprocess.Popen(sleeping), subprocess.Popen(sleeping)
    ours = Ours([psutil.Process(each.pid) for each in (first, second)])
    assert ours.check()
    first.kill()
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the table
    with pytest.raises(WorkFailed, match="Ray on this machine died; run the same command again"):
        ours.check()
    ours.cut()
    assert second.wait(10) < 0
    first.wait()


def test_a_broken_line_is_told_in_a_sentence_and_asked_for_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'scopebase[ray]'")
    from tests.indexer.test_ray import crew, machine

    class RpcError(Exception):
        __module__ = "grpc._channel"

    errors: list[Exception] = [ConnectionError("the client has been disconnected"), RpcError("NOT_FOUND")]
    for error in errors:
        made = crew(monkeypatch, [machine("a", CPU=2)], address="ray://a:10001")
        asked: list[Any] = []
        monkeypatch.setattr("indexer.on_ray.connect", lambda *_: Line("ray://a:10001"))
        monkeypatch.setattr("indexer.on_ray.make_actor", lambda made=made: made.actor)
        monkeypatch.setattr("indexer.on_ray.pin", lambda *_: {})
        monkeypatch.setattr("indexer.on_ray.ray.kill", asked.append)
        with (
            pytest.raises(WorkFailed, match="the connection to ray://a:10001 broke; run the same command again"),
            made.at_work(lambda _cores: None),  # type: ignore[arg-type, return-value]
        ):
            assert made.seats
            raise error
        assert not made.seats
        assert not asked
    with pytest.raises(ZeroDivisionError), made.at_work(lambda _cores: None):  # type: ignore[arg-type, return-value]
        raise ZeroDivisionError


def test_ray_is_not_asked_while_its_head_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'scopebase[ray]'")
    from tests.indexer.test_ray import crew, machine

    made = crew(monkeypatch, [machine("a", CPU=2)])
    made.needs = {"CPU": 2, "GPU": 0.0}
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    made.lifeline = Theirs({"the head": f"127.0.0.1:{port}"})
    monkeypatch.setattr("indexer.on_ray.machines", lambda: pytest.fail("it was asked"))
    made.fill()
    assert not made.seats
