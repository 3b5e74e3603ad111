"""What the explainer needs of a chat endpoint, and the budget that all its requests are paid from. `scopebase` has the real endpoint."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from api.services.labels.asking import Messages
from schema.errors import InputError


class Spent(Exception):
    """The budget does not allow another request."""


class Refused(InputError):
    """The endpoint says no to what no retry would mend, such as the key."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Budget:
    """What may be spent in one call; None for no end."""

    requests: int | None = None
    tokens: int | None = None


class Purse:
    """What was spent of a budget, and what is set aside. Safe for several threads.

    No request goes out that the budget does not allow, whoever else asks at the moment. How many tokens one uses is only known
    afterwards, so each sets aside what it may use, and only the last one may go over.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.requests = 0
        self.tokens = 0
        self._held = 0
        """Requests that features at work may still need."""
        self._expected = 0
        """Tokens that requests on their way may use."""
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, n: int) -> Iterator[Hold]:
        """Sets aside the requests that one feature needs, so that none is begun that cannot be finished.

        Raises:
            Spent: so many are not left.
        """
        with self._changed:
            self._check_tokens()
            allowed = self.budget.requests
            if allowed is not None and self.requests + self._held + n > allowed:
                left = allowed - self.requests - self._held
                rest = f" but for {left:,}, and a feature needs {n}" if left else ""
                raise Spent(f"the budget of {allowed:,} requests is spent{rest}")
            self._held += n
        held = Hold(self, n)
        try:
            yield held
        finally:
            with self._changed:
                self._held -= held.left
                self._changed.notify_all()

    def begin(self, hold: Hold, expected: int) -> None:
        """One request goes out. Retries are paid from what nobody holds.

        Raises:
            Spent: the budget does not allow it.
        """
        with self._changed:
            while self._expected and self._over(self.tokens + self._expected):
                self._changed.wait()  # those on their way may use less than they may
            self._check_tokens()
            if hold.left:
                hold.left -= 1
                self._held -= 1
            elif self.budget.requests is not None and self.requests + self._held >= self.budget.requests:
                raise Spent(f"the budget of {self.budget.requests:,} requests is spent")
            self.requests += 1
            self._expected += expected

    def end(self, expected: int, used: int) -> None:
        """An answer, or none, has come."""
        with self._changed:
            self._expected -= expected
            self.tokens += used
            self._changed.notify_all()

    def _over(self, tokens: int) -> bool:
        return self.budget.tokens is not None and tokens >= self.budget.tokens

    def _check_tokens(self) -> None:
        if self._over(self.tokens):
            raise Spent(f"the budget of {self.budget.tokens:,} tokens is spent")


@dataclass
class Hold:
    """Requests set aside for one feature."""

    purse: Purse
    left: int


class Chat(Protocol):
    """A chat endpoint with a budget. Safe for several threads."""

    @property
    def model(self) -> str: ...

    @property
    def purse(self) -> Purse: ...

    def ask(self, messages: Messages, hold: Hold) -> str:
        """The answer's text.

        Raises:
            WorkFailed: no answer, after all retries.
            Refused: what no retry would mend.
            Spent: the budget is used up.
        """

    def close(self) -> None: ...


class Explainer(Protocol):
    """The explainer model that whoever runs the service has chosen."""

    @property
    def model(self) -> str: ...

    def chat(self, budget: Budget) -> Chat:
        """A conversation with a budget of its own; to be closed."""
