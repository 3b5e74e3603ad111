"""What a person sees of sweeps."""

from __future__ import annotations

from collections.abc import Sequence

from rich.padding import Padding
from rich.text import Text

from schema.wire.contrast import ProposeAnswer
from schema.wire.sweeps import Estimate, Null, Point, SweepAnswer, SweepItem, SweepText
from scopebase.cli.console import OUT, shown, table

BARS = "▁▂▃▄▅▆▇█"


def show_proposals(answer: ProposeAnswer) -> None:
    sides = f"{answer.n[0]:,} positive and {answer.n[1]:,} negative texts"
    model = next(iter(answer.n_tested)).partition("/")[0]
    OUT.print(f"{model}: {sides}, {len(answer.n_tested)} SAEs", style="bold")
    heads = ("d", "mean +", "mean −", "rate +", "rate −", "q")
    named = ["label"] if any(item.label for item in answer.data) else []
    made = table("feature", *heads, *named, right=set(heads))
    for item in answer.data:
        q = item.rate_q_value if item.q_value is None else item.q_value
        size = "–" if item.effect_size is None else f"{item.effect_size:.2f}"
        means, rates = [f"{m:.3g}" for m in item.means], [f"{r:.0%}" for r in item.rates]
        made.add_row(
            _short(item.feature), size, *means, *rates, f"{q:.0e}" if q < 0.001 else f"{q:.3f}", shown(item.label or "")
        )
    OUT.print(made)
    if answer.reason:
        OUT.print(shown(answer.reason), style="dim")
    if answer.data:
        first = answer.data[0]
        strengths = ",".join(f"{s:g}" for s in first.strengths)
        OUT.print(
            f"next: scopebase sweep run NAME --target {first.feature} --strengths {strengths} --unit {first.unit} "
            "--prompt ... --effect ...",
            style="dim",
            soft_wrap=True,
        )


def show_sweeps(sweeps: Sequence[SweepItem]) -> None:
    made = table("sweep", "model", "target", "state", "points", "suggested", "author", right={"points", "suggested"})
    for each in sweeps:
        suggested = "–" if each.suggested is None else f"{each.suggested:g}"
        target = " + ".join(_short(name) for name in each.target)
        points = f"{each.n_done} of {each.n_points}"
        made.add_row(each.name, each.model, target, each.state, points, suggested, shown(each.author))
    OUT.print(made if sweeps else "There is no sweep yet; 'scopebase sweep run NAME ...' makes one.")


def show_sweep(sweep: SweepAnswer) -> None:
    target = " + ".join(sweep.target)
    OUT.print(Text(f"{sweep.name}: {sweep.request.target[0].mode} {target} ({_unit(sweep)})", style="bold"))
    if sweep.error:
        OUT.print(shown(sweep.error), style="red")
    if not sweep.points:
        OUT.print(f"no point is done yet ({sweep.state})")
        return
    for place, effect in enumerate(sweep.points[0].effects):
        _table(sweep, place, effect.name)
    if sweep.suggestion is None:
        OUT.print(
            f"\n{sweep.n_done} of {sweep.n_points} points ({sweep.state}); the same command goes on", style="bold"
        )
    else:
        style = "bold green" if sweep.suggested is not None else "bold yellow"
        OUT.print(Text(f"\nSuggested strength: {shown(sweep.suggestion.reason)}", style=style))
        if sweep.suggestion.strongest is not None:
            OUT.print(f"Strongest that passes: {sweep.suggestion.strongest:g}", style="green")
        OUT.print(Padding(Text(shown(sweep.suggestion.rule), style="dim"), (0, 0, 0, 2)))
    made = sweep.made
    OUT.print(
        f"{made.n_prompts} prompts x {sweep.request.samples} · {sweep.request.max_tokens} tokens · temperature "
        f"{sweep.request.temperature:g} · seed {sweep.request.seed} · {made.engine} · intervals: 95 %, bootstrap over prompts",
        style="dim",
        markup=False,
    )


def _table(sweep: SweepAnswer, place: int, name: str) -> None:
    """The target by strength; the controls of each strength as their mean and range."""
    points = sorted((p for p in sweep.points if p.kind in ("target", "unsteered")), key=lambda p: p.strength)
    best = max((p.effects[place].value.value or 0.0 for p in points), default=0.0)
    OUT.print(Text(f"\n{shown(name)}", style="bold"))
    heads = ("point", "strength", "effect", "95 %", "random", "range", "ppl ×", "repeats")
    made = table(*heads, "", right=set(heads))
    for point in points:
        effect = point.effects[place].value
        nulls = [n for n in sweep.nulls if n.effect == name and n.strength == point.strength and n.mean is not None]
        ratio = point.perplexity_ratio
        made.add_row(
            str(point.place),
            f"{point.strength:g}" if point.kind == "target" else "0",
            _number(effect.value),
            _interval(effect),
            _mean(nulls),
            _range(nulls),
            "–" if ratio is None or ratio.value is None else f"{ratio.value:.2f}",
            _number(point.repetition.value),
            _bar(effect.value, best),
            style="bold green" if _is_suggested(sweep, point) else "" if point.strength > 0 else "dim",
        )
    OUT.print(made)


def show_texts(texts: Sequence[SweepText]) -> None:
    for each in texts:
        measured = "  ".join(f"{name} {_number(value)}" for name, value in each.effects.items())
        cost = "" if each.perplexity is None else f"  perplexity {each.perplexity:.3g}"
        OUT.print(Text.assemble((shown(each.prompt), "bold"), shown(each.text)))
        OUT.print(Padding(Text(f"{shown(measured)}{cost}  seed {each.seed}", style="dim"), (0, 0, 1, 2)))


def _is_suggested(sweep: SweepAnswer, point: Point) -> bool:
    return point.kind == "target" and sweep.suggested is not None and point.strength == sweep.suggested


def _mean(nulls: Sequence[Null]) -> str:
    values = [null.mean for null in nulls if null.mean is not None]
    return _number(sum(values) / len(values)) if values else ""


def _range(nulls: Sequence[Null]) -> str:
    low = min((n.low for n in nulls if n.low is not None), default=None)
    high = max((n.high for n in nulls if n.high is not None), default=None)
    return "" if low is None or high is None else f"{low:.2g}–{high:.2g}"


def _interval(estimate: Estimate) -> str:
    return "" if estimate.low is None or estimate.high is None else f"{estimate.low:.2g}–{estimate.high:.2g}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g}"


def _bar(value: float | None, best: float) -> Text:
    if value is None or best <= 0:
        return Text("")
    return Text(BARS[min(7, int(8 * max(0.0, value) / best))], style="cyan")


def _unit(sweep: SweepAnswer) -> str:
    from api.services.sweeps.plot import unit_of

    return "strength: " + " and ".join(sorted({unit_of(spec) for spec in sweep.request.target}))


def _short(name: str) -> str:
    """`model/12-set/7` as `12-set/7`."""
    return name.split("/", 1)[-1]
