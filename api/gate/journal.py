"""Every request gets an id, and a line in the log if the service keeps one. Query strings and bodies are not logged."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.gate.messages import address_of, headers_of
from schema.tracing import REQUEST

LOG = logging.getLogger("scopebase.requests")
HEADER = "x-request-id"
_SANE = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Journal:
    """Outermost: sees every request and what became of it."""

    def __init__(self, app: ASGIApp, log: bool) -> None:
        self.app, self.log = app, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        id_ = headers_of(scope).get(HEADER, "")
        id_ = id_ if _SANE.fullmatch(id_) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = id_
        REQUEST.set(id_)
        seen = {"status": 500, "bytes": 0}
        begin = time.perf_counter()

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
                MutableHeaders(scope=message)[HEADER] = id_
            else:
                seen["bytes"] += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, sending)
        finally:
            if self.log:
                LOG.info("%s", json.dumps(_line(scope, seen, time.perf_counter() - begin)))


def _line(scope: Scope, seen: dict[str, int], seconds: float) -> dict[str, Any]:
    state = scope["state"]
    return {
        "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "id": state["request_id"],
        **({"trace": state["trace"]} if state.get("trace") else {}),
        "actor": state.get("actor"),
        "address": address_of(scope),
        "method": scope["method"],
        "path": scope["path"],
        **seen,
        "ms": round(seconds * 1000, 1),
    }
