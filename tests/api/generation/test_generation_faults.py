"""What goes wrong while a text is generated: who leaves, who reads slowly, an engine that fails early, or late, or did not steer."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from fastapi.testclient import TestClient

from api import streams
from api.app import create_app
from api.gate.access import Access
from api.services.generation import arriving
from schema.errors import TooMany, WorkFailed
from schema.generation import Choice, Ended, Event, Failed, Piece
from schema.home import open_home
from schema.settings import Settings
from tests.api.generation.listening import listening
from tests.api.generation.scripted import Scripted, applied, say

Deliver = Callable[[Event], None]
STEERING = {"ops": [{"feature": "tiny-qwen3/2-tiny/7", "strength": 2.0}]}
CHAT = {"messages": [{"role": "user", "content": "hello"}]}


def wait_for(what: Callable[[], Any], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


class Chunk:
    def model_dump_json(self, **_how: Any) -> str:
        return "{}"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def hold(release: threading.Event) -> Callable[[Sequence[Choice], Deliver], None]:
    """Says one word, and the rest once it may."""

    def script(choices: Sequence[Choice], deliver: Deliver) -> None:
        deliver(Piece(0, "first", (1,)))
        release.wait(10)
        deliver(Ended(0, "length", 2, applied(choices[0], 2)))

    return script


def silent(choices: Sequence[Choice], deliver: Deliver) -> None:
    """Never says a word."""


@contextmanager
def serving(indexed: Settings, generator: Scripted, access: Access | None = None) -> Iterator[str]:
    home = open_home(indexed)
    with listening(create_app(home, generator=generator, access=access or Access())) as url:
        yield url


def ask(client: TestClient, **body: Any) -> httpx.Response:
    return client.post("/v1/completions", json={"prompt": "a cat", "max_tokens": 3, **body})  # type: ignore[return-value]


def asked(url: str, path: str, body: dict[str, Any]) -> socket.socket:
    """A request on its way, and nobody who reads its answer."""
    host, port = url.removeprefix("http://").split(":")
    text = json.dumps(body)
    head = f"POST /v1/{path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n"
    connection = socket.create_connection((host, int(port)))
    connection.sendall((head + text).encode())
    return connection


@pytest.fixture
def generator() -> Scripted:
    return Scripted()


@pytest.fixture
def client(indexed: Settings, generator: Scripted) -> Iterator[TestClient]:
    with TestClient(create_app(open_home(indexed), generator=generator), raise_server_exceptions=False) as made:
        yield made


# Leaving


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["completions", "chat/completions"])
@pytest.mark.parametrize("begun", [True, False])
def test_who_leaves_is_cancelled(indexed: Settings, stream: bool, path: str, begun: bool) -> None:
    """In the queue, and while the text is written."""
    generator = Scripted(hold(threading.Event()) if begun else silent)
    with serving(indexed, generator) as url:
        body = {"stream": stream, "max_tokens": 5, **(CHAT if "chat" in path else {"prompt": "a"})}
        with asked(url, path, body) as connection:
            if stream and begun:
                assert b"200 OK" in connection.recv(1 << 16)
            wait_for(lambda: generator.tickets)
            time.sleep(0.1)
            assert not generator.tickets[0].cancelled.is_set()
        assert generator.tickets[0].cancelled.wait(3)


def test_who_leaves_while_the_engine_takes_the_request_is_cancelled_too(indexed: Settings) -> None:
    generator = Scripted(silent)
    taken, go_on = threading.Event(), threading.Event()
    submit = generator.submit

    def slowly(choices: Sequence[Choice], deliver: Deliver) -> Any:
        taken.set()
        go_on.wait(5)
        return submit(choices, deliver)

    generator.submit = slowly  # type: ignore[method-assign]
    with serving(indexed, generator) as url:
        with asked(url, "completions", {"prompt": "a"}):
            assert taken.wait(10)
        time.sleep(0.2)
        go_on.set()
        wait_for(lambda: generator.tickets and generator.tickets[0].cancelled.is_set())


def test_an_answer_that_is_done_is_closed(client: TestClient, generator: Scripted) -> None:
    """Closing a request that has ended harms nothing; nothing is left open."""
    for stream in (True, False):
        assert ask(client, stream=stream).status_code == 200
    assert all(ticket.cancelled.is_set() for ticket in generator.tickets)


# Slow readers


def flood(choices: Sequence[Choice], deliver: Deliver) -> None:
    for _ in range(20_000):
        deliver(Piece(0, "word " * 50, (1,)))
        time.sleep(0)


def test_a_slow_reader_is_given_up_and_stalls_nobody(indexed: Settings) -> None:
    generator = Scripted(flood)
    with serving(indexed, generator) as url, asked(url, "completions", {"prompt": "a", "stream": True}):
        wait_for(lambda: generator.tickets)
        generator.script = say
        assert httpx.post(f"{url}/v1/completions", json={"prompt": "b"}).status_code == 200
        assert generator.tickets[0].cancelled.wait(10)


@pytest.mark.anyio
async def test_a_reader_that_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an end, so that it does not take a part for the whole."""
    monkeypatch.setattr(streams, "SLOW_SECONDS", 0.05)
    sent, closed = [], []

    async def chunks() -> AsyncIterator[list[Any]]:
        yield [Chunk()]
        yield [Chunk()]

    async def send(message: Any) -> None:
        sent.append(message)
        if message.get("body"):
            await asyncio.sleep(60)

    async def receive() -> Any:
        await asyncio.sleep(60)

    await streams.EventStream(chunks(), lambda: closed.append(True))({"type": "http"}, receive, send)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[-1]["more_body"]
    assert closed == [True]


