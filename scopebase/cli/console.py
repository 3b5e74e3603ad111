"""What a person sees: tables on standard output, progress on standard error."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import BaseModel
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.style import Style
from rich.table import Table
from rich.text import Text

OUT = Console(soft_wrap=False, highlight=False, markup=False)  # what people wrote into data is text, never style
ERRORS = Console(stderr=True, highlight=False, markup=False)
PLAIN_SECONDS = 10.0


def print_json(answer: BaseModel) -> None:
    """One JSON document on standard output, for programs."""
    OUT.out(answer.model_dump_json(indent=2), highlight=False)


def table(*columns: str, title: str | None = None, right: frozenset[str] | set[str] = frozenset()) -> Table:
    """A table without boxes that fits a terminal."""
    made = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        header_style="bold",
        show_edge=False,
    )
    for place, name in enumerate(columns):
        made.add_column(
            name, justify="right" if name in right else "left", overflow="fold", no_wrap=place == 0 or name in right
        )
    return made


def shown(text: str) -> str:
    """Text from data without what would steer a terminal: control and direction characters become a dot, white space a space."""
    return "".join(_harmless(char) for char in text)


def _harmless(char: str) -> str:
    if char in "\n\t\r":
        return " "
    return "·" if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co") and char != "\u200d" else char


def heat(share: float | None) -> Text:
    """A share as two digits on a ground that darkens with it."""
    if share is None:
        return Text("–")
    level = round(share * 5)
    ground = ("#16202a", "#173a4a", "#17566a", "#16758a", "#1296a8", "#0fb9c6")[level]
    return Text(f" {share:.2f} ", style=Style(color="white" if level < 4 else "black", bgcolor=ground))


def number(value: float) -> str:
    """1234567 as 1.23M."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g}{letter}"
    return f"{value:,.0f}"


def size(n_bytes: float) -> str:
    """Bytes in the unit that a person reads."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {rest:02d}s" if minutes else f"{seconds:.1f}s"


class DrawnProgress:
    """`indexer.progress.Progress` for people: bars with rates and time left; plain lines now and then where nobody sees a bar."""

    def say(self, text: str) -> None:
        ERRORS.print(text, markup=False)

    @contextmanager
    def bar(self, title: str, total: int | None = None, done: int = 0) -> Iterator[DrawnBar]:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=ERRORS, transient=True, disable=not ERRORS.is_terminal) as progress:
            bar = DrawnBar(
                progress, progress.add_task(title, total=total, completed=done, rate="", note=""), title, total, done
            )
            yield bar
        bar.close()

    def border(self) -> None:
        """Whoever wants a command to end interrupts it."""


class DrawnBar:
    """One bar."""

    def __init__(self, progress: Progress, task: TaskID, title: str, total: int | None, done: int) -> None:
        self.progress, self.task, self.title, self.total, self.done = progress, task, title, total, done
        self.begin = self.said = time.monotonic()
        self.before = done
        self.tokens = 0
        self.noted = ""

    def advance(self, amount: int, tokens: int = 0) -> None:
        self.done += amount
        self.tokens += tokens
        self.progress.update(self.task, advance=amount, rate=self._rate())
        if not ERRORS.is_terminal and time.monotonic() - self.said > PLAIN_SECONDS:
            self.said = time.monotonic()
            ERRORS.print(
                f"{self.title}: {self.done:,}{f' of {self.total:,}' if self.total else ''} "
                f"{self._rate()} {self._left()} {self.noted}".rstrip(),
                markup=False,
            )

    def note(self, text: str) -> None:
        """Who is at it, and with what."""
        self.noted = text
        self.progress.update(self.task, note=text)

    def reach(self, amount: int, total: int) -> None:
        """Advances where only the work itself finds out how much there is."""
        if total != (self.total or 0):
            self.total = total
            self.progress.update(self.task, total=total)
        self.advance(amount)

    def _rate(self) -> str:
        return f"{number(self.tokens / max(time.monotonic() - self.begin, 1e-3))} tokens/s" if self.tokens else ""

    def _left(self) -> str:
        worked = self.done - self.before
        if not self.total or not worked:
            return ""
        return f"{duration((time.monotonic() - self.begin) / worked * (self.total - self.done))} left"

    def close(self) -> None:
        if self.tokens:
            seconds = time.monotonic() - self.begin
            ERRORS.print(
                f"{self.title}: {self.done:,} samples, {self.tokens:,} tokens in {duration(seconds)} ({self._rate()})",
                markup=False,
            )
