"""Connections whose request does not come: closed, while others are answered."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn

from scopebase.cli import listener


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    monkeypatch.setattr(listener, "HEAD_SECONDS", 0.3)
    config = uvicorn.Config(app, port=0, log_level="error", lifespan="off", http=listener.Listener)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()
    server.should_exit = True
    thread.join(5)


def rest_of(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    connection.settimeout(5)
    return b"".join(iter(lambda: connection.recv(4096), b""))


@pytest.mark.parametrize("head", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: x\r\n"])
def test_a_head_that_is_never_whole_is_408(address: tuple[str, int], head: bytes) -> None:
    with socket.create_connection(address) as slow:
        slow.sendall(head)
        assert httpx.get(f"http://127.0.0.1:{address[1]}/").text == "ok"
        assert rest_of(slow).startswith(b"HTTP/1.1 408 ")


def test_a_byte_now_and_then_gains_no_time_and_a_second_request_has_the_same(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        said = b""
        while not said.endswith(b"ok"):
            said += connection.recv(4096)
        begin = time.monotonic()
        for byte in b"GET":
            connection.sendall(bytes([byte]))
            time.sleep(0.05)
        assert rest_of(connection).startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - begin < 4


def test_who_keeps_a_connection_and_asks_again_in_time_is_answered(address: tuple[str, int]) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{address[1]}") as client:
        for _ in range(3):
            assert client.get("/").text == "ok"
            time.sleep(0.2)
