"""Spans of this process, kept in memory by OpenTelemetry's own exporter."""

from __future__ import annotations

from typing import Any

import pytest

from schema import tracing


class Spans:
    """What ended since it was made."""

    def __init__(self, exporter: Any) -> None:
        self._exporter = exporter

    def all(self) -> list[Any]:
        return sorted(self._exporter.get_finished_spans(), key=lambda span: span.start_time)

    def named(self, name: str) -> list[Any]:
        """In the order in which they began."""
        return [span for span in self.all() if span.name == name]

    def text(self) -> str:
        """All that would be sent."""
        return "".join(span.to_json() for span in self.all())


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    """Traces are on, and go nowhere."""
    trace = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), trace.TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("scopebase"))
    monkeypatch.setattr(tracing, "_provider", provider)
    return Spans(exporter)
