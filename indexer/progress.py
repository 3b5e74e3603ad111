"""What the indexer tells whoever watches. The command line draws it; the default keeps silent."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Bar(Protocol):
    """One measured piece of work."""

    def advance(self, amount: int, tokens: int = 0) -> None:
        """So much more is done; tokens, where that is what the rate is told in."""

    def note(self, text: str) -> None:
        """Who is at it, and with what."""


class Progress(Protocol):
    """Somebody who watches."""

    def say(self, text: str) -> None:
        """One line about what goes on."""

    def bar(self, title: str, total: int | None = None, done: int = 0) -> AbstractContextManager[Bar]:
        """A bar over `total` units of work, of which `done` were done before."""

    def border(self) -> None:
        """Between two pieces of work, where nothing is half done: whoever wants the work to end here raises."""


class NoBar:
    """A bar that nobody sees."""

    def advance(self, amount: int, tokens: int = 0) -> None: ...

    def note(self, text: str) -> None: ...


class Silent:
    """Tells nobody."""

    def say(self, text: str) -> None: ...

    def bar(self, title: str, total: int | None = None, done: int = 0) -> AbstractContextManager[Bar]:
        return nullcontext(NoBar())

    def border(self) -> None: ...
