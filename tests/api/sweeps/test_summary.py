"""What a sweep concludes from numbers that are known beforehand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from api.services.sweeps.bootstrap import Bootstrap, enough_prompts
from api.services.sweeps.plan import Plan, PlannedPoint, PlannedPrompt
from api.services.sweeps.summary import conclude
from schema.wire.sweeps import SweepMade, SweepRequest

STRENGTHS = [0.1, 0.2, 0.4]
MADE = SweepMade(
    engine="plain", versions={}, dtype=None, model="m", revision="1", tokenizer_sha256="0", vectors=[], prompts_sha256="0",
    n_prompts=1, mask="none",
)  # fmt: skip


def request(**changes: Any) -> SweepRequest:
    asked: dict[str, Any] = {
        "name": "s",
        "target": [{"feature": "m/3-tiny/7"}],
        "strengths": STRENGTHS,
        "prompts": ["a"],
        "effects": [{"measure": "longest_repeat"}],
    }
    return SweepRequest(**{**asked, **changes})


def plan(n_prompts: int, n_controls: int) -> Plan:
    points = [PlannedPoint(kind="unsteered", strength=0.0, control=None)]
    for strength in STRENGTHS:
        points.append(PlannedPoint(kind="target", strength=strength, control=None))
        points += [PlannedPoint(kind="random_feature", strength=strength, control=i) for i in range(n_controls)]
    prompts = [PlannedPrompt(text="a", ids=[1])] * n_prompts
    return Plan(prompts=prompts, points=points, features=[], made=MADE, provenance=[])


def measured(effect: Any, nll: float = 1.0, repetition: float = 0.0) -> dict[str, Any]:
    values = [None if np.isnan(v) else float(v) for v in effect]
    n = len(values)
    return {
        "effects": {"longest repeat": values}, "repetition": [repetition] * n, "distinct": [1.0] * n, "longest_repeat": [0.0] * n,
        "nll": [10 * nll] * n, "n_tokens": [10] * n, "n_texts": n, "n_ended": 0, "control": None, "relative_norm": None, "example": "",
    }  # fmt: skip


def planted(n: int) -> Any:
    """An effect that the target always has and nothing else ever."""
    return lambda point, **costs: measured(np.full(n, float(point.kind == "target")), **costs)


def done(found: Plan, of: Any) -> dict[int, dict[str, Any]]:
    return {place: of(point) for place, point in enumerate(found.points)}


def test_the_smallest_strength_that_is_beyond_the_controls_and_cheap_is_suggested() -> None:
    rng, found = np.random.default_rng(0), plan(30, 3)

    def of(point: PlannedPoint) -> dict[str, Any]:
        lift = {0.1: 0.0, 0.2: 0.5, 0.4: 0.9}.get(point.strength, 0.0) if point.kind == "target" else 0.0
        return measured(lift + rng.normal(0, 0.1, 30), nll=1.0 + point.strength)

    points, nulls, suggestion = conclude(request(), found, done(found, of))
    assert suggestion is not None
    assert (suggestion.strength, suggestion.strongest) == (0.2, 0.4)
    assert [v.passes for v in suggestion.verdicts] == [False, True, True]
    assert points[5].perplexity_ratio is not None
    assert points[5].perplexity_ratio.value == pytest.approx(np.exp(0.2))
    null = next(n for n in nulls if n.strength == 0.2)
    values = [p.effects[0].value.value for p in points if p.kind == "random_feature" and p.strength == 0.2]
    assert (null.n, null.mean, null.low, null.high) == (3, pytest.approx(np.mean(values)), min(values), max(values))

    dear = conclude(
        request(bounds={"perplexity": 1.15}), found, done(found, lambda p: planted(30)(p, nll=1 + p.strength))
    )[2]
    assert dear is not None
    assert dear.strength == 0.1
    looping = conclude(request(), found, done(found, lambda p: planted(30)(p, repetition=2 * p.strength)))[2]
    assert looping is not None
    assert looping.strength is None
    assert "repetition is out of bounds" in looping.reason


def test_a_direction_that_does_what_random_ones_do_is_hardly_ever_suggested() -> None:
    found, suggested = plan(16, 3), 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        suggestion = conclude(
            request(seed=seed), found, done(found, lambda _p, rng=rng: measured(rng.normal(0, 1, 16)))
        )[2]
        assert suggestion is not None
        suggested += suggestion.strength is not None
    assert suggested <= 3  # 5 % of 60, and the rule asks for more than one interval


def test_less_is_as_good_as_more() -> None:
    found = plan(20, 2)
    fall = done(found, lambda p: measured(np.full(20, 1.0 - (p.kind == "target") * 0.5) + np.linspace(0, 0.1, 20)))
    for want, strength in (("less", 0.1), ("more", None)):
        suggestion = conclude(request(want=want), found, fall)[2]
        assert suggestion is not None
        assert suggestion.strength == strength


def test_where_there_is_nothing_to_take_away_the_reason_says_so() -> None:
    found = plan(20, 2)
    suggestion = conclude(request(want="less"), found, done(found, lambda p: measured(np.zeros(20))))[2]
    assert suggestion is not None
    assert suggestion.reason.startswith("none: the unsteered texts show nothing of 'longest repeat' to take away")


def test_what_cannot_be_shown_is_not_suggested() -> None:
    for n_prompts, controls, sentence in ((4, 2, "4 prompts cannot show"), (20, 0, "without random controls")):
        found = plan(n_prompts, controls)
        suggestion = conclude(request(), found, done(found, planted(n_prompts)))[2]
        assert suggestion is not None
        assert suggestion.strength is None
        assert sentence in suggestion.reason
    assert enough_prompts(1 - 0.05 / 3) == 7  # 2 * 2^-7 = 0.0156 < 0.0167 < 2 * 2^-6


def test_nothing_is_suggested_before_every_point_is_there() -> None:
    found = plan(10, 1)
    whole = done(found, lambda _p: measured(np.zeros(10)))
    del whole[4]
    points, nulls, suggestion = conclude(request(), found, whole)
    assert suggestion is None
    assert [p.place for p in points] == [0, 1, 2, 3, 5, 6]
    assert {n.strength for n in nulls} == {0.1, 0.4}


def test_intervals_are_those_of_a_percentile_bootstrap() -> None:
    values = np.random.default_rng(1).gamma(2.0, size=40)
    own = Bootstrap(40, 0).mean(values)
    peer = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=2).confidence_interval
    assert own.value == pytest.approx(values.mean())
    assert (own.low, own.high) == (pytest.approx(peer.low, abs=0.05), pytest.approx(peer.high, abs=0.05))


def test_prompts_without_a_value_count_for_nothing() -> None:
    values = np.array([1.0, np.nan, 3.0, np.nan])
    own = Bootstrap(4, 0).mean(values)
    assert (own.value, own.low, own.high) == (2.0, 1.0, 3.0)
    assert Bootstrap(2, 0).mean(np.array([np.nan, np.nan])).value is None


def test_perplexity_is_of_all_tokens_together() -> None:
    draws = Bootstrap(3, 0)
    nll, n = np.array([10.0, 40.0, 0.0]), np.array([10.0, 20.0, 0.0])
    assert draws.perplexity(nll, n).value == pytest.approx(np.exp(50 / 30))
    assert draws.perplexity_ratio((nll, n), (nll, n)).model_dump() == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert draws.perplexity(nll[2:], n[2:]).value is None
