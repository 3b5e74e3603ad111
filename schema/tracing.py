"""What one request or job did, step by step, for OpenTelemetry: where somebody has configured it, and next to nothing where not.

The standard variables decide: OTEL_EXPORTER_OTLP_ENDPOINT (or ..._TRACES_ENDPOINT) turns traces on; OTEL_SERVICE_NAME,
OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER and OTEL_EXPORTER_OTLP_HEADERS mean what they mean everywhere. OpenTelemetry is imported by
`start` alone. Values that people wrote (texts, queries, names of datasets) are in no span, nor are the words of an error, which may hold
some.

A trace goes on in another process where that is told its `traceparent` (W3C Trace Context): in a request's header, in a job, or in the
environment variable TRACEPARENT.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import Context, ContextVar, copy_context
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

from schema.errors import InputError

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
REQUEST: ContextVar[str | None] = ContextVar("request", default=None)
"""The id of the request that is being answered, or that submitted the job that is being done."""
PARENT = "TRACEPARENT"
"""The environment variable that says which trace a command belongs to."""
STOP_SECONDS = 3.0
Kind = Literal["internal", "server", "consumer"]
Value = str | int | float | bool | None
Args = ParamSpec("Args")
Result = TypeVar("Result")

_NOTHING: AbstractContextManager[Any] = nullcontext()
_provider: Any = None
_tracer: Any = None


def configured() -> bool:
    """Whether the environment asks for traces."""
    return any(map(os.environ.get, ENDPOINTS)) and os.environ.get("OTEL_SDK_DISABLED", "").lower() != "true"


def on() -> bool:
    return _tracer is not None


def start(role: str, version: str) -> None:
    """Begins to send spans if the environment asks for them; a second time does nothing.

    Args:
        role: what this process does, such as `serve`.

    Raises:
        InputError: traces are asked for and OpenTelemetry is not installed.
    """
    global _provider, _tracer
    if _tracer is not None or not configured():
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise InputError(
            f"{ENDPOINTS[0]} asks for traces, which need {error.name}; pip install 'scopebase[traces]', or unset it"
        ) from None
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "scopebase"}
    provider = TracerProvider(resource=Resource.create({**named, "service.version": version, "scopebase.role": role}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    # Not made the global one: FastAPI's own spans would then be sent too, and they hold query strings.
    _provider, _tracer = provider, provider.get_tracer("scopebase", version)
    _listen_to_sql()


def stop() -> None:
    """Sends what has not been sent yet, and waits `STOP_SECONDS` for that at most. The end of the process does it too."""
    global _tracer
    if _tracer is not None:
        _tracer = None
        sending = threading.Thread(target=_provider.shutdown, daemon=True)
        sending.start()
        sending.join(STOP_SECONDS)  # a receiver that is away would keep the process for ten seconds


def span(
    name: str,
    kind: Kind = "internal",
    headers: Mapping[str, str] | None = None,
    parent: str | None = None,
    **attributes: Value,
) -> AbstractContextManager[Any]:
    """What is done inside. Gives OpenTelemetry's span, or None where nobody asks for traces.

    Args:
        headers: of a request whose sender may have begun the trace.
        parent: what `traceparent` gave elsewhere.
        attributes: None is left out; `_` becomes a dot.
    """
    if _tracer is None:
        return _NOTHING
    told = _given({"request_id": REQUEST.get(), **attributes})
    return _span(_tracer, name, kind, _beyond(headers, parent), told)


@contextmanager
def _span(tracer: Any, name: str, kind: Kind, context: Any, attributes: Mapping[str, Any]) -> Iterator[Any]:
    from opentelemetry.trace import SpanKind

    quiet = {"record_exception": False, "set_status_on_exception": False}  # both would tell its words
    with tracer.start_as_current_span(
        name, context=context, kind=SpanKind[kind.upper()], attributes=attributes, **quiet
    ) as begun:
        try:
            yield begun
        except Exception as error:
            fail(begun, type(error).__name__)
            raise


def _beyond(headers: Mapping[str, str] | None, parent: str | None) -> Any:
    """The span of another process that one belongs to; None for whatever it stands in."""
    if headers is not None:
        from opentelemetry.propagate import extract

        return extract(headers)
    if parent is not None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        return TraceContextTextMapPropagator().extract({"traceparent": parent})
    return None


def traced(name: str, *places: str) -> Callable[[Callable[Args, Result]], Callable[Args, Result]]:
    """A method whose calls are spans.

    Args:
        places: attributes that its first arguments after `self` are; a sequence is told by its length.
    """

    def around(method: Callable[Args, Result]) -> Callable[Args, Result]:
        @wraps(method)
        def call(*args: Args.args, **options: Args.kwargs) -> Result:
            if _tracer is None:
                return method(*args, **options)
            told: dict[str, Any] = {place: _told(value) for place, value in zip(places, args[1:], strict=False)}
            with span(name, **told):
                return method(*args, **options)

        return call

    return around


def during(name: str, things: Iterable[Result], **attributes: Value) -> Iterable[Result]:
    """Things that come one after another, and a span until the last one."""
    return things if _tracer is None else _during(_tracer.start_span(name, attributes=_given(attributes)), things)


def _during(begun: Any, things: Iterable[Result]) -> Iterator[Result]:
    n = 0
    try:
        for n, thing in enumerate(things, 1):  # noqa: B007
            yield thing
    finally:
        begun.set_attribute("scopebase.n", n)
        begun.end()


def carried(things: Iterable[Result]) -> Iterable[Result]:
    """Things that are asked for one by one in another thread, such as Arrow's, and made as part of what this is in."""
    return things if _tracer is None else _carried(copy_context(), things)


