"""`scopebase serve` that is told to end: texts at work have their time, streams their last event, and then it is gone."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence
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
