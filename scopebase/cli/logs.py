"""The log of a service or a worker on standard error: lines for people, or one JSON object a line for machines."""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Annotated, Literal, cast

import typer

from schema.errors import InputError
from schema.tracing import REQUEST, trace_id
from scopebase.cli.console import shown

Format = Literal["text", "json"]
VARIABLE = "SCOPEBASE_LOG_FORMAT"
REQUESTS = "scopebase.requests"
"""Its lines of requests are JSON in either format."""
LogFormat = Annotated[
    str, typer.Option("--log-format", envvar=VARIABLE, help="text for people, or json: one object a line.")
]


class Text(logging.Formatter):
    """`21:04:05 what happened [request 1f3a]`."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.name == REQUESTS and record.levelno == logging.INFO:
            return text
        asked = REQUEST.get()
        return f"{datetime.now():%H:%M:%S} {text}{f' [request {shown(asked)}]' if asked else ''}"


class JsonLines(logging.Formatter):
    """`{"at": ..., "level": "info", "logger": "scopebase.jobs", "message": ..., "request": "1f3a"}`."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.name == REQUESTS and record.levelno == logging.INFO:
            return message
        told = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
            "request": REQUEST.get(),
            "trace": trace_id(),
            "exception": self.formatException(record.exc_info) if record.exc_info else None,
        }
        return json.dumps({name: value for name, value in told.items() if value is not None})


class ToStandardError(logging.StreamHandler):  # type: ignore[type-arg]
    """To what standard error is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def check_format(name: str) -> Format:
    """Raises InputError for what is no format."""
    if name not in ("text", "json"):
        raise InputError(f"--log-format {name!r}: text or json")
    return cast(Format, name)


def log_to_standard_error(format: str, requests: bool = False) -> None:
    """Begins the log of this process, and of those that it starts.

    Args:
        requests: also a line for each request.
    """
    os.environ[VARIABLE] = check_format(format)
    handler = ToStandardError()
    handler.setFormatter(JsonLines() if format == "json" else Text())
    for name in ("scopebase", "uvicorn.error"):
        logging.getLogger(name).handlers = [handler]
    logging.getLogger("scopebase").setLevel(logging.INFO)
    logging.getLogger(REQUESTS).setLevel(logging.INFO if requests else logging.WARNING)