def _carried(here: Context, things: Iterable[Result]) -> Iterator[Result]:
    ahead, end = iter(things), object()
    while (thing := here.run(next, ahead, end)) is not end:
        yield thing  # type: ignore[misc]


def past(steps: Mapping[str, float], **attributes: Value) -> None:
    """Spans of what was measured elsewhere: steps that followed each other in this order and ended now.

    Args:
        steps: name -> seconds.
    """
    if _tracer is None:
        return
    begin = time.time_ns() - int(sum(steps.values()) * 1e9)
    for name, seconds in steps.items():
        end = begin + int(seconds * 1e9)
        _tracer.start_span(name, start_time=begin, attributes=_given(attributes)).end(end)
        begin = end


def trace_id() -> str | None:
    """Of the span that this is in, as 32 hexadecimal digits."""
    found = _here()
    return None if found is None else f"{found.trace_id:032x}"


def traceparent() -> str | None:
    """The span that this is in, for a process elsewhere to go on with its trace."""
    found = _here()
    return None if found is None else f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}"


def _here() -> Any:
    if _tracer is None:
        return None
    from opentelemetry.trace import get_current_span

    found = get_current_span().get_span_context()
    return found if found.is_valid else None


def fail(begun: Any, words: str) -> None:
    """Marks a span as one that went wrong."""
    if begun is not None:
        from opentelemetry.trace import Status, StatusCode

        begun.set_status(Status(StatusCode.ERROR, words))


def _given(attributes: Mapping[str, Value]) -> dict[str, Any]:
    """Names as OpenTelemetry has them: its own as they are (`http_route` is `http.route`), ours under `scopebase.`."""
    theirs = ("http_", "url_", "db_", "client_")
    return {
        name.replace("_", ".") if name.startswith(theirs) else f"scopebase.{name}": value
        for name, value in attributes.items()
        if value is not None
    }


def _told(value: Any) -> Value:
    return value if isinstance(value, str | int | float) else len(value)


def _listen_to_sql() -> None:
    """A span for each statement that belongs to something. Statements hold no values: those are parameters."""
    from opentelemetry.trace import get_current_span
    from sqlalchemy import Engine, event

    def before(connection: Any, _cursor: Any, statement: str, _values: Any, context: Any, _many: bool) -> None:
        if _tracer is not None and get_current_span().is_recording():
            verb = statement.split(None, 1)[0].upper()
            told = {"db.system.name": connection.dialect.name, "db.operation.name": verb, "db.query.text": statement}
            context.scopebase_span = _tracer.start_span(f"sql {verb}", attributes=told)

    def after(_connection: Any, _cursor: Any, _statement: str, _values: Any, context: Any, _many: bool) -> None:
        begun = getattr(context, "scopebase_span", None)
        if begun is not None:
            begun.end()

    def failed(happened: Any) -> None:
        begun = getattr(happened.execution_context, "scopebase_span", None)
        if begun is not None:
            fail(begun, type(happened.original_exception).__name__)
            begun.end()

    event.listen(Engine, "before_cursor_execute", before)
    event.listen(Engine, "after_cursor_execute", after)
    event.listen(Engine, "handle_error", failed)
