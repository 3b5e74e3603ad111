"""The greedy cover against a naive one, and its bounds against the optimum found by trying every set."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from api.services.suite.cover import Fired, fewest, greedy, most, pruned

N_FEATURES = 9
samples = st.lists(st.sets(st.integers(0, N_FEATURES - 1)), min_size=1, max_size=7).filter(lambda rows: any(rows))
worth = st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.0, 3.0]), min_size=N_FEATURES, max_size=N_FEATURES)


def fired_of(rows: list[set[int]]) -> Fired:
    dense = np.array([[float(f in row) for f in range(N_FEATURES)] for row in rows])
    return Fired(np.arange(len(rows)), csr_array(dense))


def held(rows: list[set[int]], chosen: tuple[int, ...], weights: np.ndarray) -> float:
    return float(sum(weights[f] for f in set().union(*(rows[i] for i in chosen))))


def naive(rows: list[set[int]], weights: np.ndarray, target: float) -> list[int]:
    chosen: list[int] = []
    while held(rows, tuple(chosen), weights) < target - 1e-9:
        chosen.append(max(range(len(rows)), key=lambda i: (held(rows, (*chosen, i), weights), -i)))
    return chosen


@settings(max_examples=300, deadline=None)
@given(samples, worth, st.sampled_from([0.3, 0.6, 0.9, 1.0]))
def test_greedy_is_greedy_and_its_bounds_hold(rows: list[set[int]], worth: list[float], share: float) -> None:
    fired, weights = fired_of(rows), np.array(worth)
    everything = tuple(range(len(rows)))
    weights = np.where([any(f in row for row in rows) for f in range(N_FEATURES)], weights, 0.0)
    if not weights.any():
        return
    target = share * float(weights.sum())
    cover = greedy(fired, weights, target)
    assert cover.rows == naive(rows, weights, target)
    for i in range(len(cover.rows) + 1):
        assert cover.covered[i] == pytest.approx(held(rows, tuple(cover.rows[:i]), weights))

    sets = [c for n in range(len(rows) + 1) for c in itertools.combinations(everything, n)]
    optimum = min(len(c) for c in sets if held(rows, c, weights) >= target - 1e-9)
    assert 1 <= fewest(fired, weights, cover, target) <= optimum

    smaller = pruned(fired, weights, cover, target)
    assert set(smaller.rows) <= set(cover.rows)
    assert optimum <= len(smaller.rows) <= len(cover.rows)
    assert held(rows, tuple(smaller.rows), weights) >= target - 1e-9
    assert smaller.covered[-1] == pytest.approx(held(rows, tuple(smaller.rows), weights))
    for i in smaller.rows:
        rest = tuple(r for r in smaller.rows if r != i)
        assert not rest or held(rows, rest, weights) < target + 1e-9, "none is needless"


@settings(max_examples=200, deadline=None)
@given(samples, worth, st.integers(1, 4))
def test_a_budget_is_kept_and_no_set_beats_the_bound(rows: list[set[int]], worth: list[float], n: int) -> None:
    fired, weights = fired_of(rows), np.array(worth)
    weights = np.where([any(f in row for row in rows) for f in range(N_FEATURES)], weights, 0.0)
    if not weights.any():
        return
    n = min(n, len(rows))
    cover = greedy(fired, weights, float(weights.sum()), n)
    best = max(held(rows, c, weights) for c in itertools.combinations(range(len(rows)), n))
    got = held(rows, tuple(cover.rows), weights)
    assert len(cover.rows) <= n
    assert best - 1e-9 <= most(fired, weights, cover, n) <= float(weights.sum()) + 1e-9
    assert got >= (1 - (1 - 1 / n) ** n) * best - 1e-9


def test_laziness_changes_nothing_on_a_larger_problem() -> None:
    rng = np.random.default_rng(0)
    rows = [set(rng.choice(200, rng.integers(1, 25), replace=False).tolist()) for _ in range(300)]
    dense = np.array([[float(f in row) for f in range(200)] for row in rows])
    fired, weights = Fired(np.arange(300), csr_array(dense)), np.ones(200)
    target = float(dense.any(axis=0).sum())
    assert greedy(fired, weights, target).rows == naive(rows, weights, target)
