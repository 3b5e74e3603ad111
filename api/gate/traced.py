"""A span for each request, under the route's template; only where traces are configured."""

from __future__ import annotations

from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.gate.access import OPEN
from api.gate.messages import address_of, headers_of
from api.gate.metrics import template
from schema import tracing


class Traced:
    """Inside the journal, which knows the request's id, and outside everything else."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self.app(scope, receive, send)
            return
        status = 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        method = scope["method"]
        told: dict[str, Any] = {
            "http_request_method": method,
            "url_path": scope["path"],
            "client_address": address_of(scope),
        }
        with tracing.span(method, "server", dict(headers_of(scope)), **told) as begun:
            scope["state"]["trace"] = tracing.trace_id()
            try:
                await self.app(scope, receive, sending)
            finally:
                route = template(scope)
                begun.update_name(f"{method} {route}")
                begun.set_attributes({"http.route": route, "http.response.status_code": status})
                begun.set_attribute("scopebase.actor", scope["state"].get("actor", "local"))
                if status >= 500:
                    tracing.fail(begun, f"answered with {status}")
