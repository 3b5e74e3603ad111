"""The closed forms against enumeration, scipy and simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from api.services.statistics import (
    benjamini_hochberg,
    coverage_curve,
    fisher_exact,
    inclusion,
    rate_difference_interval,
    redundancy,
    wilson,
)

incidence = st.integers(1, 7).flatmap(
    lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=6).map(np.array)
)


@given(incidence, st.integers(1, 3))
def test_inclusion_is_the_share_of_subsets_that_fire(fires: np.ndarray, at_least: int) -> None:
    """(features, samples) against all subsets of every size."""
    _, n_samples = fires.shape
    for n in range(1, n_samples + 1):
        subsets = list(itertools.combinations(range(n_samples), n))
        share = np.mean([fires[:, subset].sum(1) >= at_least for subset in map(list, subsets)], axis=0)
        np.testing.assert_allclose(inclusion(fires.sum(1), n_samples, n, at_least), share, atol=1e-12)


def test_a_threshold_beyond_all_samples_is_never_met() -> None:
    assert inclusion(np.array([0, 3, 27]), 27, 20, 1 << 40).tolist() == [0, 0, 0]
    assert inclusion(np.array([0, 3, 27]), 27, 20, 21).tolist() == [0, 0, 0]
    assert inclusion(np.array([0, 27]), 27, 20, 20).tolist() == [0, 1]


@given(incidence)
def test_redundancy_is_the_area_under_the_coverage_curve(fires: np.ndarray) -> None:
    """(sum over n of c_n) / |F| by enumeration; and the bounds that follow from the closed form."""
    counts, (_, n_samples) = fires.sum(1), fires.shape
    footprint = fires[counts > 0]
    if not len(footprint):
        assert redundancy(counts, n_samples) is None
        assert coverage_curve(counts, n_samples) == []
        return
    curve = []
    for n in range(1, n_samples + 1):
        subsets = map(list, itertools.combinations(range(n_samples), n))
        curve.append(np.mean([footprint[:, subset].any(1).mean() for subset in subsets]))
    value = redundancy(counts, n_samples)
    assert value == pytest.approx(sum(curve) / len(footprint))
    bound = (n_samples + 1) / len(footprint)
    assert bound / 2 - 1e-12 <= value < bound
    assert dict(coverage_curve(counts, n_samples, 99)) == pytest.approx(dict(enumerate(curve, 1)))


@given(st.integers(1, 60), st.integers(1, 60), st.data())
@settings(max_examples=200, deadline=None)
def test_fishers_test_is_scipys(n_a: int, n_b: int, data: st.DataObject) -> None:
    a = np.array(data.draw(st.lists(st.integers(0, n_a), min_size=1, max_size=8)))
    b = np.array(data.draw(st.lists(st.integers(0, n_b), min_size=len(a), max_size=len(a))))
    expected = [stats.fisher_exact([[x, n_a - x], [y, n_b - y]]).pvalue for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(fisher_exact(a, n_a, b, n_b), expected, rtol=1e-7, atol=1e-300)


def test_fishers_test_at_the_size_of_real_datasets() -> None:
    rng = np.random.default_rng(0)
    n_a, n_b = 1319, 20_000
    rate = np.exp(rng.normal(-4, 2, 400)).clip(0, 1)
    a, b = rng.binomial(n_a, rate), rng.binomial(n_b, (rate * np.exp(rng.normal(0, 0.3, 400))).clip(0, 1))
    expected = [stats.fisher_exact([[x, n_a - x], [y, n_b - y]]).pvalue for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(fisher_exact(a, n_a, b, n_b), expected, rtol=1e-6, atol=1e-290)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_q_values_are_scipys(p: list[float]) -> None:
    np.testing.assert_allclose(benjamini_hochberg(np.array(p)), stats.false_discovery_control(p), rtol=1e-9)


def test_q_values_of_nothing() -> None:
    assert len(benjamini_hochberg(np.empty(0))) == 0


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (3, 10), (10, 10), (500, 1319)])
def test_the_interval_of_a_rate_is_scipys(hits: int, n: int) -> None:
    low, high = wilson(np.array([hits]), n)
    expected = stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high))


def test_the_interval_of_a_difference_is_newcombes() -> None:
    """Newcombe 1998, table II, example (a), method 10: 56/70 against 48/80 gives 0.0524 to 0.3339."""
    low, high = rate_difference_interval(np.array([56]), 70, np.array([48]), 80)
    assert (low[0], high[0]) == pytest.approx((0.0524, 0.3339), abs=1e-4)
