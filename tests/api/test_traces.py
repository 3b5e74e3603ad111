"""Traces, where they are configured: received by a small OTLP server from real processes, or kept in memory here."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from api.services.jobs.book import submit_job
from indexer.jobs import Do, work_off
from schema import tracing
from schema.database import Database
from schema.errors import InputError
from schema.home import make_home
from schema.queue import Queue
from schema.settings import Settings
from schema.wire.jobs import IndexJob
from scopebase.cli import main
from scopebase.cli.workers import helpers
from tests.spans import Spans
from tests.spans import spans as spans

ASKS = """
import os, sys
from fastapi.testclient import TestClient
from schema import tracing
from schema.settings import Settings
from api.app import create_app
from schema.home import open_home
tracing.start("serve", "1")
home = open_home(Settings.read(sys.argv[1], {}))
with TestClient(create_app(home), base_url="http://127.0.0.1") as client:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    client.get("/v1/features/tiny-qwen3/1-tiny/77/samples", headers={"x-request-id": "ask-1", "traceparent": parent})
    client.get("/v1/health")
    client.get("/v1/runs/nothing")
    client.get("/v1/overlap?sae=secret-name&dataset=a&dataset=b")
tracing.stop()
"""
STARTS = """
import sys
import api.app
from schema import tracing
tracing.start("serve", "1")
print(tracing.on(), sorted(name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))))
"""


class Received(BaseHTTPRequestHandler):
    """Keeps what it is sent."""

    bodies: list[bytes]

    def do_POST(self) -> None:
        self.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None: ...


@contextmanager
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """An OTLP receiver: its address, and the requests that came."""
    handler = type("Handler", (Received,), {"bodies": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.bodies
    finally:
        server.shutdown()
        thread.join()


def read(bodies: list[bytes]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The spans of all requests, by hand from the protocol's own messages, and the attributes of who sent them."""
    trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    spans, sender = [], {}
    for body in bodies:
        for group in trace_service.ExportTraceServiceRequest.FromString(body).resource_spans:
            sender |= {a.key: a.value.string_value for a in group.resource.attributes}
            for span in (span for scope in group.scope_spans for span in scope.spans):
                told = {a.key: a.value.string_value or a.value.int_value for a in span.attributes}
                spans.append({"name": span.name, "id": span.span_id.hex(), "parent": span.parent_span_id.hex(), **told})
                spans[-1] |= {
                    "trace": span.trace_id.hex(),
                    "seconds": (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
                }
    return spans, sender


def run(code: str, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, env={**kept, "PYTHONPATH": ".", **environ}, capture_output=True, text=True)


def test_a_request_is_told_with_its_sql_and_its_reads(indexed: Settings) -> None:
    with collector() as (url, bodies):
        done = run(ASKS, str(indexed.home), OTEL_EXPORTER_OTLP_ENDPOINT=url, OTEL_SERVICE_NAME="lab")
    assert done.returncode == 0, done.stderr
    spans, sender = read(bodies)
    assert (sender["service.name"], sender["scopebase.role"]) == ("lab", "serve")
    requests = {span["name"]: span for span in spans if "http.route" in span}
    assert set(requests) == {
        "GET /v1/features/{feature:path}/samples",
        "GET /v1/runs/{run}",
        "GET /v1/overlap",
    }, "health is asked all day, and not traced"
    assert not any(b"secret-name" in body for body in bodies), "queries are in no span"
    asked = requests["GET /v1/features/{feature:path}/samples"]
    assert asked["trace"] == "0af7651916cd43dd8448eb211c80319c", "the trace that the client began"
    assert asked["parent"] == "b7ad6b7169203331"
    assert asked["scopebase.request_id"] == "ask-1"
    assert asked["http.response.status_code"] == 200
    below = [span for span in spans if span["trace"] == asked["trace"] and span is not asked]
    ids = {span["id"] for span in (*below, asked)}
    assert all(span["parent"] in ids for span in below)
    statements = [span["db.query.text"] for span in below if span["name"] == "sql SELECT"]
    assert any("FROM runs" in text for text in statements)
    assert not any("tiny-qwen3" in text for text in statements), "names are values, and values are in no span"
    reads = [span for span in below if span["name"] == "store.rows"]
    assert {span["scopebase.table"] for span in reads} >= {"samples"}
    assert all(0 <= span["seconds"] <= asked["seconds"] for span in below)


def test_nothing_of_it_is_loaded_where_nobody_asks() -> None:
    done = run(STARTS)
    assert done.stdout == "False []\n", done.stderr


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(Exception, match=r"pip install 'scopebase\[traces\]', or unset it"):
        tracing.start("serve", "1")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    tracing.start("serve", "1")
    assert not tracing.on()


def test_a_receiver_that_is_away_keeps_nobody(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    away = threading.Event()
    monkeypatch.setattr(tracing, "STOP_SECONDS", 0.01)
    monkeypatch.setattr(tracing, "_provider", type("Provider", (), {"shutdown": staticmethod(lambda: away.wait(20))}))
    begun = time.monotonic()
    tracing.stop()
    assert time.monotonic() - begun < 10
    assert not tracing.on()
    away.set()


def test_what_was_measured_elsewhere_is_laid_behind_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tracer:
        laid: list[tuple[str, int, int]] = []  # noqa: RUF012

        def start_span(self, name: str, start_time: int, attributes: dict[str, Any]) -> Any:
            self.attributes = attributes
            return type("Span", (), {"end": lambda _self, end: self.laid.append((name, start_time, end))})()

    monkeypatch.setattr(tracing, "_tracer", tracer := Tracer())
    tracing.past({"queue": 1.0, "prompt": 2.0, "decode": 0.5}, tokens=7)
    names, begins, ends = zip(*tracer.laid, strict=True)
    assert names == ("queue", "prompt", "decode")
    assert [round((end - begin) / 1e9, 3) for begin, end in zip(begins, ends, strict=True)] == [1.0, 2.0, 0.5]
    assert begins[1:] == ends[:-1]
    assert tracer.attributes == {"scopebase.tokens": 7}


PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
JOB = {"kind": "index", "model": "a/b", "sae": "a/s", "datasets": [{"name": "secret-name", "source": "d.jsonl"}]}


def work(database: Database, do: Do) -> None:
    work_off(Queue(database), do, threading.Event(), lambda _line: None, once=True, keep_days=90)


def test_a_job_goes_on_with_the_trace_of_the_request_that_submitted_it(tmp_path: Path, spans: Spans) -> None:
    home = make_home(Settings.read(tmp_path, {}))
    with TestClient(create_app(home), base_url="http://127.0.0.1") as client:

        def submit(**headers: str) -> Any:
            answer = client.post("/v1/jobs", json=JOB, headers={"idempotency-key": "one", **headers})
            assert answer.status_code == 202, answer.text
            assert "traceparent" not in answer.text
            return answer.json()

        first = submit(traceparent=PARENT)
        assert submit() == first, "the trace is no part of what is asked for"
        listed = client.get("/v1/jobs")
        assert listed.json()["data"] == [first]
        work(home.database, lambda job, _progress: [])  # as another machine does: nothing is open here
    submitted, again = spans.named("POST /v1/jobs")
    (job,) = spans.named("job")
    assert f"{job.context.trace_id:032x}" == PARENT.split("-")[1]
    assert job.parent.span_id == submitted.context.span_id
    assert again.context.trace_id != job.context.trace_id
    assert (job.attributes["scopebase.job"], job.attributes["scopebase.attempt"]) == (first["id"], 1)
    assert job.status.is_ok
    assert "secret-name" not in spans.text()


def test_a_job_without_a_trace_begins_its_own_and_errors_are_told_by_their_kind(tmp_path: Path, spans: Spans) -> None:
    home = make_home(Settings.read(tmp_path, {}))

    def fails(_job: Any, _progress: Any) -> list[Any]:
        with tracing.span("index.encode"):
            raise InputError("secret-name cannot be read")

    submit_job(home.database, IndexJob.model_validate(JOB), "ann")
    work(home.database, fails)
    home.close()
    (job,), (piece,) = spans.named("job"), spans.named("index.encode")
    assert job.parent is None
    assert piece.parent.span_id == job.context.span_id
    for span in (job, piece):
        assert (span.status.is_ok, span.status.description, span.events) == (False, "InputError", ())
    assert "secret-name" not in spans.text()


def test_helpers_and_commands_go_on_with_the_trace_in_their_environment(
    spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str | None] = []

    class Started:
        def __init__(self, _command: list[str], env: dict[str, str], **_more: Any) -> None:
            told.append(env.get("TRACEPARENT"))

        def wait(self) -> int:
            return 0

        def terminate(self) -> None: ...

    def work_here(*_asked: Any) -> list[Any]:
        with tracing.span("index.encode"):
            return []

    monkeypatch.delenv("TRACEPARENT", raising=False)
    monkeypatch.setattr("scopebase.cli.workers.subprocess.Popen", Started)
    with helpers(1, []):
        assert told == [None]
    with tracing.span("job"), helpers(1, []):
        assert told[1] == tracing.traceparent()
    monkeypatch.setenv("TRACEPARENT", str(told[1]))
    monkeypatch.setattr("scopebase.cli.index.run", work_here)
    monkeypatch.setattr("scopebase.cli.index.show_reports", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["scopebase", "index", "--model", "m", "--sae", "s", "--dataset", "d=d.jsonl"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    (job,), (command,), (piece,) = (spans.named(name) for name in ("job", "index", "index.encode"))
    assert command.parent.span_id == job.context.span_id
    assert piece.parent.span_id == command.context.span_id
