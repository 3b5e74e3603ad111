"""Asks for a key and counts what its holder asks for."""

from __future__ import annotations

import math

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.gate.access import Access, is_open
from api.gate.messages import address_of, headers_of
from api.problems import problem
from api.services.access.keyring import Holder, Keyring
from api.services.access.rates import Buckets, Rate, Share
from schema.errors import ScopebaseError, Unauthorized

Shares = dict[str, tuple[Rate, Share]]
"""What of each limit is left to who asks: `asker` for requests, `tokens` for those of texts."""
MISSING = "a key is needed: send 'Authorization: Bearer <key>' or 'x-api-key: <key>'"


class KeyGate:
    """Fills `request.state.actor`, `.scopes` and `.asker`, or answers 401 or 429. What routes put into `.shares` is told too."""

    def __init__(self, app: ASGIApp, access: Access, keyring: Keyring) -> None:
        self.app, self.access, self.keyring = app, access, keyring
        self.buckets = None if access.rate is None else Buckets(access.rate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_open(scope["path"]):
            await self.app(scope, receive, send)
            return
        holder, refusal = await self._holder(headers_of(scope)) if self.access.auth else (None, None)
        asker = f"key {holder.name}" if holder else f"address {address_of(scope)}"
        shares: Shares = {}
        scope.setdefault("state", {}).update(asker=asker, shares=shares)
        send = _telling(send, shares)
        if self.buckets is not None:
            share = self.buckets.take(asker)
            shares["asker"] = self.buckets.rate, share
            refusal = refusal if share.allowed else _too_many(asker, self.buckets.rate, share)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        if holder is not None:
            scope["state"].update(actor=holder.name, scopes=holder.scopes)
        await self.app(scope, receive, send)

    async def _holder(self, headers: Headers) -> tuple[Holder | None, JSONResponse | None]:
        """Whose key it is, or what to answer. Only a look into the database needs a thread."""
        secret = secret_of(headers)
        try:
            if secret is None:
                raise Unauthorized(MISSING)
            if self.keyring.is_fresh() and self.keyring.knows(secret):
                return self.keyring.find(secret), None
            return await run_in_threadpool(self.keyring.find, secret), None
        except ScopebaseError as error:
            asks = {"www-authenticate": 'Bearer realm="scopebase"'} if isinstance(error, Unauthorized) else None
            return None, problem(error.http_status, str(error), headers=asks)


def secret_of(headers: Headers) -> str | None:
    """The key that a request brings; `x-api-key` where there is no bearer token."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key") or None


def _telling(send: Send, shares: Shares) -> Send:
    """Every answer says what is left, as draft-ietf-httpapi-ratelimit-headers has it."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start" and shares:
            headers = MutableHeaders(scope=message)
            policy = (f'"{name}";q={rate.quota};w={rate.seconds}' for name, (rate, _) in shares.items())
            left = (f'"{name}";r={share.remaining};t={math.ceil(share.wait)}' for name, (_, share) in shares.items())
            headers["ratelimit-policy"], headers["ratelimit"] = ", ".join(policy), ", ".join(left)
        await send(message)

    return sending


def _too_many(asker: str, rate: Rate, share: Share) -> JSONResponse:
    wait = max(1, math.ceil(share.wait))
    span = {1: "second", 60: "minute", 3600: "hour"}[rate.seconds]
    detail = f"{asker} has made its {rate.quota} requests a {span}; go on in {wait} s"
    return problem(429, detail, headers={"retry-after": str(wait)})
