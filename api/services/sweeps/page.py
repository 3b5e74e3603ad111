"""A sweep as one page of HTML: the picture, the suggestion with its rule, and a text of each point."""

from __future__ import annotations

from html import escape

from api.services.sweeps.plot import plot_svg
from schema.wire.sweeps import Estimate, Point, SweepAnswer

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1b2733;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.35rem;margin:0 0 .2rem}.soft{color:#5d6b78}.said{border-left:4px solid #2f7d4f;padding:.4rem .9rem;background:#f4f8f5}
.none{border-color:#b4532a;background:#fbf5f2}svg{width:100%;height:auto;max-width:46rem}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #e3e8ed;vertical-align:top}
th{font-weight:600;max-width:9rem;overflow-wrap:break-word}.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
th.h{text-align:right}tr.control td{color:#5d6b78}td.text{min-width:14rem;width:45%;overflow-wrap:anywhere}
td.what{overflow-wrap:anywhere;min-width:7rem}
"""
EMPTY = "<span class=soft>(ended before a word)</span>"


def sweep_html(sweep: SweepAnswer) -> str:
    """One file that needs no other; whatever people or models wrote is text in it.

    Raises:
        InputError: matplotlib is not installed.
    """
    svg = plot_svg(sweep)
    rows = "\n".join(_row(point) for point in sweep.points)
    heads = "".join(f"<th class=h>{escape(_short(name))}</th>" for name in _names(sweep))
    request = escape(sweep.request.model_dump_json(indent=1, exclude_defaults=True))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>Sweep {escape(sweep.name)}</title><style>{_STYLE}</style></head><body>
<h1>Sweep {escape(sweep.name)}</h1>
<p class=soft>{escape(sweep.model)} · {escape(" + ".join(sweep.target))} · {sweep.n_done} of {sweep.n_points} points ·
{sweep.made.n_prompts} prompts x {sweep.request.samples} · seed {sweep.request.seed} · {escape(sweep.author)},
{sweep.created_at:%Y-%m-%d}</p>
{_said(sweep)}
{svg[svg.index("<svg") :]}
<div class=wide><table><tr><th class=n>strength</th><th>what</th>{heads}<th class=n>perplexity ×</th><th class=n>repeated</th>
<th>a text</th></tr>
{rows}
</table></div>
<details><summary>Request and making</summary><pre>{request}

{escape(sweep.made.model_dump_json(indent=1))}</pre></details>
</body></html>
"""


def _names(sweep: SweepAnswer) -> list[str]:
    return [effect.name for effect in sweep.points[0].effects] if sweep.points else []


def _short(name: str) -> str:
    """Without the model's name, which stands above."""
    return " ".join(word.split("/", 1)[-1] for word in name.split(" "))


def _said(sweep: SweepAnswer) -> str:
    if sweep.suggestion is None:
        return ""
    kind = "said" if sweep.suggested is not None else "said none"
    reason, rule = escape(sweep.suggestion.reason), escape(sweep.suggestion.rule)
    if sweep.suggestion.strongest is not None:
        reason += f"; the strongest that passes is {sweep.suggestion.strongest:g}"
    return f'<div class="{kind}"><b>Suggested strength:</b> {reason}<br><span class=soft>{rule}</span></div>'


def _row(point: Point) -> str:
    effects = "".join(f"<td class=n>{_number(effect.value)}</td>" for effect in point.effects)
    what = escape((point.control or point.kind).split("/", 1)[-1])
    ratio = "" if point.perplexity_ratio is None else _number(point.perplexity_ratio)
    kind = ' class="control"' if point.control else ""
    return (
        f"<tr{kind}><td class=n>{point.strength:g}</td><td class=what>{what}</td>{effects}<td class=n>{ratio}</td>"
        f"<td class=n>{_number(point.repetition)}</td><td class=text>{escape(point.example[:300]) or EMPTY}</td></tr>"
    )


def _number(estimate: Estimate) -> str:
    if estimate.value is None:
        return "–"
    return f"{estimate.value:.3g}<br><span class=soft>{estimate.low:.2g} to {estimate.high:.2g}</span>"