def test_what_waits_for_a_reader_is_bounded(indexed: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arriving, "MOST_UNREAD", 50)
    monkeypatch.setattr(arriving.Arriving.__init__, "__defaults__", (50,))

    def burst(choices: Sequence[Choice], deliver: Deliver) -> None:
        for _ in range(500):
            deliver(Piece(0, "x", (1,)))

    generator = Scripted(burst)
    with serving(indexed, generator) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        blocked = threading.Event()
        with pytest.raises(openai.APIError, match="read much more slowly than it was written"):
            for _ in client.completions.create(model="tiny-qwen3", prompt="a", stream=True):
                blocked.wait(0.01)
        assert generator.tickets[0].cancelled.is_set()


# Failures


def failing(error: Exception, words: int) -> Callable[[Sequence[Choice], Deliver], None]:
    def script(choices: Sequence[Choice], deliver: Deliver) -> None:
        for _ in range(words):
            deliver(Piece(0, "word", (1,)))
            time.sleep(0.05)
        deliver(Failed(error))

    return script


OUT_OF_MEMORY = WorkFailed("cpu ran out of memory on this request; try fewer tokens")


@pytest.mark.parametrize("stream", [True, False])
def test_a_failure_before_the_first_token_has_a_status(client: TestClient, generator: Scripted, stream: bool) -> None:
    generator.script = failing(OUT_OF_MEMORY, 0)
    response = ask(client, stream=stream)
    assert response.status_code == 503
    assert response.headers["content-type"] == "application/problem+json"
    assert "ran out of memory" in response.json()["detail"]
    generator.script = say
    assert ask(client, stream=stream).status_code == 200


def test_a_late_failure_is_told_in_the_stream_and_never_ends_it_cleanly(
    client: TestClient, generator: Scripted
) -> None:
    generator.script = failing(OUT_OF_MEMORY, 2)
    response = ask(client, stream=True)
    assert response.status_code == 200
    *_, last = response.text.strip().split("\n\n")
    told = json.loads(last.removeprefix("data: "))
    assert told["error"]["type"] == "server_error"
    assert "ran out of memory" in told["error"]["message"] == told["detail"]
    assert "[DONE]" not in response.text
    assert ask(client).status_code == 503


def test_a_fault_of_ours_in_a_stream_keeps_its_words_to_itself(
    client: TestClient, generator: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    generator.script = failing(KeyError("secret"), 1)
    response = ask(client, stream=True)
    assert "a fault of Scopebase (KeyError)" in response.text
    assert "secret" not in response.text
    assert "a stream broke off" in caplog.text


def test_official_clients_raise_what_a_stream_tells(indexed: Settings) -> None:
    with serving(indexed, Scripted(failing(OUT_OF_MEMORY, 2))) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.APIError, match="ran out of memory"):
            for _ in client.chat.completions.create(model="tiny-qwen3", stream=True, **CHAT):  # type: ignore[call-overload]
                pass


def test_a_full_queue_is_429_with_when_to_come_back(client: TestClient, generator: Scripted) -> None:
    generator.refusal = TooMany("64 requests wait for the model; try again later", 7)
    for stream in (True, False):
        response = ask(client, stream=stream)
        assert (response.status_code, response.headers["retry-after"]) == (429, "7")
        assert response.json()["error"]["type"] == "rate_limit_error"
        assert "x-should-retry" not in response.headers


def test_an_engine_out_of_order_is_not_ready(client: TestClient, generator: Scripted) -> None:
    assert client.get("/v1/ready").json()["checks"]["model"] == "ok"
    generator.trouble = "the engine stopped; restart the service"
    response = ask(client)
    assert (response.status_code, response.json()["detail"]) == (503, "the engine stopped; restart the service")
    assert response.headers["x-should-retry"] == "false"
    ready = client.get("/v1/ready")
    assert (ready.status_code, ready.json()["checks"]["model"]) == (
        503,
        "failed: the engine stopped; restart the service",
    )


# Never unsteered


def unsteered(choices: Sequence[Choice], deliver: Deliver) -> None:
    deliver(Piece(0, "plain", (1,)))
    deliver(Ended(0, "length", 1, None))


