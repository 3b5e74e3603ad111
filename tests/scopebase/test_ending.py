"""`scopebase serve` that is told to end: texts at work have their time, streams their last event, and then it is gone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from api.app import create_app
from schema.errors import WorkFailed
from schema.generation import Choice, Failed, Piece
from schema.home import open_home
from schema.settings import Settings
from scopebase.cli.listener import Listener
from scopebase.cli.serve import GRACE, run_server
from tests.api.generation.scripted import Scripted
from tests.lengths import LONG
from tests.making import make_model
from tests.team import free_port


class Ending(Scripted):
    """Writes until it is closed, as the engine does with a text that takes longer than it may."""

    def __init__(self) -> None:
        super().__init__(self._write)
        self.told: list[float] = []
        self.closing = threading.Event()

    def _write(self, choices: Sequence[Choice], deliver: Any) -> None:
        deliver(Piece(0, "word", (1,)))
        self.closing.wait(10)
        deliver(Failed(WorkFailed("the service was shut down before this text was complete; try again")))

    def close(self, seconds: float = 5.0) -> None:
        self.told.append(seconds)
        self.closing.set()


def test_told_to_end_it_ends_streams_with_an_error_and_goes(indexed: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    servers: list[uvicorn.Server] = []
    startup = uvicorn.Server.startup

    async def noted(self: uvicorn.Server, *args: Any, **kwargs: Any) -> None:
        await startup(self, *args, **kwargs)
        servers.append(self)

    monkeypatch.setattr(uvicorn.Server, "startup", noted)
    generator = Ending()
    app = create_app(open_home(indexed), generator=generator)
    config = uvicorn.Config(app, port=0, log_level="error", http=Listener, timeout_graceful_shutdown=5)
    serving = threading.Thread(target=run_server, args=(config, generator), daemon=True)
    serving.start()
    while not servers:
        time.sleep(0.01)
    port = servers[0].servers[0].sockets[0].getsockname()[1]
    body = {"prompt": "a", "stream": True}
    with httpx.stream("POST", f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=10) as answer:
        lines = answer.iter_lines()
        assert "word" in next(lines)
        servers[0].handle_exit(signal.SIGTERM, None)
        said = "\n".join(lines)
    assert "the service was shut down before this text was complete" in said
    assert "[DONE]" not in said
    serving.join(8)
    assert not serving.is_alive()
    assert generator.told == [GRACE, 0]


def test_told_to_end_it_exits_as_one_that_is_done(indexed: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """uvicorn alone sends the process the signal once more in the end, and it dies of it."""
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: heard.append(number))
    startup = uvicorn.Server.startup

    async def told(self: uvicorn.Server, *args: Any, **kwargs: Any) -> None:
        await startup(self, *args, **kwargs)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(uvicorn.Server, "startup", told)
    try:
        run_server(uvicorn.Config(create_app(open_home(indexed)), port=0, log_level="error"), None)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == []


class Streamed:
    """One stream, read to its end in a thread of its own."""

    def __init__(self, url: str, **asked: Any) -> None:
        self.begun = threading.Event()
        self.events: list[dict[str, Any]] = []
        self.whole = False
        """It ended with `[DONE]`."""
        self._url, self._asked = url, {"prompt": "the cat", "stream": True, "logit_bias": {"1": -100}, **asked}

    def read(self) -> None:
        with httpx.stream("POST", f"{self._url}/v1/completions", json=self._asked, timeout=60) as answer:
            for line in answer.iter_lines():
                self.whole = line == "data: [DONE]" or self.whole
                if line.startswith("data: {"):
                    self.events.append(json.loads(line.removeprefix("data: ")))
                    if len(self.events) > 2:
                        self.begun.set()


@pytest.mark.skipif(
    not LONG, reason="loads a model and waits until the time of its texts is over; make torture runs it"
)
def test_a_process_that_is_told_to_end_lets_short_texts_end_and_says_so_of_long_ones(
    tmp_path: Path, release_dir: Path, data_dir: Path
) -> None:
    from indexer.config import IndexConfig
    from indexer.run import index

    model = make_model(tmp_path / "tiny-long", max_position_embeddings=1 << 16)
    songs = (("songs", str(data_dir / "songs.jsonl")),)
    home = Settings.read(tmp_path / "home", {})
    index(IndexConfig(str(model), str(release_dir), songs, layers="2", set_name="tiny", limit=5, logits="no"), home)
    port, log = free_port(), tmp_path / "log"
    command = [sys.executable, "-m", "scopebase", "--home", str(home.home), "serve", "--port", str(port)]
    with log.open("w") as said, ThreadPoolExecutor(2) as pool:
        service = subprocess.Popen([*command, "--model", str(model)], stdout=said, stderr=said)
        try:
            until = time.monotonic() + 60
            while time.monotonic() < until and service.poll() is None:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.05)
            op = {"feature": "tiny-long/2-tiny/7", "strength": 0.5, "unit": "residual_norm"}
            steered = {"steering": {"ops": [op]}}
            streams = [Streamed(f"http://127.0.0.1:{port}", max_tokens=n, **steered) for n in (200, 60_000)]
            reading = [pool.submit(each.read) for each in streams]
            assert all(each.begun.wait(30) for each in streams), log.read_text()
            told = time.monotonic()
            service.send_signal(signal.SIGTERM)
            for each in reading:
                each.result(GRACE + 20)
            assert service.wait(10) == 0, log.read_text()
            assert GRACE <= time.monotonic() - told < GRACE + 10
        finally:
            service.kill()
            service.wait()
    short, long = streams
    assert short.whole
    assert [event["choices"][0]["finish_reason"] for event in short.events if event["choices"]][-1] == "length"
    assert not long.whole
    assert "the service was shut down before this text was complete" in long.events[-1]["error"]["message"]
    assert len(long.events) > len(short.events)
    assert "Traceback" not in log.read_text()
