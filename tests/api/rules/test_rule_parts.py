"""The parts of rules that need no home: expressions, metrics, thresholds, rankings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from api.services.rules.baselines import nearer_mean
from api.services.rules.counting import largest
from api.services.rules.expressions import MOST_FEATURES, Leaf, decide, leaves
from api.services.rules.length import best_threshold
from api.services.rules.metrics import always, confusion, f1_of, measure
from schema.errors import InputError
from schema.wire.expressions import Expression
from scopebase.cli.rule_tables import written

PARSER: TypeAdapter[Any] = TypeAdapter(Expression)
FEATURES = [f"m/{layer}-a/{index}" for layer in (1, 2) for index in (0, 7)]
TREES = st.recursive(
    st.sampled_from(FEATURES).map(lambda f: {"feature": f, "above": 0.0}),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=4).map(lambda parts: {"any": parts})
        | st.lists(inner, min_size=1, max_size=4).map(lambda parts: {"all": parts})
        | inner.map(lambda part: {"not": part})
    ),
    max_leaves=12,
)


def by_hand(tree: Any, fires: dict[str, bool]) -> bool:
    if "feature" in tree:
        return fires[tree["feature"]]
    if "not" in tree:
        return not by_hand(tree["not"], fires)
    parts = [by_hand(part, fires) for part in tree.get("any", tree.get("all"))]
    return any(parts) if "any" in tree else all(parts)


@given(TREES)
@settings(max_examples=60, deadline=None)
def test_an_expression_says_what_it_reads(tree: Any) -> None:
    """All 16 ways in which four features fire, and the form that people read."""
    expression = PARSER.validate_python(tree)
    assert expression.model_dump() == tree
    ways = [{f: bool(way >> i & 1) for i, f in enumerate(FEATURES)} for way in range(16)]
    holds = {leaf: np.array([way[f"{leaf.sae}/{leaf.index}"] for way in ways]) for leaf in leaves(expression)}
    assert decide(expression, holds).tolist() == [by_hand(tree, way) for way in ways]
    text = written(expression)
    for i, name in enumerate(FEATURES):
        text = text.replace(name, f"way[{i}]")
    assert [bool(eval(text, {"way": list(way.values())})) for way in ways] == [by_hand(tree, way) for way in ways]


def test_features_know_whether_they_are_negated() -> None:
    tree = {
        "all": [{"feature": "m/1-a/3"}, {"not": {"any": [{"feature": "m/1-a/4"}, {"not": {"feature": "m/1-a/5"}}]}}]
    }
    assert {leaf.index: negated for leaf, negated in leaves(PARSER.validate_python(tree)).items()} == {
        3: False,
        4: True,
        5: False,
    }
    assert leaves(PARSER.validate_python({"feature": "m/1-a/3", "above": 2})) == {Leaf("m/1-a", 3, 2.0): False}


def test_an_expression_has_a_bound() -> None:
    part = {"any": [{"feature": "m/1-a/3"}] * 600}
    with pytest.raises(InputError, match=f"more than {MOST_FEATURES:,} features"):
        leaves(PARSER.validate_python({"any": [part, part]}))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
@settings(max_examples=40, deadline=None)
def test_metrics_are_those_of_scikit_learn(pairs: list[tuple[bool, bool]]) -> None:
    from sklearn import metrics as sk

    predicted, positive = (np.array(column) for column in zip(*pairs, strict=True))
    found = measure(predicted, positive, 0)
    assert [found.true_negative, found.false_positive, found.false_negative, found.true_positive] == (
        sk.confusion_matrix(positive, predicted, labels=[False, True]).ravel().tolist()
    )
    assert found.accuracy.value == pytest.approx(sk.accuracy_score(positive, predicted))
    if predicted.any():
        assert found.precision.value == pytest.approx(sk.precision_score(positive, predicted))
    else:
        assert found.precision.value is None
    if positive.any():
        assert found.recall.value == pytest.approx(sk.recall_score(positive, predicted))
        assert found.f1.value == pytest.approx(sk.f1_score(positive, predicted))
        assert f1_of(predicted, positive) == pytest.approx(found.f1.value)
    for estimate in (found.f1, found.precision, found.recall, found.accuracy):
        if estimate.value is not None and estimate.interval is not None:
            assert 0 <= estimate.interval[0] <= estimate.interval[1] <= 1


def test_intervals_are_those_of_resampled_samples() -> None:
    rng = np.random.default_rng(1)
    positive = rng.random(300) < 0.4
    predicted = positive ^ (rng.random(300) < 0.25)
    found = measure(predicted, positive, 7)
    draws = [rng.integers(0, 300, 300) for _ in range(3000)]
    f1 = [f1_of(predicted[each], positive[each]) for each in draws]
    assert found.f1.interval == pytest.approx(np.quantile(f1, [0.025, 0.975]), abs=0.01)
    accuracy = [(predicted == positive)[each].mean() for each in draws]
    assert found.accuracy.interval == pytest.approx(np.quantile(accuracy, [0.025, 0.975]), abs=0.01)
    assert measure(predicted, positive, 7) == found
    assert measure(predicted, positive, 8) != found


def test_calling_everything_positive() -> None:
    found = always(np.array([True, True, False, False, False]), 0)
    assert (found.recall.value, found.precision.value, found.accuracy.value) == (1.0, 0.4, 0.4)
    assert confusion(np.array([True, True, False]), np.array([True, False, True])).tolist() == [1, 1, 1, 0]


def test_the_difference_of_means_is_scikit_learns_nearest_centroid() -> None:
    from scipy.sparse import csr_matrix
    from sklearn.neighbors import NearestCentroid

    rng = np.random.default_rng(2)
    X, positive = np.maximum(rng.normal(size=(80, 6)), 0), rng.random(80) < 0.4
    expected = NearestCentroid().fit(X[:50], positive[:50]).predict(X[50:])
    assert nearer_mean(X[:50], positive[:50], X[50:]).tolist() == expected.tolist()
    assert nearer_mean(csr_matrix(X[:50]), positive[:50], csr_matrix(X[50:])).tolist() == expected.tolist()


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=2, max_size=40))
@settings(max_examples=60, deadline=None)
def test_the_length_threshold_is_the_best_there_is(pairs: list[tuple[int, bool]]) -> None:
    lengths, positive = np.array([n for n, _ in pairs]), np.array([p for _, p in pairs])
    assume(positive.any())
    longer, bound = best_threshold(lengths, positive)
    best = max(f1_of((lengths > t) == way, positive) for t in np.unique(lengths) for way in (True, False))
    assert f1_of((lengths > bound) == longer, positive) == pytest.approx(best)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.integers(1, 10))
def test_the_largest_differences_first_and_ties_to_the_lower_index(values: list[int], n: int) -> None:
    difference = np.array(values, np.float64)
    expected = [f for f in sorted(range(len(values)), key=lambda f: (-values[f], f)) if values[f] > 0][:n]
    assert largest(difference, n).tolist() == expected