def one_missing(choices: Sequence[Choice], deliver: Deliver) -> None:
    deliver(Piece(0, "plain", (1,)))
    done = applied(replace(choices[0], ops=choices[0].ops[:1]), 1)
    deliver(Ended(0, "length", 1, done))


def too_few(choices: Sequence[Choice], deliver: Deliver) -> None:
    done = applied(choices[0], 1)
    assert done is not None
    ops = [op.model_copy(update={"prompt_tokens": op.prompt_tokens - 1}) for op in done.ops]
    deliver(Piece(0, "plain", (1,)))
    deliver(Ended(0, "length", 1, done.model_copy(update={"ops": ops})))


@pytest.mark.parametrize(
    ("script", "words"),
    [(unsteered, "did not say that it steered"), (one_missing, "was not applied"), (too_few, "was not applied")],
)
def test_what_was_not_steered_is_not_handed_out(
    client: TestClient, generator: Scripted, script: Any, words: str
) -> None:
    generator.script = script
    ops = [
        {**STEERING["ops"][0], "where": {"skip_special": False}},
        {"feature": "tiny-qwen3/1-tiny/3", "strength": 1.0},
    ]
    response = ask(client, steering={"ops": ops})
    assert response.status_code == 503
    assert words in response.json()["detail"]
    assert "plain" not in response.text
    streamed = ask(client, steering={"ops": ops}, stream=True)
    assert words in streamed.text.split("data: ")[-1]
    assert "[DONE]" not in streamed.text


# Time and room


def test_the_time_limit_is_for_the_first_token(indexed: Settings) -> None:
    """A long answer may take its time; one that does not begin may not."""
    release = threading.Event()
    generator = Scripted(hold(release))
    with serving(indexed, generator, Access(seconds=1)) as url:
        threading.Timer(1.7, release.set).start()
        long = httpx.post(f"{url}/v1/completions", json={"prompt": "a", "max_tokens": 5}, timeout=10)
        assert (long.status_code, long.json()["choices"][0]["text"]) == (200, "first")
        generator.script = silent
        late = httpx.post(f"{url}/v1/completions", json={"prompt": "a"}, timeout=10)
        assert late.status_code == 503
        assert "longer than the 1 s that a request may" in late.json()["error"]["message"]
        assert generator.tickets[-1].cancelled.wait(5)


def test_texts_on_their_way_leave_room_for_look_ups_and_have_a_bound_of_their_own(indexed: Settings) -> None:
    release = threading.Event()
    generator = Scripted(hold(release))
    with serving(indexed, generator, Access(concurrent=1, generating=2)) as url, httpx.Client(base_url=url) as http:
        streamed = {"json": {"prompt": "a", "stream": True}}
        with (
            http.stream("POST", "/v1/completions", **streamed) as one,
            http.stream("POST", "/v1/completions", **streamed) as two,
        ):
            assert one.status_code == two.status_code == 200
            assert http.get("/v1/models").status_code == 200
            third = http.post("/v1/completions", **streamed)
            assert (third.status_code, third.headers["retry-after"]) == (429, "1")
            assert "2 texts are on their way to clients" in third.json()["detail"]
            release.set()
            assert one.read().endswith(b"[DONE]\n\n")
            assert two.read().endswith(b"[DONE]\n\n")
        until = time.monotonic() + 5  # a place is free when the service has seen the end, a moment after the client has
        while (fourth := http.post("/v1/completions", json={"prompt": "a"})).status_code == 429:
            assert time.monotonic() < until
            time.sleep(0.02)
        assert fourth.status_code == 200


def test_who_waits_for_the_engine_leaves_room_for_look_ups(indexed: Settings) -> None:
    release = threading.Event()

    def later(choices: Sequence[Choice], deliver: Deliver) -> None:
        release.wait(10)
        say(choices, deliver)

    generator = Scripted(later)
    with serving(indexed, generator, Access(concurrent=1)) as url, ThreadPoolExecutor(1) as asking:
        waiting = asking.submit(httpx.post, f"{url}/v1/completions", json={"prompt": "a"}, timeout=10)
        wait_for(lambda: generator.tickets)
        time.sleep(0.1)
        assert httpx.get(f"{url}/v1/models").status_code == 200
        release.set()
        assert waiting.result().status_code == 200


def test_without_a_model_generation_is_503_in_both_shapes(indexed: Settings) -> None:
    with TestClient(create_app(open_home(indexed)), raise_server_exceptions=False) as bare:
        for path, body in (("completions", {"prompt": "a"}), ("chat/completions", CHAT)):
            response = bare.post(f"/v1/{path}", json=body)
            assert response.status_code == 503
            assert "scopebase serve --model M" in response.json()["error"]["message"] == response.json()["detail"]
            assert response.headers["x-should-retry"] == "false"
