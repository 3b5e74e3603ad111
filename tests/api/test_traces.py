"""Traces, where they are configured: received by a small OTLP server, from real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from schema import tracing
from schema.settings import Settings

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
