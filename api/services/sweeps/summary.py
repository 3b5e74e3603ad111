"""What a sweep shows: each point with its intervals, what chance does, and the smallest strength that passes the rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from api.services.sweeps.bootstrap import NONE, Bootstrap, Floats, enough_prompts
from api.services.sweeps.effects import names_of
from api.services.sweeps.plan import Plan, PlannedPoint
from schema.wire.sweeps import Estimate, Null, Point, PointEffect, Suggestion, SweepRequest, Verdict

RANDOM = ("random_feature", "random_direction")
Measured = Mapping[str, Any]
Done = Mapping[int, Measured]
"""Place -> what was measured there."""


def conclude(request: SweepRequest, plan: Plan, done: Done) -> tuple[list[Point], list[Null], Suggestion | None]:
    """Points in the order of the plan, the controls of each strength together, and a suggestion once every point is there."""
    draws = Bootstrap(len(plan.prompts), request.seed)
    base = done.get(0)
    names = names_of(request.effects)
    points = [_point(draws, names, plan.points[place], place, done[place], base) for place in sorted(done)]
    whole = len(done) == len(plan.points)
    return points, _nulls(request, plan, points), _suggestion(draws, request, plan, points, done) if whole else None


def _point(
    draws: Bootstrap, names: Sequence[str], planned: PlannedPoint, place: int, own: Measured, base: Measured | None
) -> Point:
    """Args:
    names: of the effects, in the order of the request, which PostgreSQL does not keep.
    """
    steered = planned.kind != "unsteered"
    return Point(
        place=place,
        kind=planned.kind,
        strength=planned.strength,
        control=own["control"],
        n_texts=own["n_texts"],
        n_tokens=sum(own["n_tokens"]),
        n_ended=own["n_ended"],
        effects=[
            PointEffect(
                name=name,
                value=draws.mean(values := _array(own["effects"][name])),
                difference=draws.mean(values - _array(base["effects"][name])) if steered and base else None,
            )
            for name in names
        ],
        perplexity=draws.perplexity(*_likelihood(own)),
        perplexity_ratio=draws.perplexity_ratio(_likelihood(own), _likelihood(base)) if steered and base else None,
        repetition=draws.mean(_array(own["repetition"])),
        distinct=draws.mean(_array(own["distinct"])),
        longest_repeat=draws.mean(_array(own["longest_repeat"])),
        relative_norm=own["relative_norm"],
        example=own["example"],
    )


def _nulls(request: SweepRequest, plan: Plan, points: Sequence[Point]) -> list[Null]:
    found = []
    for strength in dict.fromkeys(point.strength for point in plan.points):
        for kind in dict.fromkeys(point.kind for point in plan.points if point.kind in RANDOM):
            own = [point for point in points if point.kind == kind and point.strength == strength]
            for place, effect in enumerate(names_of(request.effects)):
                values = [v for point in own if (v := point.effects[place].value.value) is not None]
                if own:
                    found.append(
                        Null(
                            effect=effect,
                            strength=strength,
                            kind=kind,
                            n=len(own),
                            mean=float(np.mean(values)) if values else None,
                            low=min(values, default=None),
                            high=max(values, default=None),
                        )
                    )
    return found


def _suggestion(draws: Bootstrap, request: SweepRequest, plan: Plan, points: Sequence[Point], done: Done) -> Suggestion:
    level = 1 - 0.05 / len(request.strengths)
    enough, sign = enough_prompts(level), 1 if request.want == "more" else -1
    verdicts = [
        _verdict(draws, request, plan, points, done, strength, level)
        for strength in sorted(request.strengths, key=lambda s: (abs(s), -s))
    ]
    passing = [each.strength for each in verdicts if each.passes]
    suggested = passing[0] if passing and len(plan.prompts) >= enough else None
    return Suggestion(
        strength=suggested,
        strongest=None if suggested is None else max(passing, key=lambda s: sign * _effect_at(plan, points, s)),
        reason=_reason(request, verdicts, suggested, len(plan.prompts), enough, points[0].effects[0].value.value),
        rule=_rule(request, level, enough),
        level=level,
        enough_prompts=enough,
        verdicts=verdicts,
    )


def _verdict(
    draws: Bootstrap,
    request: SweepRequest,
    plan: Plan,
    points: Sequence[Point],
    done: Done,
    strength: float,
    level: float,
) -> Verdict:
    name, sign = names_of(request.effects)[0], 1 if request.want == "more" else -1
    target = _at(plan, strength, "target")[0]
    own = _array(done[target]["effects"][name])
    controls = [_array(done[place]["effects"][name]) for place in _at(plan, strength, *RANDOM)]
    moved = draws.mean(own - _array(done[0]["effects"][name]), level)
    beyond = draws.mean(own - np.mean(controls, axis=0), level) if controls else NONE
    point = points[target]
    ratio = point.perplexity_ratio.value if point.perplexity_ratio else None
    grown = (point.repetition.value or 0.0) - (points[0].repetition.value or 0.0)
    far = sign * _mean(own)
    checks = (
        _is_beyond(moved, sign),
        _is_beyond(beyond, sign) if controls else None,
        all(far > sign * _mean(each) for each in controls) if controls else None,
        ratio is not None and ratio <= request.bounds.perplexity,
        grown <= request.bounds.repetition,
    )
    return Verdict(
        strength=strength,
        beyond=beyond,
        beyond_unsteered=checks[0],
        beyond_mean=checks[1],
        beyond_all=checks[2],
        fluent=checks[3],
        not_looping=checks[4],
        passes=all(checks),
    )


def _effect_at(plan: Plan, points: Sequence[Point], strength: float) -> float:
    return points[_at(plan, strength, "target")[0]].effects[0].value.value or 0.0


def _at(plan: Plan, strength: float, *kinds: str) -> list[int]:
    return [place for place, point in enumerate(plan.points) if point.strength == strength and point.kind in kinds]


def _is_beyond(estimate: Estimate, sign: int) -> bool:
    end = estimate.low if sign > 0 else estimate.high
    return end is not None and sign * end > 0


def _mean(values: Floats) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def _reason(
    request: SweepRequest,
    verdicts: Sequence[Verdict],
    suggested: float | None,
    n_prompts: int,
    enough: int,
    unsteered: float | None,
) -> str:
    effect = names_of(request.effects)[0]
    if request.want == "less" and not unsteered:
        return f"none: the unsteered texts show nothing of '{effect}' to take away; give prompts on which the model does it"
    if suggested is not None:
        return f"{suggested:g} is the smallest strength at which '{effect}' is clearly beyond the controls at a bearable cost"
    if n_prompts < enough:
        return f"none: {n_prompts} prompts cannot show an effect at {len(verdicts)} strengths; give {enough} or more"
    if all(each.beyond_mean is None for each in verdicts):
        return "none: without random controls nothing says that another direction would not do the same"
    strong = [each for each in verdicts if each.beyond_unsteered and each.beyond_mean and each.beyond_all]
    if not strong:
        return f"none: at no strength is '{effect}' clearly beyond the controls"
    why = " and ".join(
        what
        for what, broken in (
            ("perplexity", any(not each.fluent for each in strong)),
            ("repetition", any(not each.not_looping for each in strong)),
        )
        if broken
    )
    return f"none: where '{effect}' is beyond the controls, from {strong[0].strength:g} on, {why} is out of bounds"


def _rule(request: SweepRequest, level: float, enough: int) -> str:
    way = "above" if request.want == "more" else "below"
    return (
        f"The smallest strength at which the first effect lies {way} that of the unsteered texts and {way} the mean of the "
        f"random controls, both by bootstrap intervals over prompts of {level:.2%} (5 % shared by {len(request.strengths)} "
        f"strengths), and {way} every single control; perplexity under the unsteered model at most "
        f"{request.bounds.perplexity:g} times that of the unsteered texts; and the share of repeated 4-grams at most "
        f"{request.bounds.repetition:g} higher. At least {enough} prompts."
    )


def _array(values: Sequence[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _likelihood(measured: Measured) -> tuple[Floats, Floats]:
    return np.array(measured["nll"], np.float64), np.array(measured["n_tokens"], np.float64)
