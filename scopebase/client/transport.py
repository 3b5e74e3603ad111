"""One request: sent, tried again where that is right, and its refusal raised as the error that the service raised."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from schema.errors import (
    Conflict,
    Forbidden,
    InputError,
    NotFound,
    ScopebaseError,
    TooLarge,
    TooMany,
    Unauthorized,
    WorkFailed,
)
from schema.wire.base import Problem, Progress

Answer = TypeVar("Answer", bound=BaseModel)
Line = TypeVar("Line", bound=Progress)
LONGEST_WAIT = 60.0
"""Seconds; a service that asks for more is believed to mean it, and its answer is raised."""
RAISED: dict[int, type[ScopebaseError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    429: TooMany,
}


class NobodyThere(WorkFailed):
    """No service listens at the address, or not yet."""


class Transport:
    """Requests to one service."""

    def __init__(self, http: httpx.Client, retries: int) -> None:
        self.http, self.retries = http, retries

    def ask(self, method: str, path: str, shape: type[Answer], **request: Any) -> Answer:
        """A JSON answer as its type. What a newer service says besides is left out."""
        response = self.send(method, path, **request)
        return _understood(shape, response.content, response.url)

    def send(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, again: bool = True, **request: Any
    ) -> httpx.Response:
        """The response to a request that was not refused.

        Args:
            again: whether the request can be sent a second time; a file's content cannot.

        Raises:
            ScopebaseError: what the service raised, with its sentence; WorkFailed where none answers.
        """
        retries = self.retries if again else 0
        for attempt in range(retries + 1):
            try:
                with self._in_words():
                    response = self.http.request(method, path, params=_given(params), **request)
            except NobodyThere:
                if attempt == retries:
                    raise
                time.sleep(_pause(attempt))
                continue
            wait = _asked_to_wait(response)
            if response.is_success:
                return response
            if attempt == retries or wait is None or wait > LONGEST_WAIT:
                raise refusal(response)
            time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def stream(self, path: str, shape: type[Answer], body: Mapping[str, Any]) -> Iterator[Answer]:
        """The pieces of a streamed answer, as they come.

        Raises:
            ScopebaseError: as `send`; also in mid-stream, where the service says so or the stream ends before its end.
        """
        for attempt in range(self.retries + 1):
            with self._in_words(), self.http.stream("POST", path, json=body) as response:
                wait = _asked_to_wait(response)
                if response.is_success:
                    yield from _pieces(response, shape)
                    return
                response.read()
            if attempt == self.retries or wait is None or wait > LONGEST_WAIT:
                raise refusal(response)
            time.sleep(wait)

    def events(self, path: str, shape: type[Answer], after: int) -> Iterator[Answer]:
        """Server-sent events after that one, until the service ends them.

        Raises:
            ScopebaseError: as `send`; also where the line is cut.
        """
        headers = {"accept": "text/event-stream", "last-event-id": str(after)}
        with self._in_words(), self.http.stream("GET", path, headers=headers) as response:
            if not response.is_success:
                response.read()
                raise refusal(response)
            for line in response.iter_lines():
                if line.startswith("data: "):
                    yield _understood(shape, line.removeprefix("data: "), response.url)

    def save(
        self, method: str, path: str, to: Path, *, params: Mapping[str, Any] | None = None, **request: Any
    ) -> Path:
        """A response of any size, into a file, which is only there once it is whole.

        Raises:
            ScopebaseError: as `send`.
        """
        part = to.with_name(f"{to.name}.part")
        with self._in_words(), self.http.stream(method, path, params=_given(params), **request) as response:
            if not response.is_success:
                response.read()
                raise refusal(response)
            with part.open("wb") as file:
                for piece in response.iter_bytes():
                    file.write(piece)
        return part.replace(to)

    def follow(
        self, path: str, shape: type[Line], body: Mapping[str, Any], advance: Callable[[int, int], None]
    ) -> Line:
        """The last line of work that says how far it is.

        Args:
            advance: told how much is done, and of how much, as often as the service says it.

        Raises:
            ScopebaseError: as `send`, or what went wrong on the way.
        """
        headers = {"accept": "application/x-ndjson"}
        with self._in_words(), self.http.stream("POST", path, json=body, headers=headers) as response:
            if not response.is_success:
                response.read()
                raise refusal(response)
            for text in response.iter_lines():
                line = shape.model_validate_json(text, extra="ignore")
                if line.problem is not None:
                    raise raised(line.problem.status, line.problem.detail)
                advance(line.done, line.of)
                if getattr(line, "report", None) is not None:
                    return line
        raise WorkFailed(f"the answer of {self.http.base_url} broke off; ask again, and the work goes on")

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        """What can go wrong on the way, as sentences."""
        where = self.http.base_url
        try:
            yield
        except httpx.ConnectError as error:
            raise NobodyThere(f"nobody answers at {where}: {error}") from error
        except httpx.TimeoutException as error:
            raise WorkFailed(
                f"no answer from {where} in time; ask for less, or give Client(timeout=...) more"
            ) from error
        except httpx.HTTPError as error:
            raise WorkFailed(f"the answer of {where} broke off: {error}") from error


def _understood(shape: type[Answer], text: str | bytes, url: httpx.URL) -> Answer:
    try:
        return shape.model_validate_json(text, extra="ignore")
    except ValidationError as error:
        raise WorkFailed(
            f"{url} answered what this client does not understand ({error.error_count()} faults); "
            "upgrade it with: pip install -U scopebase"
        ) from error


def refusal(response: httpx.Response) -> ScopebaseError:
    """The error that a refused request stands for."""
    status = response.status_code
    try:
        detail = Problem.model_validate_json(response.content, extra="ignore").detail
    except ValidationError:
        return WorkFailed(
            f"{response.url.copy_with(query=None)} answered {status} {response.reason_phrase} without saying why; "
            "is a Scopebase service there?"
        )
    return raised(status, detail)


def raised(status: int, detail: str) -> ScopebaseError:
    """What the service raised."""
    return RAISED.get(status, InputError if status < 500 else WorkFailed)(detail)


def _pieces(response: httpx.Response, shape: type[Answer]) -> Iterator[Answer]:
    """Server-sent events in OpenAI's manner: each is one line of JSON, and the last one says that it was the last."""
    rest = b""
    for some in response.iter_bytes():
        *whole, rest = (rest + some).split(b"\n\n")
        for event in whole:
            data = event.removeprefix(b"data: ")
            if data == b"[DONE]":
                return
            if data.startswith(b"{") and b'"error":' in data:
                _raise_told(data)
            yield shape.model_validate_json(data, extra="ignore")
    raise WorkFailed(f"the stream of {response.url} broke off before its end; what came of it is only a part")


def _raise_told(data: bytes) -> None:
    """Raises the error that an event tells, if it tells one; a text may hold the word too."""
    with suppress(ValidationError):
        told = Problem.model_validate_json(data, extra="ignore")
        raise raised(told.status, told.detail)


def _asked_to_wait(response: httpx.Response) -> float | None:
    """Seconds after which the service wants to be asked again; None where it does not."""
    text = response.headers.get("retry-after")
    if response.status_code not in (429, 503) or text is None:
        return None
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def _pause(attempt: int) -> float:
    """Longer each time, and not for all clients the same."""
    return min(5.0, 0.25 * 2.0**attempt) * random.uniform(0.5, 1.0)


def _given(params: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (params or {}).items() if value is not None}
