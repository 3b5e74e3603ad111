"""Rank preservation, performance redundancy and similarity, against scipy and plain loops."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from api.services.evaluations import model_order
from api.services.evaluations.files import parse_rows
from api.services.evaluations.model_order import kendall_tau, tau_curve
from api.services.evaluations.performance import (
    _over_pairs,
    _similarities,
    partial,
    performance_redundancy,
    performance_similarity,
)
from api.services.evaluations.preservation import rank_preservation
from api.services.evaluations.results import import_scores
from api.services.library import Library
from api.services.questions.overlap import overlap
from api.services.questions.redundancy import redundancies
from api.services.suite.subset import answer_of, select_subset
from schema.errors import InputError, NotFound
from schema.home import open_home
from schema.settings import Settings
from schema.wire.evaluations import PreservationRequest
from tests.making import PROBLEMS, SONGS, TALES
from tests.scoring import model_names, panel, score_rows

SAE = "tiny-qwen3/2-tiny"
ROWS = {"problems": PROBLEMS, "songs": SONGS, "tales": TALES}
MODELS = 8
PANELS = {
    name: panel(MODELS, len(rows), seed, np.random.default_rng(seed).normal(0, 1, MODELS))
    for seed, (name, rows) in enumerate(ROWS.items())
}


@pytest.fixture(scope="module")
def library(indexed: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    """A copy with a panel of eight invented models on each dataset; model-07 lacks the scores of five problems."""
    copy = Settings.read(tmp_path_factory.mktemp("panels") / "home", {})
    shutil.copytree(indexed.home, copy.home)
    library = Library(open_home(copy))
    for name, rows in ROWS.items():
        for model, scores in zip(model_names(MODELS), PANELS[name], strict=True):
            kept = rows[5:] if (name, model) == ("problems", "model-07") else rows
            file = parse_rows(score_rows([row["id"] for row in kept], scores[-len(kept) :]), "acc", "invented")
            import_scores(library, name, model, "acc", [file], "ann")
    yield library
    library.home.close()


values = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75]), min_size=6, max_size=6)


@settings(max_examples=200, deadline=None)
@given(values, values)
def test_tau_is_scipys(x: list[float], y: list[float]) -> None:
    expected = stats.kendalltau(x, y).statistic
    assert kendall_tau(np.array(x), np.array(y)) == pytest.approx(0.0 if np.isnan(expected) else expected)


def test_the_curve_is_the_mean_over_all_subsets() -> None:
    """Of 6 samples every subset can be tried."""
    scores = panel(5, 6, 3)
    curve = tau_curve(scores, 4000, 0)
    whole = scores.mean(axis=1)
    exact = []
    for n in range(1, 7):
        subsets = list(itertools.combinations(range(6), n))
        taus = [stats.kendalltau(whole, scores[:, list(s)].mean(axis=1)).statistic for s in subsets]
        exact.append(np.mean(np.nan_to_num(taus)))
    assert curve.sizes.tolist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(curve.taus.mean(axis=0), exact, atol=0.02)
    assert curve.redundancy.mean() == pytest.approx(np.mean(exact), abs=0.02)


def test_redundancy_between_the_sizes_is_linear() -> None:
    curve = tau_curve(panel(6, 200, 1), 30, 0)
    assert len(curve.sizes) < 200
    sums = [np.interp(n, curve.sizes, curve.taus.mean(axis=0)) for n in range(1, 201)]
    assert curve.redundancy.mean() == pytest.approx(np.mean(sums))
    assert curve.taus[:, -1] == pytest.approx(1.0)


def test_a_question_that_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_order, "MOST_SUMS", 100_000)
    with pytest.raises(
        InputError, match="100 draws of 200 samples and 6 models are too many; ask for at most 83 draws"
    ):
        tau_curve(panel(6, 200, 1), 100, 0)


def test_a_named_subset_beside_random_ones(library: Library) -> None:
    ids = [f"p{i}" for i in range(0, 60, 2)]
    answer = rank_preservation(library, PreservationRequest(dataset="problems", samples=ids, draws=100, seed=4))
    common = np.arange(5, 60)
    inside = [i for i in common if f"p{i}" in ids]
    whole, part = PANELS["problems"][:, common].mean(axis=1), PANELS["problems"][:, inside].mean(axis=1)
    assert (answer.n_samples, answer.n_left_out, answer.subset_n) == (55, 5, len(inside))
    assert answer.tau is not None
    assert answer.tau.value == pytest.approx(stats.kendalltau(whole, part).statistic)
    assert answer.tau.low is not None
    assert answer.tau.high is not None
    assert answer.tau.low <= answer.tau.value <= answer.tau.high
    assert answer.pairs_kept == pytest.approx((answer.tau.value + 1) / 2)
    assert [m.mean for m in answer.models] == pytest.approx(sorted(whole, reverse=True))
    assert {m.evaluated: m.subset_mean for m in answer.models} == pytest.approx(
        dict(zip(model_names(8), part, strict=True))
    )
    rng = np.random.default_rng(9)
    draws = [
        stats.kendalltau(
            whole, PANELS["problems"][:, rng.choice(common, len(inside), replace=False)].mean(axis=1)
        ).statistic
        for _ in range(1000)
    ]
    assert answer.random is not None
    assert answer.random.mean == pytest.approx(np.mean(draws), abs=0.04)
    assert answer.random.share_below == pytest.approx(
        stats.percentileofscore(draws, answer.tau.value, "mean") / 100, abs=0.12
    )
    assert (answer.random.draws, answer.draws, answer.seed, answer.provenance) == (100, 100, 4, None)
    assert rank_preservation(library, PreservationRequest(dataset="problems", samples=ids, draws=100, seed=4)) == answer


def test_the_subset_that_features_choose(library: Library) -> None:
    request = PreservationRequest(dataset="tales", coverage=0.9, sae=SAE, draws=20)
    answer = rank_preservation(library, request)
    chosen = answer_of(library, select_subset(library, SAE, "tales", 0.9)).samples
    named = rank_preservation(library, PreservationRequest(dataset="tales", samples=chosen, draws=20))
    assert (answer.tau, answer.random, answer.subset_n) == (named.tau, named.random, len(chosen))
    assert answer.provenance is not None
    assert answer.provenance.sae == SAE
    assert answer.subset is not None
    assert "of the footprint of tiny-qwen3/2-tiny under pool any" in answer.subset


def test_without_a_subset_there_is_the_curve(library: Library) -> None:
    answer = rank_preservation(library, PreservationRequest(dataset="songs", draws=20))
    assert (answer.subset, answer.tau, answer.random) == (None, None, None)
    assert answer.curve[-1].n == 45
    assert answer.curve[-1].tau == pytest.approx(1.0)


def test_performance_beside_features(library: Library) -> None:
    answer = performance_redundancy(library, SAE, list(ROWS), pool="last", draws=50)
    features = redundancies(library, SAE, list(ROWS), "last").data
    for item, feature in zip(answer.data, features, strict=True):
        alone = rank_preservation(library, PreservationRequest(dataset=item.dataset, draws=50))
        assert (item.performance_redundancy, item.performance_error) == (alone.redundancy, alone.redundancy_error)
        assert (item.feature_redundancy, item.baseline_n_over_f) == (feature.redundancy, feature.baseline_n_over_f)
    r = [item.performance_redundancy for item in answer.data]
    n = [item.n_samples for item in answer.data]
    rhat = [float(feature.redundancy or 0) for feature in features]
    assert answer.correlations["spearman"].value == pytest.approx(stats.spearmanr(r, rhat).statistic)
    assert answer.correlations["spearman_n"].value == pytest.approx(stats.spearmanr(r, n).statistic)
    assert answer.correlations["pearson_log"].value == pytest.approx(stats.pearsonr(r, np.log(rhat)).statistic)
    assert all(e.low is None and e.n == 3 for e in answer.correlations.values()), "three datasets give no interval"


def test_a_partial_correlation_is_that_of_the_residuals() -> None:
    rng = np.random.default_rng(0)
    control = rng.normal(size=40)
    x, y = control + rng.normal(size=40), rng.normal(size=40) - control
    residuals = [v - np.polyval(np.polyfit(control, v, 1), control) for v in (x, y)]
    assert partial(x, y, control) == pytest.approx(stats.pearsonr(*residuals).statistic)
    assert np.isnan(partial(x, x, x))


def test_pairs_of_datasets(library: Library) -> None:
    answer = performance_similarity(library, SAE, list(ROWS), pool="last", seed=3)
    means = {name: PANELS[name][:, 5 if name == "problems" else 0 :].mean(axis=1) for name in ROWS}
    shares = overlap(library, SAE, list(ROWS), "last").overlap_min
    names = list(ROWS)
    for pair in answer.data:
        i, j = (names.index(name) for name in pair.datasets)
        assert pair.overlap_min == pytest.approx(shares[i][j])
        found = stats.pearsonr(means[names[i]], means[names[j]])
        interval = found.confidence_interval()
        assert pair.similarity.value == pytest.approx(found.statistic)
        assert (pair.similarity.low, pair.similarity.high) == pytest.approx((interval.low, interval.high))
        assert pair.partial is None
    over = [pair.overlap_min for pair in answer.data]
    similar = [pair.similarity.value for pair in answer.data]
    assert answer.correlations["pearson"].value == pytest.approx(stats.pearsonr(over, similar).statistic)
    assert answer.correlations["spearman"].value == pytest.approx(stats.spearmanr(over, similar).statistic)
    p = answer.correlations["pearson"].p_value
    assert p is not None
    assert 1 / 6 - 0.05 < p <= 1, "six orders of three datasets: at best one in six"


def test_a_control_is_held_fixed(library: Library) -> None:
    """Two versions of one dataset would do; here the third panel is that of the control, under another name."""
    with pytest.raises(InputError, match="at least 3 datasets"):
        performance_similarity(library, SAE, list(ROWS), control="songs@1")
    subject = [PANELS[name][:, 5 if name == "problems" else 0 :].mean(axis=1) for name in ROWS]
    given = _similarities(np.stack(subject[:2]), subject[2])
    assert given[0, 1] == pytest.approx(partial(*subject))
    found = _over_pairs(np.array([[1, 0.5], [0.5, 1]]), np.stack(subject[:2]), subject[2], 0)
    assert set(found) == {"pearson", "spearman", "partial_pearson", "partial_spearman"}
    assert all(estimate.value is None for estimate in found.values()), "one pair has no correlation"


@pytest.mark.parametrize(
    ("ask", "error", "words"),
    [
        (
            lambda b: rank_preservation(b, PreservationRequest(dataset="songs", n=3, coverage=0.5)),
            InputError,
            "not coverage and n",
        ),
        (
            lambda b: rank_preservation(b, PreservationRequest(dataset="songs", samples=["s1", "x"])),
            NotFound,
            "named 'x'",
        ),
        (
            lambda b: rank_preservation(b, PreservationRequest(dataset="problems", samples=["p1"])),
            InputError,
            "none of the subset's 1",
        ),
        (lambda b: rank_preservation(b, PreservationRequest(dataset="songs", metric="f1")), NotFound, "named 'f1'"),
        (lambda b: performance_redundancy(b, SAE, ["songs", "tales"]), InputError, "at least 3 datasets"),
        (lambda b: performance_similarity(b, SAE, ["songs", "songs@1", "tales"]), InputError, "at least 3 datasets"),
    ],
)
def test_wrong_questions_are_refused_in_words(library: Library, ask: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ask(library)
