"""A sweep as a picture: each effect and the cost against strength, with what the controls do behind it."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

from api.services.sweeps.effects import names_of
from schema.errors import InputError
from schema.wire.steering import OpSpec
from schema.wire.sweeps import Estimate, Point, SweepAnswer

INK, SOFT, GRID = "#1b2733", "#5d6b78", "#e3e8ed"
TARGET, NULL, COST, GOOD = "#0b7a8f", "#8a96a3", "#b4532a", "#2f7d4f"
WIDTH, FIRST, OTHER = 7.6, 2.7, 1.7
"""Inches: the picture's width, the first panel's height and the others'."""
Pick = Callable[[Point], Estimate | None]


def plot_svg(sweep: SweepAnswer) -> str:
    """The points that are done.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("drawing a sweep needs matplotlib; pip install 'scopebase[plot]'") from None

    names = names_of(sweep.request.effects)
    heights = [FIRST, *[OTHER] * (len(names) - 1), OTHER, OTHER]
    style = {"svg.fonttype": "none", "svg.hashsalt": sweep.name, "font.family": "sans-serif", "font.size": 9.5}
    style |= {"axes.edgecolor": SOFT, "axes.labelcolor": INK, "xtick.color": SOFT, "ytick.color": SOFT}
    style |= {"font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "DejaVu Sans"]}
    with rc_context(style):
        figure = Figure(figsize=(WIDTH, sum(heights) + 1.15), layout="constrained")
        panels = figure.subplots(
            len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
        ).ravel()
        for place, name in enumerate(names):
            _effect(panels[place], sweep, place, name)
        _perplexity(panels[-2], sweep)
        _repetition(panels[-1], sweep)
        for panel in panels:
            _dress(panel, sweep)
        panels[-1].set_xlabel(f"strength ({unit_of(sweep.request.target[0])})")
        panels[0].set_title(_title(sweep), loc="left", fontsize=10.5, color=INK, pad=26, wrap=True)
        for panel, side in ((panels[0], "lower left"), (panels[-2], "upper center")):
            if panel.get_legend_handles_labels()[0]:
                where = {"bbox_to_anchor": (-0.01, 1.0)} if side == "lower left" else {}
                panel.legend(loc=side, ncols=3, frameon=False, fontsize=8.5, **where)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Title": f"Sweep {sweep.name}"})
    return out.getvalue()


def unit_of(spec: OpSpec) -> str:
    """What the strengths of an operation are counted in."""
    own = {"suppress": "share removed", "ablate": "share removed", "multiply": "factor"}
    return own.get(spec.mode, spec.unit.replace("_", " "))


def _title(sweep: SweepAnswer) -> str:
    target = " + ".join(sweep.target)
    said = (
        f"suggested strength {sweep.suggested:g}"
        if sweep.suggested is not None
        else "no strength suggested"
        if sweep.suggestion is not None
        else f"{sweep.n_done} of {sweep.n_points} points"
    )
    return f"{sweep.name}: {sweep.request.target[0].mode} {target}\n{said}"


def _effect(panel: Any, sweep: SweepAnswer, place: int, name: str) -> None:
    kinds = {
        "random_feature": ("random features, mean and range", NULL, "-"),
        "random_direction": ("random directions, mean and range", NULL, ":"),
    }
    for kind, (label, colour, line) in kinds.items():
        nulls = [n for n in sweep.nulls if n.kind == kind and n.effect == name and n.mean is not None]
        if nulls:
            base = _at_zero(sweep, lambda p: p.effects[place].value)
            for side in (-1, 1):
                own = sorted((n for n in nulls if n.strength * side > 0), key=lambda n: n.strength)
                if own:
                    rows = [(n.strength, n.mean, n.low, n.high) for n in own]
                    rows = sorted([*rows, *([(0.0, base, base, base)] if base is not None else [])])
                    x, mean, low, high = zip(*rows, strict=True)
                    _line(
                        panel, x, mean, low, high, colour, line, label if side == 1 or len(own) == len(nulls) else None
                    )
    _curve(panel, sweep, lambda p: p.effects[place].value, TARGET, "target, 95 % over prompts")
    if not any(point.effects[place].value.high for point in sweep.points):
        panel.set_ylim(0, 0.1)  # nothing anywhere: a line at the bottom, and no negative shares on the axis
    panel.set_ylabel(_short(name))


def _perplexity(panel: Any, sweep: SweepAnswer) -> None:
    one = Estimate(value=1.0, low=1.0, high=1.0)

    def ratio(point: Point) -> Estimate | None:
        return one if point.kind == "unsteered" else point.perplexity_ratio

    _controls(panel, sweep, ratio)
    _curve(panel, sweep, ratio, COST, None)
    panel.set_yscale("log")
    _bound(panel, sweep.request.bounds.perplexity, f"most: {sweep.request.bounds.perplexity:g} ×")
    low, high = panel.get_ylim()
    low, high = min(low, 0.8), max(high, sweep.request.bounds.perplexity * 1.2)
    panel.set_ylim(low, high)
    _log_ticks(panel, low, high)
    panel.set_ylabel("perplexity ×")


def _repetition(panel: Any, sweep: SweepAnswer) -> None:
    _controls(panel, sweep, lambda p: p.repetition)
    _curve(panel, sweep, lambda p: p.repetition, COST, None)
    base = _at_zero(sweep, lambda p: p.repetition)
    if base is not None:
        _bound(panel, base + sweep.request.bounds.repetition, f"most: {sweep.request.bounds.repetition:g} more")
    panel.set_ylim(bottom=0)
    panel.set_ylabel("repeated\n4-grams")


def _bound(panel: Any, value: float, label: str) -> None:
    """What a suggested strength may cost."""
    panel.axhline(value, color=COST, lw=0.9, ls=(0, (4, 3)), zorder=1)
    panel.annotate(
        label,
        (1, value),
        (0, 2),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color=COST,
    )


def _curve(panel: Any, sweep: SweepAnswer, pick: Pick, colour: str, label: str | None) -> None:
    """The target over all its strengths, through the unsteered point."""
    rows = []
    for point in sweep.points:
        found = pick(point) if point.kind in ("target", "unsteered") else None
        if found is not None and found.value is not None:
            rows.append((point.strength, found.value, found.low, found.high))
    if rows:
        x, value, low, high = zip(*sorted(rows), strict=True)
        _line(panel, x, value, low, high, colour, "-", label, marker="o")


def _controls(panel: Any, sweep: SweepAnswer, pick: Pick) -> None:
    """Every single control as a dot: its cost belongs beside the target's."""
    rows = [
        (p.strength, found.value)
        for p in sweep.points
        if p.control is not None and (found := pick(p)) is not None and found.value is not None
    ]
    if rows:
        x, y = zip(*rows, strict=True)
        panel.plot(x, y, ls="", marker="o", ms=3, mew=0, color=NULL, alpha=0.7, label="each random control", zorder=2)


