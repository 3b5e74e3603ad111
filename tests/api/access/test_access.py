"""Who may ask the service, and how much: keys, rates, limits, names, the log."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from api.app import create_app
from api.deps import needs
from api.gate import limits, messages
from api.gate.access import Access
from api.gate.hosts import name_of
from api.problems import PROBLEM
from api.services.access import keyring
from api.services.access.keyring import Keyring
from api.services.access.rates import MOST_BUCKETS, Buckets, Rate
from schema import deadline
from schema.audit import audit
from schema.database import Database, upgrade
from schema.errors import InputError, TooSlow, Unauthorized
from schema.home import Home, open_home
from schema.keys import create_key, revoke_key
from schema.lab import Key
from schema.settings import Settings
from schema.tables import Setting, now
from tests.api.generation.listening import listening

ASKED = Access(auth=True)


@dataclass
class Service:
    """A service over a home of its own, and keys of it."""

    home: Home
    keys: dict[str, str]
    """Name -> secret."""

    def client(self, access: Access = ASKED, key: str | None = None, app: FastAPI | None = None, **changes: Any) -> Any:
        headers = {"authorization": f"Bearer {self.keys.get(key, key)}"} if key else {}
        app = app or create_app(self.home, access=access)
        return TestClient(app, headers=headers, **{"raise_server_exceptions": False, **changes})


@pytest.fixture(scope="module")
def service(indexed: Settings, tmp_path_factory: pytest.TempPathFactory) -> Service:
    copy = Settings.read(tmp_path_factory.mktemp("access") / "home", {})
    shutil.copytree(indexed.home, copy.home)
    home = open_home(copy)
    keys = {}
    with home.database.writing() as session:
        for name in ("read", "label", "write", "admin"):
            keys[name] = create_key(session, name, name, None, "root")[1]  # type: ignore[arg-type]
        keys["old"] = create_key(session, "old", "admin", timedelta(seconds=-1), "root")[1]
        keys["gone"] = create_key(session, "gone", "admin", None, "root")[1]
        revoke_key(session, "gone", "root")
    return Service(home, keys)


def check_problem(response: Any, status: int, words: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM
    assert words in response.json()["detail"]
    assert response.headers["x-request-id"]


# Keys


@pytest.mark.parametrize("path", ["/v1/overlap", "/v1/models", "/v1/audit", "/v1/nothing", "/nothing", "/v1/health/x"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_nothing_is_said_without_a_key(service: Service, method: str, path: str) -> None:
    response = service.client().request(method, path)
    check_problem(response, 401, "a key is needed")
    assert response.headers["www-authenticate"] == 'Bearer realm="scopebase"'


@pytest.mark.parametrize("path", ["/v1/health", "/v1/ready", "/openapi.json", "/docs"])
def test_what_needs_no_key(service: Service, path: str) -> None:
    assert service.client().get(path).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"authorization": "Bearer {read}"}, 200),
        ({"authorization": "bearer  {read} "}, 200),
        ({"x-api-key": "{read}"}, 200),
        ({"X-Api-Key": "{read}", "authorization": "Basic dXNlcjo="}, 200),
        ({"authorization": "Bearer"}, 401),
        ({"authorization": "{read}"}, 401),
        ({"authorization": "Bearer {read}x"}, 401),
        ({"x-api-key": ""}, 401),
        ({"x-api-key": "sb_"}, 401),
        ({"cookie": "key={read}"}, 401),
    ],
)
def test_how_a_key_is_sent(service: Service, headers: dict[str, str], status: int) -> None:
    filled = {name: value.format(**service.keys) for name, value in headers.items()}
    assert service.client().get("/v1/models", headers=filled).status_code == status


def test_a_key_in_the_address_is_none(service: Service) -> None:
    assert service.client().get("/v1/models", params={"api_key": service.keys["read"]}).status_code == 401


def test_expired_and_revoked_keys_say_so(service: Service) -> None:
    check_problem(service.client(key="old").get("/v1/models"), 401, "the key 'old' expired on")
    check_problem(service.client(key="gone").get("/v1/models"), 401, "the key 'gone' was revoked on")
    check_problem(service.client(key="sb_" + "x" * 43).get("/v1/models"), 401, "this key is unknown")


def test_a_key_may_what_its_scope_says(service: Service) -> None:
    app = create_app(service.home, access=ASKED)
    for scope in ("read", "label", "write", "admin"):
        app.add_api_route(f"/v1/needs/{scope}", lambda: {}, methods=["POST"], dependencies=[needs(scope)])  # type: ignore[arg-type]
    ladder = ["read", "label", "write", "admin"]
    for held in ladder:
        client = service.client(key=held, app=app)
        for scope in ladder:
            expected = 200 if ladder.index(scope) <= ladder.index(held) else 403
            assert client.post(f"/v1/needs/{scope}").status_code == expected, (held, scope)
    check_problem(service.client(key="read").get("/v1/audit"), 403, "this key may read, and not admin")


def test_a_revoked_key_stops_within_seconds_and_a_new_one_works_at_once(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring, "SECONDS", 0.3)
    monkeypatch.setattr(keyring, "AGAIN", 0.05)
    client = service.client()
    assert client.get("/v1/models", headers={"x-api-key": service.keys["read"]}).status_code == 200
    time.sleep(0.06)
    with service.home.database.writing() as session:
        _, secret = create_key(session, "short", "read", None, "root")
    asks = {"headers": {"x-api-key": secret}}
    assert client.get("/v1/models", **asks).status_code == 200
    with service.home.database.writing() as session:
        revoke_key(session, "short", "root")
    time.sleep(0.35)
    check_problem(client.get("/v1/models", **asks), 401, "was revoked")


def test_keys_that_nobody_has_cost_no_query_each(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = Keyring(service.home.database)
    reads = []
    whole = Keyring._read
    monkeypatch.setattr(Keyring, "_read", lambda self: (reads.append(1), whole(self)))
    for number in range(200):
        with pytest.raises(Unauthorized):
            ring.find(f"sb_{number}")
    assert len(reads) <= 3
    assert len(ring._keys) <= 8


def test_last_use_is_kept_to_the_minute(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "SECONDS", 0.0)
    before = now()
    client = service.client(key="write")
    for _ in range(3):
        assert client.get("/v1/models").status_code == 200
    with service.home.database.reading() as session:
        used = {key.name: key.used_at for key in session.query(Key)}
    assert used["write"] is not None
    assert used["write"] >= before
    assert used["gone"] is None


def test_a_database_that_fails_is_503_and_not_an_open_door(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    from schema.errors import WorkFailed

    def fail(self: Keyring) -> None:
        raise WorkFailed("the database is away")

    monkeypatch.setattr(Keyring, "_read", fail)
    check_problem(service.client(key="read").get("/v1/models"), 503, "the database is away")


def test_where_nobody_is_asked_everything_is_allowed(service: Service) -> None:
    assert service.client(Access()).get("/v1/audit").status_code == 200


# Rates


@given(st.integers(1, 50), st.integers(1, 60), st.lists(st.floats(0, 5), max_size=80))
def test_a_bucket_never_gives_more_than_its_quota_and_what_flows_in(
    quota: int, seconds: int, steps: list[float]
) -> None:
    moment = [0.0]
    buckets = Buckets(Rate(quota, seconds), lambda: moment[0])
    given_out = 0
    for step in steps:
        moment[0] += step
        share = buckets.take("ann")
        given_out += share.allowed
        assert given_out <= quota + moment[0] * quota / seconds + 1e-6
        assert (share.wait == 0) == (share.remaining >= 1)
        if not share.allowed:  # waiting as long as it says is enough
            again = Buckets(buckets.rate, lambda: moment[0] + share.wait + 1e-6)  # noqa: B023
            again._levels.update(buckets._levels)
            assert again.take("ann").allowed


def test_buckets_are_bounded_and_apart() -> None:
    buckets = Buckets(Rate(1, 3600))
    assert buckets.take("ann").allowed
    assert not buckets.take("ann").allowed
    assert buckets.take("bob").allowed
    for number in range(MOST_BUCKETS + 10):
        buckets.take(str(number))
    assert len(buckets._levels) == MOST_BUCKETS


@pytest.mark.parametrize(("text", "rate"), [("50/s", Rate(50, 1)), ("600/m", Rate(600, 60)), ("9/h", Rate(9, 3600))])
def test_rates_are_read(text: str, rate: Rate) -> None:
    assert Rate.parse(text) == rate


@pytest.mark.parametrize("text", ["50", "0/s", "5/d", "x/s", "5 / s", ""])
def test_rates_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="50/s"):
        Rate.parse(text)


def test_too_many_requests_of_one_key(service: Service) -> None:
    app = create_app(service.home, access=Access(auth=True, rate=Rate(3, 3600)))
    client = service.client(key="read", app=app)
    left = [client.get("/v1/models").headers["ratelimit"] for _ in range(3)]
    assert [text.split(";")[:2] for text in left] == [['"asker"', f"r={n}"] for n in (2, 1, 0)]
    refused = client.get("/v1/models")
    check_problem(refused, 429, "key read has made its 3 requests a hour; go on in")
    assert 1100 < int(refused.headers["retry-after"]) <= 1200
    assert refused.headers["ratelimit-policy"] == '"asker";q=3;w=3600'
    assert service.client(key="label", app=app).get("/v1/models").status_code == 200, (
        "another key has a share of its own"
    )
    assert client.get("/v1/health").status_code == 200, "who watches the service is not counted"


def test_guessing_keys_uses_up_the_share_of_an_address(service: Service) -> None:
    client = service.client(Access(auth=True, rate=Rate(2, 3600)))
    answers = [client.get("/v1/models", headers={"x-api-key": f"sb_{n}"}).status_code for n in range(4)]
    assert answers == [401, 401, 429, 429]


# Limits


@pytest.fixture
def small(service: Service) -> Iterator[Any]:
    """A service with small limits, and routes that show what came through."""
    app = create_app(service.home, access=Access(body_bytes=100, upload_bytes=1000, target_bytes=200, seconds=1.0))

    @app.post("/v1/echo")
    async def echo(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    @app.post("/v1/slow")
    def slow(seconds: float) -> dict[str, bool]:
        begin = time.monotonic()
        while time.monotonic() - begin < seconds:
            deadline.check()
            time.sleep(0.01)
        return {"done": True}

    @app.get("/v1/fails")
    def fails() -> None:
        raise RuntimeError("a fault of ours, with a secret in it")

    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def test_bodies_are_bounded(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert small.post("/v1/echo", json=["x" * 90]).json() == {"bytes": 94}
    check_problem(
        small.post("/v1/echo", json=["x" * 100]), 413, "larger than 100 bytes, the most that a question may be"
    )
    for kind in ("application/x+json", "text/plain", "multipart/form-data; boundary=x"):
        said = small.post("/v1/echo", content=b"x" * 101, headers={"content-type": kind})
        check_problem(said, 413, "the most that a question may be")
    upload = {"headers": {"content-type": "application/x-ndjson"}}
    monkeypatch.setattr(messages, "UPLOADS", {"/v1/echo"})
    assert small.post("/v1/echo", content=b"x" * 1000, **upload).json() == {"bytes": 1000}
    check_problem(small.post("/v1/echo", content=b"x" * 1001, **upload), 413, "the most that an upload may be")


def test_a_body_that_hides_its_length_is_bounded_too(small: Any) -> None:
    parts = (b"x" * 30 for _ in range(10))
    headers = {"content-type": "application/json"}
    response = small.post("/v1/echo", content=parts, headers=headers)
    check_problem(response, 413, "larger than 100 bytes")


def test_addresses_are_bounded(small: Any) -> None:
    check_problem(small.get("/v1/models", params={"x": "y" * 200}), 414, "the address is longer than 200 bytes")


def test_an_answer_that_takes_too_long(small: Any) -> None:
    assert small.post("/v1/slow", params={"seconds": 0.05}).json() == {"done": True}
    begin = time.monotonic()
    response = small.post("/v1/slow", params={"seconds": 10})
    assert time.monotonic() - begin < 4
    check_problem(response, 503, "took longer than the 1 s that a request may; ask for less at once")
    assert "retry-after" not in response.headers, "the same again would take as long again"


def test_a_body_that_does_not_come_is_408_and_the_connection_closed(small: Any) -> None:
    sent: list[Any] = []
    parts = iter([{"type": "http.request", "body": b"[", "more_body": True}])

    async def receive() -> Any:
        return next(parts, None) or await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"testserver"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/echo", "raw_path": b"/v1/echo", "headers": headers}
    scope |= {"query_string": b"", "http_version": "1.1", "scheme": "http", "root_path": "", "client": ("1.2.3.4", 5)}
    asyncio.run(small.app(scope, receive, send))
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]
    assert b"was not whole within 1 s" in sent[1]["body"]


def test_uploads_take_the_time_they_need(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "UPLOADS", {"/v1/slow"})
    response = small.post(
        "/v1/slow", params={"seconds": 1.3}, content=b"x", headers={"content-type": "application/x-ndjson"}
    )
    assert response.json() == {"done": True}


def test_work_stops_once_nobody_waits() -> None:
    def work() -> None:
        deadline.allow(0.01)
        time.sleep(0.02)
        deadline.check()

    deadline.check()  # no limit
    with ThreadPoolExecutor(1) as pool, pytest.raises(TooSlow, match="took longer than the 0.01 s"):
        pool.submit(work).result()


def test_what_was_answered_with_too_slow_is_not_written(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'late.db'}")
    upgrade(database)

    def write() -> None:
        deadline.allow(0.01)
        with database.writing() as session:
            session.add(Setting(name="late", value="1"))
            time.sleep(0.02)

    with ThreadPoolExecutor(1) as pool, pytest.raises(TooSlow):
        pool.submit(write).result()
    with database.reading() as session:
        assert session.get(Setting, "late") is None
    database.close()


def test_so_many_at_once_and_no_more(service: Service) -> None:
    app = create_app(service.home, access=Access(concurrent=2))
    begun, go_on = threading.Semaphore(0), threading.Event()

    @app.get("/v1/wait")
    def wait() -> dict[str, bool]:
        begun.release()
        return {"done": go_on.wait(30)}

    with TestClient(app) as client, ThreadPoolExecutor(2) as pool:
        working = [pool.submit(client.get, "/v1/wait") for _ in range(2)]
        assert all(begun.acquire(timeout=30) for _ in working)
        refused = client.get("/v1/models")
        check_problem(refused, 503, "2 requests are at work")
        assert refused.headers["retry-after"] == "1"
        assert client.get("/v1/health").status_code == 200
        go_on.set()
        assert [w.result().json() for w in working] == [{"done": True}] * 2
        assert client.get("/v1/models").status_code == 200


def test_a_fault_of_ours_is_a_problem_without_its_words(small: Any) -> None:
    response = small.get("/v1/fails", headers={"x-request-id": "abc-1"})
    check_problem(response, 500, "a fault of Scopebase (RuntimeError); the server's log has its trace")
    assert response.headers["x-request-id"] == "abc-1"
    assert "secret" not in response.text


# Names and sites


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8000", 200),
        ("LOCALHOST:1", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("evil.example.org", 400),
        ("evil.example.org:8000", 400),
        ("127.0.0.1.evil.example.org", 400),
        ("localhost.evil.example.org:80", 400),
        ("", 400),
    ],
)
def test_a_name_that_is_not_the_services(service: Service, host: str, status: int) -> None:
    client = service.client(Access(hosts=frozenset({"localhost", "127.0.0.1", "[::1]"})))
    response = client.get("/v1/models", headers={"host": host})
    assert response.status_code == status
    if status == 400:
        assert "--allow-host" in response.json()["detail"]


@settings(max_examples=50)
@given(st.text(max_size=30))
def test_any_host_header_has_a_name(host: str) -> None:
    assert name_of(host) == name_of(f"{host}:80" if not host.rpartition(":")[2].isdigit() else host)


def test_pages_of_other_sites_do_not_write(service: Service) -> None:
    app = create_app(service.home, access=Access(origins=("https://lab.example.org",)))
    app.add_api_route("/v1/echo", lambda: {}, methods=["POST", "GET"])
    client = service.client(app=app)
    assert client.post("/v1/echo").status_code == 200, "no page at all"
    assert client.post("/v1/echo", headers={"origin": "http://testserver"}).status_code == 200
    assert client.post("/v1/echo", headers={"origin": "https://lab.example.org"}).status_code == 200
    for origin in ("https://evil.example.org", "null", "http://testserver.evil.example.org"):
        check_problem(client.post("/v1/echo", headers={"origin": origin}), 403, "--allow-origin")
        assert client.get("/v1/echo", headers={"origin": origin}).status_code == 200


def test_other_sites_may_not_read_unless_allowed(service: Service) -> None:
    origin = "https://lab.example.org"
    asks = {"origin": origin, "access-control-request-method": "POST", "access-control-request-headers": "x-api-key"}
    closed = service.client(key="read").get("/v1/models", headers={"origin": origin})
    assert "access-control-allow-origin" not in closed.headers
    client = service.client(Access(auth=True, origins=(origin,)))
    preflight = client.options("/v1/models", headers=asks)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == origin
    refused = client.get("/v1/models", headers={"origin": origin})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == origin, "the page may read why it was refused"
    other = client.options("/v1/models", headers={**asks, "origin": "https://evil.example.org"})
    assert "access-control-allow-origin" not in other.headers


# What is logged


def test_a_line_a_request(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "scopebase.requests"):
        client = service.client(Access(auth=True, log=True), key="label")
        answer = client.get("/v1/models", params={"limit": 1}, headers={"x-request-id": "job-7"})
        client.get("/v1/models", headers={"authorization": "Bearer wrong", "x-request-id": "a b\tc"})
    first, second = (json.loads(record.message) for record in caplog.records)
    assert answer.headers["x-request-id"] == "job-7"
    assert {name: first[name] for name in ("id", "actor", "method", "path", "status", "bytes", "address")} == {
        "id": "job-7",
        "actor": "label",
        "method": "GET",
        "path": "/v1/models",
        "status": 200,
        "bytes": len(answer.content),
        "address": "testclient",
    }
    assert first["ms"] > 0
    assert (second["actor"], second["status"]) == (None, 401)
    assert len(second["id"]) == 32, "an id that could break a log is replaced"
    assert not any(secret in caplog.text for secret in (*service.keys.values(), "wrong"))


def test_the_audit_log_in_pages(service: Service) -> None:
    with service.home.database.writing() as session:
        for number in range(7):
            audit(session, "zoe", "label.create" if number % 2 else "label_x.create", f"m/0-x/{number}", {"n": number})
    client = service.client(key="admin")
    seen, cursor = [], None
    while True:
        page = client.get(
            "/v1/audit", params={"actor": "zoe", "limit": 3, **({"cursor": cursor} if cursor else {})}
        ).json()
        seen += [entry["target"] for entry in page["data"]]
        cursor = page["next_cursor"]
        with service.home.database.writing() as session:  # what is written meanwhile moves nothing
            audit(session, "zoe", "label.delete", "m/0-x/99")
        if cursor is None:
            break
    assert seen == [f"m/0-x/{number}" for number in reversed(range(7))]
    of_a_kind = client.get("/v1/audit", params={"actor": "zoe", "action": "label.*"}).json()["data"]
    assert {entry["action"] for entry in of_a_kind} == {"label.create", "label.delete"}
    one = client.get("/v1/audit", params={"target": "m/0-x/3"}).json()["data"]
    assert [(e["actor"], e["action"], e["detail"]) for e in one] == [("zoe", "label.create", {"n": 3})]
    assert client.get("/v1/audit", params={"since": "2999-01-01T00:00:00"}).json()["data"] == []
    long_ago = client.get("/v1/audit", params={"since": "2020-01-01T00:00:00+05:00", "actor": "root"}).json()["data"]
    assert "key.revoke" in {entry["action"] for entry in long_ago}


def test_several_threads_share_a_bucket() -> None:
    buckets = Buckets(Rate(100, 3600))
    allowed = []
    threads = [
        threading.Thread(target=lambda: allowed.extend(buckets.take("ann").allowed for _ in range(50)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(allowed) == 100


def test_a_home_on_a_read_only_disk_asks_for_keys_too(service: Service, tmp_path: Path) -> None:
    from schema.database import Database

    copy = tmp_path / "scopebase.db"
    with service.home.database.writing():
        pass
    service.home.database.engine.dispose()
    shutil.copy(service.home.settings.database_file, copy)  # type: ignore[arg-type]
    ring = Keyring(Database(f"sqlite:///{copy}", read_only=True))
    assert ring.find(service.keys["read"]).name == "read"
    ring._read()  # the last use cannot be kept
    assert ring.find(service.keys["read"]).scopes == ("read",)


@pytest.mark.parametrize("kind", ["application/json", "application/x-ndjson"])
def test_a_body_that_never_ends_is_given_up_and_others_are_not(
    service: Service, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """One byte every tenth of a second, over a real connection, as a question and as an upload; with room for one request only."""
    monkeypatch.setattr(limits, "PATIENCE", 0.4)
    app = create_app(service.home, access=Access(concurrent=1, seconds=1.0))
    with listening(app) as url, socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as slow:
        head = f"POST /v1/labels/import HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\ncontent-length: 5000\r\n\r\n"
        slow.sendall(head.encode())
        slow.settimeout(0.1)
        said, begin = b"", time.monotonic()
        while b"\r\n\r\n" not in said and time.monotonic() - begin < 10:
            slow.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                said += slow.recv(4096)
        assert said.startswith(b"HTTP/1.1 408"), said
        assert b"connection: close" in said.lower()
        assert httpx.get(f"{url}/v1/models").status_code == 200
