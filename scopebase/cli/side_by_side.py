"""Generated texts on a terminal: steered and unsteered beside each other, while they come and when they are there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from schema.wire.chat import ChatChunk
from schema.wire.completions import CompletionChunk
from schema.wire.sampling import Usage
from schema.wire.steering import OpApplied, SteeringApplied
from scopebase.cli.console import OUT, shown, table

NO_UNIT = ("multiply", "suppress", "ablate")
WIDE = 72
"""Columns from which two texts stand beside each other."""


@dataclass
class Sheet:
    """Texts in the making."""

    prompt: str = ""
    texts: dict[int, str] = field(default_factory=dict)
    finish: dict[int, str] = field(default_factory=dict)
    seeds: dict[int, int] = field(default_factory=dict)
    unsteered: set[int] = field(default_factory=set)
    applied: SteeringApplied | None = None
    usage: Usage | None = None
    _live: Live | None = None

    def take(self, chunk: CompletionChunk | ChatChunk) -> None:
        """One more piece."""
        for choice in chunk.choices:
            text = choice.text if hasattr(choice, "text") else choice.delta.content or ""
            self.texts[choice.index] = self.texts.get(choice.index, "") + text
            if chunk.unsteered:
                self.unsteered.add(choice.index)
            if choice.finish_reason is not None:
                self.finish[choice.index] = choice.finish_reason
            if choice.seed is not None:
                self.seeds[choice.index] = choice.seed
        self.applied = chunk.steering_applied or self.applied
        self.usage = chunk.usage or self.usage
        if self._live is not None:
            self._live.update(self.panels())

    @contextmanager
    def drawn(self, live: bool) -> Iterator[None]:
        """Shows the texts while they come, if that is wanted."""
        if not live:
            yield
            return
        with Live(console=OUT, transient=True, refresh_per_second=12, vertical_overflow="ellipsis") as self._live:
            yield
        self._live = None

    def panels(self) -> RenderableType:
        """Every choice, with its unsteered twin."""
        asked = sorted(set(self.texts) - self.unsteered)
        twins = dict(zip(asked, sorted(self.unsteered), strict=False))
        rows = []
        for index in asked:
            title = "steered" if self.unsteered else "text"
            both = [self._panel(index, f"{title} {index + 1}" if len(asked) > 1 else title, "cyan")]
            if index in twins:
                both.append(self._panel(twins[index], "unsteered", "dim"))
            rows.append(_beside(both))
        return Group(*rows)

    def _panel(self, index: int, title: str, style: str) -> Panel:
        told = [word for word in (self.finish.get(index), self._seed(index)) if word]
        text = Text.assemble((lines(self.prompt), "dim"), lines(self.texts.get(index, "")))
        return Panel(text, title=title, subtitle=" · ".join(told) or None, border_style=style)

    def _seed(self, index: int) -> str | None:
        return f"seed {self.seeds[index]}" if index in self.seeds else None


def show_answer(sheet: Sheet) -> None:
    """The texts, and what steering did."""
    OUT.print(sheet.panels())
    if sheet.applied is not None:
        show_applied(sheet.applied)
    if sheet.usage is not None:
        OUT.print(
            f"{sheet.usage.prompt_tokens:,} tokens read, {sheet.usage.completion_tokens:,} generated", style="dim"
        )


def show_applied(applied: SteeringApplied) -> None:
    """What each operation did, over all texts."""
    heads = ("layer", "prompt", "generated", "added/|h|", "largest", "before", "after")
    made = table("op", *heads, right=set(heads))
    for place, op in enumerate(applied.ops, start=1):
        tokens = (f"{op.prompt_tokens:,}", f"{op.generated_tokens:,}")
        made.add_row(str(place), str(op.layer), *tokens, *(_number(value) for value in _measured(op)))
    OUT.print(made)
    for place, op in enumerate(applied.ops, start=1):
        unit = "" if op.mode in NO_UNIT else f" {op.unit}"
        OUT.print(Text(f"{place}: {op.mode} {op.strength:g}{unit} of {shown(op.target)}"), style="dim", soft_wrap=True)
    OUT.print(_measures(applied), style="dim")


def _measures(applied: SteeringApplied) -> str:
    told = []
    if applied.condition_tokens is not None:
        told.append(f"condition held at {applied.condition_tokens:,} tokens")
    if applied.kl_first is not None:
        told.append(f"KL of the first token {applied.kl_first:.3g} nats")
    if applied.kl_mean is not None:
        told.append(f"of all {applied.kl_mean:.3g}")
    return " · ".join((*told, f"engine {applied.engine} {applied.version}"))


def _measured(op: OpApplied) -> tuple[float | None, ...]:
    return op.mean_relative_norm, op.max_relative_norm, op.activation_before, op.activation_after


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _beside(panels: list[Panel]) -> RenderableType:
    if len(panels) == 1 or OUT.width < WIDE:
        return Group(*panels)
    grid = Table.grid(expand=True)
    for _ in panels:
        grid.add_column(ratio=1)
    grid.add_row(*panels)
    return grid


def lines(text: str) -> str:
    """Text of a model: its lines stay, what would steer a terminal does not."""
    return "\n".join(shown(line) for line in text.split("\n"))
