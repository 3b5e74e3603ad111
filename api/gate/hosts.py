"""Keeps pages of other sites, open in a browser of this machine, from asking a service that asks nobody for a key."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from api.gate.access import Access
from api.gate.messages import SAFE, headers_of
from api.problems import problem


class HostGate:
    """Refuses names that are not the service's, and writes that another site's page sends."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fault = self._fault(scope) if scope["type"] == "http" else None
        if fault is None:
            await self.app(scope, receive, send)
        else:
            await problem(*fault)(scope, receive, send)

    def _fault(self, scope: Scope) -> tuple[int, str] | None:
        headers = headers_of(scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.access.hosts is not None and name_of(host) not in self.access.hosts:
            return 400, f"this service does not go by the name {name_of(host)[:100]!r}; --allow-host adds one"
        if self.access.auth or origin is None or scope["method"] in SAFE or origin in self.access.origins:
            return None  # a page cannot know a key, so where one is asked for nothing is sent in a person's name
        if urlsplit(origin).netloc == host:
            return None
        return 403, f"a page of {origin[:100]} may not write here; --allow-origin lets one"


def name_of(host: str) -> str:
    """A Host header without its port, lower case: `[::1]:8000` -> `[::1]`."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()
