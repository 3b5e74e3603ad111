"""Any OpenAI-compatible chat endpoint, with a budget, and patience for what passes by itself."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from api.services.labels.asking import Messages
from api.services.labels.chat import Budget, Hold, Purse, Refused
from schema.errors import InputError, WorkFailed

TRIES = 6
LONGEST_ANSWER = 400
"""Tokens."""
LONGEST_WAIT = 60.0
"""Seconds, whatever the endpoint asks for."""
CHARACTERS_A_TOKEN = 4
"""Where the endpoint counts none."""


@dataclass(frozen=True)
class ChosenExplainer:
    """`api.services.labels.chat.Explainer`: the endpoint that a service is started with, and no other."""

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 60.0

    def chat(self, budget: Budget) -> Endpoint:
        return Endpoint(self.url, self.model, self.key, budget, self.timeout)


class Endpoint:
    """`api.services.labels.chat.Chat` over HTTP. Safe for several threads."""

    def __init__(
        self,
        url: str,
        model: str,
        key: str | None = None,
        budget: Budget | None = None,
        timeout: float = 60.0,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        check_address("--endpoint", url)
        self._url = url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self._client = httpx.Client(timeout=timeout, headers={"Authorization": f"Bearer {key}"} if key else {})
        self._wait = wait
        self._jitter = random.Random(0)
        self.model = model
        self.purse = Purse(budget or Budget())

    def close(self) -> None:
        self._client.close()

    def ask(self, messages: Messages, hold: Hold) -> str:
        """See `Chat.ask`."""
        reason = ""
        for attempt in range(TRIES):
            pause = min(2.0**attempt * self._jitter.uniform(0.5, 1.0), LONGEST_WAIT)
            try:
                return self._once(messages, hold)
            except _TryAgain as error:
                reason, pause = error.reason, max(pause, error.asked)
            if attempt < TRIES - 1:
                self._wait(pause)
        raise WorkFailed(f"no answer in {TRIES} tries, the last: {reason[:200]}")

    def _once(self, messages: Messages, hold: Hold) -> str:
        """One request, paid for."""
        asked = sum(len(message["content"]) for message in messages)
        expected, used = asked // CHARACTERS_A_TOKEN + LONGEST_ANSWER, 0
        self.purse.begin(hold, expected)
        try:
            answer = self._post(messages)
            try:
                text = answer["choices"][0]["message"]["content"]
                if not isinstance(text, str):
                    raise TypeError
                counted = (answer.get("usage") or {}).get("total_tokens")
            except (ValueError, KeyError, IndexError, TypeError, AttributeError):
                raise _TryAgain("an answer that is no chat completion") from None
            used = counted if isinstance(counted, int) else (asked + len(text)) // CHARACTERS_A_TOKEN
            return text
        finally:
            self.purse.end(expected, used)

    def _post(self, messages: Messages) -> Any:
        body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": LONGEST_ANSWER}
        try:
            response = self._client.post(self._url, json=body)
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _TryAgain(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__) from None
        if response.status_code == 429 or response.status_code >= 500:
            raise _TryAgain(f"status {response.status_code}", _asked_wait(response.headers.get("retry-after")))
        if response.status_code >= 400:
            said = " ".join(response.text.split())[:200]
            status = response.status_code
            raise Refused(f"{self._url} refuses: status {status}, {said}", status)
        try:
            return response.json()
        except ValueError:
            raise _TryAgain("an answer that is no chat completion") from None


def check_address(option: str, url: str) -> None:
    """Raises InputError for what is no address of an endpoint."""
    if not url.startswith(("http://", "https://")):
        raise InputError(f"{option} {url!r}: an address such as http://localhost:8000/v1")


class _TryAgain(Exception):
    """What may pass by itself."""

    def __init__(self, reason: str, asked: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.asked = asked
        """Seconds that the endpoint wants to be left alone."""


def _asked_wait(header: str | None) -> float:
    """Seconds that the endpoint asks to wait, within reason."""
    try:
        return min(max(float(header or 0), 0.0), LONGEST_WAIT)
    except ValueError:
        return 0.0
