"""How every group of questions is asked: one service, its addresses, its pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar
from urllib.parse import quote

from pydantic import BaseModel

from schema.wire.base import Page
from schema.wire.frames import columns_of
from scopebase.client.rows import Rows
from scopebase.client.transport import Transport

P = ParamSpec("P")
Item = TypeVar("Item", bound=BaseModel)
Answer = TypeVar("Answer", bound=BaseModel)
Found = TypeVar("Found", covariant=True)
PAGE = 1000


class Paged(Protocol[Found]):
    """An answer that is one page of several."""

    @property
    def data(self) -> Sequence[Found]: ...

    @property
    def next_cursor(self) -> str | None: ...


class Asking:
    """What the groups of questions share."""

    _transport: Transport

    def each(self, method: Callable[P, Paged[Item]], *args: P.args, **kwargs: P.kwargs) -> Iterator[Item]:
        """Every item of an answer that comes in pages, asked for page by page: `client.each(client.diff, "gsm8k", "math")`.

        The pages are of one snapshot, whatever is indexed meanwhile.
        """
        rest: Any = kwargs
        while True:
            page = method(*args, **rest)
            yield from page.data
            if page.next_cursor is None:
                return
            rest = {**rest, "cursor": page.next_cursor}

    def _get(self, path: str, shape: type[Answer], params: Mapping[str, Any], **parts: object) -> Answer:
        return self._transport.ask("GET", _fill(path, parts), shape, params=params)

    def _post(self, path: str, shape: type[Answer], body: Mapping[str, Any], **parts: object) -> Answer:
        return self._transport.ask("POST", _fill(path, parts), shape, json=given(body))

    def _patch(self, path: str, shape: type[Answer], body: Mapping[str, Any], **parts: object) -> Answer:
        return self._transport.ask("PATCH", _fill(path, parts), shape, json=body)

    def _delete(self, path: str, shape: type[Answer], params: Mapping[str, Any], **parts: object) -> Answer:
        return self._transport.ask("DELETE", _fill(path, parts), shape, params=params)

    def _all(self, path: str, shape: type[Page[Item]], params: Mapping[str, Any], **parts: object) -> Rows[Item]:
        """Every item of a list, whatever its length."""

        def page(cursor: str | None = None) -> Page[Item]:
            return self._get(path, shape, {**params, "limit": PAGE, "cursor": cursor}, **parts)

        return Rows(self.each(page), columns_of(shape))

    def _upload(
        self,
        path: str,
        shape: type[Answer],
        file: str | Path,
        params: Mapping[str, Any],
        kind: str = "application/octet-stream",
    ) -> Answer:
        """What the service says of a file that is sent to it. It is streamed, takes as long as it takes, and is sent once."""
        with Path(file).open("rb") as content:
            return self._transport.ask(
                "POST",
                path,
                shape,
                params=params,
                content=content,
                headers={"content-type": kind},
                timeout=None,
                again=False,
            )

    def _save(self, method: str, path: str, to: str | Path, **request: Any) -> Path:
        """An answer of any size, into a file."""
        return self._transport.save(method, path, Path(to), **request)


def _fill(path: str, parts: Mapping[str, object]) -> str:
    """`/features/{feature}` with the feature's id, whose slashes stay."""
    return path.format(**{name: quote(str(value), safe="/") for name, value in parts.items()})


def given(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}
