"""What people write while their service dies: no label that was acknowledged is lost, and none is there twice."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import threading
import time
from functools import partial
from pathlib import Path

from api.services.labels.importing import import_labels
from api.services.library import Library
from schema.home import open_home
from schema.settings import Settings
from tests.torture.case import SAE, missing_labels
from tests.torture.children import Child, done
from tests.torture.world import World, in_words, told

WRITERS = 4
IMPORTED = 400


def serve(settings: Settings, port: int) -> None:
    """The service in this process, as `scopebase serve` runs one."""
    import uvicorn

    from api.app import create_app

    uvicorn.run(create_app(open_home(settings)), host="127.0.0.1", port=port, log_level="critical")


def api_killed(world: World) -> str:
    """kill -9 of the API in the midst of label writes; another takes its place, and every 201 holds."""
    settings = world.begun()
    port = _free_port()
    server = Child(partial(serve, settings, port))
    _await(port)
    said, stop = _Said(), threading.Event()
    writers = [threading.Thread(target=_write, args=(port, number, said, stop)) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    _wait_for(said, world.rng.randrange(40))
    time.sleep(world.rng.uniform(0, 0.02))
    server.kill(world.rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)))
    stop.set()
    for writer in writers:
        writer.join()
    server.wait()
    again = Child(partial(serve, settings, port))
    _await(port)
    _ask(port, "POST", "/v1/labels", {"feature": f"{SAE}/1", "text": "afterwards"})
    again.kill(signal.SIGTERM)
    again.wait()
    labels = (*world.case.labels, *said.acknowledged, "afterwards")
    _all_there(settings, labels, said.asked)
    world.survived(settings, labels)
    return f"API killed, {len(said.acknowledged)} labels acknowledged"


class _Said:
    """What was asked and what was acknowledged, by all writers."""

    def __init__(self) -> None:
        self.asked, self.acknowledged = set[str](), list[str]()


def _wait_for(said: _Said, n: int) -> None:
    until = time.monotonic() + 20
    while len(said.acknowledged) < n and time.monotonic() < until:
        time.sleep(0.002)


def _write(port: int, number: int, said: _Said, stop: threading.Event) -> None:
    for n in range(10_000):
        text = f"writer {number} says {n}"
        said.asked.add(text)
        if stop.is_set():
            return
        try:
            status = _ask(port, "POST", "/v1/labels", {"feature": f"{SAE}/{n % 64}", "text": text})
        except (OSError, http.client.HTTPException):
            return
        assert status == 201, status
        said.acknowledged.append(text)


def _ask(port: int, method: str, path: str, body: object) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer.status


def _await(port: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise AssertionError("the service does not start")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _all_there(settings: Settings, labels: tuple[str, ...], asked: set[str]) -> None:
    """Each acknowledged label once; of those that were not acknowledged, each once at most."""

    def look() -> str:
        home = open_home(settings)
        try:
            wrong = missing_labels(home, labels)
            wrong += [each for each in missing_labels(home, sorted(asked)) if not each.endswith(" 0 times")]
        finally:
            home.close()
        return "; ".join(wrong)

    said = done(look)
    assert not said, said


def import_killed(world: World) -> str:
    """kill -9 in the midst of the import of a pack; the same import again, and every label is there once."""
    settings, pack = world.begun(), world.folder / "labels.jsonl"
    rows = ({"feature": f"{SAE}/{n % 64}", "text": f"imported {n}", "id": f"pack-{n}"} for n in range(IMPORTED))
    pack.write_text("".join(json.dumps(row) + "\n" for row in rows))
    child = Child(partial(_imported, settings, pack))
    seconds = world.rng.uniform(0, 0.6)
    time.sleep(seconds)
    child.kill()
    ended = child.wait()
    in_words(ended)
    done(partial(_imported, settings, pack))
    labels = (*world.case.labels, *(f"imported {n}" for n in range(IMPORTED)))
    world.survived(settings, labels)
    return told(f"import killed after {seconds:.2f} s", ended.killed)


def _imported(settings: Settings, pack: Path) -> None:
    from api.services.labels import importing

    importing.BATCH = 50  # several transactions at this size too
    home = open_home(settings)
    import_labels(Library(home), pack, "ann", SAE)
    home.close()
