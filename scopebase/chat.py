"""Any OpenAI-compatible chat endpoint, with a budget, and patience for what passes by itself."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from api.services.labels.asking import Messages
from api.services.labels.explaining import Spent
from schema.errors import InputError, WorkFailed

TRIES = 6
LONGEST_WAIT = 60.0
"""Seconds, whatever the endpoint asks for."""
CHARACTERS_A_TOKEN = 4
"""Where the endpoint counts none."""


@dataclass(frozen=True)
class Budget:
    """What may be spent in one call; None for no end."""

    requests: int | None = None
    tokens: int | None = None


class Endpoint:
    """`api.services.labels.explaining.Chat` over HTTP."""

    def __init__(
        self,
        url: str,
        model: str,
        key: str | None = None,
        budget: Budget | None = None,
        timeout: float = 60.0,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        try:
            import httpx
        except ImportError:
            raise InputError("asking an endpoint needs another package: pip install 'scopebase[explain]'") from None
        if not url.startswith(("http://", "https://")):
            raise InputError(f"--endpoint {url!r}: an address such as http://localhost:8000/v1")
        self._errors = (httpx.TransportError, httpx.DecodingError)
        self._url = url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self._client = httpx.Client(timeout=timeout, headers={"Authorization": f"Bearer {key}"} if key else {})
        self._budget = budget or Budget()
        self._wait = wait
        self._jitter = random.Random(0)
        self.model = model
        self.requests = 0
        self.tokens = 0

    def close(self) -> None:
        self._client.close()

    def ask(self, messages: Messages) -> str:
        """See `Chat.ask`."""
        reason = ""
        for attempt in range(TRIES):
            self._check_budget()
            self.requests += 1
            pause = min(2.0**attempt * self._jitter.uniform(0.5, 1.0), LONGEST_WAIT)
            try:
                body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": 400}
                response = self._client.post(self._url, json=body)
            except self._errors as error:
                reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            else:
                if response.status_code == 429 or response.status_code >= 500:
                    reason = f"status {response.status_code}"
                    pause = max(pause, _asked_wait(response.headers.get("retry-after")))
                elif response.status_code >= 400:
                    raise InputError(
                        f"{self._url} refuses: status {response.status_code}, {' '.join(response.text.split())[:200]}"
                    )
                else:
                    try:
                        return self._read(response.json(), messages)
                    except (ValueError, KeyError, IndexError, TypeError):
                        reason = "an answer that is no chat completion"
            if attempt < TRIES - 1:
                self._wait(pause)
        raise WorkFailed(f"no answer in {TRIES} tries, the last: {reason[:200]}")

    def _read(self, answer: dict[str, Any], messages: Messages) -> str:
        text = answer["choices"][0]["message"]["content"]
        if not isinstance(text, str):
            raise TypeError
        said = sum(len(message["content"]) for message in messages) + len(text)
        used = (answer.get("usage") or {}).get("total_tokens")
        self.tokens += used if isinstance(used, int) else said // CHARACTERS_A_TOKEN
        return text

    def _check_budget(self) -> None:
        for name, spent, allowed in (
            ("requests", self.requests, self._budget.requests),
            ("tokens", self.tokens, self._budget.tokens),
        ):
            if allowed is not None and spent >= allowed:
                raise Spent(f"the budget of {allowed:,} {name} is spent")


def _asked_wait(header: str | None) -> float:
    """Seconds that the endpoint asks to wait, within reason."""
    try:
        return min(max(float(header or 0), 0.0), LONGEST_WAIT)
    except ValueError:
        return 0.0