def _line(
    panel: Any,
    x: Sequence[float],
    value: Any,
    low: Any,
    high: Any,
    colour: str,
    line: str,
    label: str | None,
    marker: str = "",
) -> None:
    panel.fill_between(x, low, high, color=colour, alpha=0.16, lw=0, zorder=2)
    panel.plot(x, value, color=colour, lw=1.7, ls=line, marker=marker, ms=4, label=label, zorder=3)


def _dress(panel: Any, sweep: SweepAnswer) -> None:
    panel.grid(axis="y", color=GRID, lw=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.axvline(0, color=GRID, lw=1.0, zorder=1)
    if sweep.suggested is not None:
        panel.axvline(sweep.suggested, color=GOOD, lw=1.4, ls=(0, (1, 1.5)), zorder=2)
    panel.margins(x=0.03)


def _log_ticks(panel: Any, low: float, high: float) -> None:
    """A few round numbers, for an axis that may span less than a decade or many."""
    decades = math.log10(high / low)
    steps = (1, 1.5, 2, 3, 5, 7) if decades < 0.8 else (1, 2, 5) if decades < 2.2 else (1,)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    jump = max(1, (last - first) // 5)
    ticks = [s * 10.0**d for d in range(first, last + 1, jump) for s in steps if low <= s * 10.0**d <= high]
    panel.set_yticks(ticks, [f"{tick:,.3g}" for tick in ticks])
    panel.minorticks_off()


def _at_zero(sweep: SweepAnswer, pick: Pick) -> float | None:
    found = next((pick(p) for p in sweep.points if p.kind == "unsteered"), None)
    return found.value if found else None


def _short(name: str) -> str:
    """A label that fits beside its axis."""
    words, lines = name.split(" "), [""]
    for word in words:
        word = "/".join(word.split("/")[-2:])
        if len(lines[-1]) + len(word) > 18 and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines[:3])
