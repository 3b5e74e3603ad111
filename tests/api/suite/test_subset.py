"""Subsets of the indexed datasets, against sets counted from an independent computation."""

from __future__ import annotations

import itertools
from math import comb
from typing import Any

import numpy as np
import pytest

from api.services.library import Library
from api.services.suite import subset as service
from api.services.suite.subset import answer_of, sample_records, select_subset
from schema.errors import InputError, NotFound
from schema.wire.query import DatasetPart
from schema.wire.suite import SubsetAnswer
from tests.indexer.reference import Reference, reference
from tests.making import PROBLEMS, TALES

SAE = "tiny-qwen3/2-tiny"


@pytest.fixture(scope="module")
def fired(model_dir: Any, release_dir: Any) -> Reference:
    return reference(model_dir, release_dir, [2], [row["text"] for row in TALES], 6, max_tokens=256)[2]


@pytest.fixture(scope="module")
def problems(model_dir: Any, release_dir: Any) -> Reference:
    return reference(model_dir, release_dir, [2], [row["text"] for row in PROBLEMS], 6, max_tokens=256)[2]


def ask(library: Library, *args: Any, **kwargs: Any) -> SubsetAnswer:
    return answer_of(library, select_subset(library, SAE, "tales", *args, **kwargs))


def kept(fired: Reference, ids: list[str], pool: str) -> set[int]:
    matrix = fired.any if pool == "any" else fired.last
    rows = [int(id_[1:]) for id_ in ids]
    return set(np.flatnonzero((np.asarray(matrix)[rows] > 0).any(axis=0)).tolist())


@pytest.mark.parametrize("pool", ["any", "last"])
@pytest.mark.parametrize("share", [0.5, 0.95, 1.0])
def test_the_samples_keep_what_is_said(library: Library, fired: Reference, pool: Any, share: float) -> None:
    answer = ask(library, share, pool)
    whole = kept(fired, [row["id"] for row in TALES], pool)
    for n, covered in answer.curve:
        assert covered == pytest.approx(len(kept(fired, answer.samples[:n], pool)) / len(whole))
    assert answer.coverage == answer.curve[-1][1] >= share - 1e-9
    assert (answer.n_features, answer.dataset.n_features) == (len(kept(fired, answer.samples, pool)), len(whole))
    assert answer.optimum_at_least is not None
    assert answer.optimum_at_least <= len(answer.samples) == len(set(answer.samples)) <= answer.random_n
    assert len(answer.samples) <= answer.guarantee * len(TALES)
    assert answer.provenance.pool == pool


def test_the_smallest_share_takes_one_sample(library: Library) -> None:
    assert len(ask(library, 1e-300).samples) == 1


def test_random_samples_are_expected_to_keep_what_draws_show(library: Library, fired: Reference) -> None:
    answer = ask(library, 0.95, "last")
    whole, rng = kept(fired, [row["id"] for row in TALES], "last"), np.random.default_rng(0)
    for n, expected in ((len(answer.samples), answer.random_coverage), answer.random_curve[0]):
        draws = [kept(fired, [f"t{i}" for i in rng.choice(50, n, replace=False)], "last") for _ in range(2000)]
        assert expected == pytest.approx(np.mean([len(d) for d in draws]) / len(whole), abs=0.01)
    draws = [
        kept(fired, [f"t{i}" for i in rng.choice(50, answer.random_n, replace=False)], "last") for _ in range(2000)
    ]
    assert np.mean([len(d) for d in draws]) / len(whole) == pytest.approx(answer.coverage, abs=0.02)


def test_weights_are_what_they_are_called(library: Library, fired: Reference) -> None:
    matrix = np.asarray(fired.any) > 0
    by_rarity = np.divide(1.0, matrix.sum(0), where=matrix.any(0), out=np.zeros(256))
    answer = ask(library, 0.8, weights="inverse_frequency")
    rows = [int(id_[1:]) for id_ in answer.samples]
    assert answer.coverage == pytest.approx(by_rarity[matrix[rows].any(0)].sum() / by_rarity.sum())
    first = (matrix * by_rarity).sum(1)
    assert first[rows[0]] == pytest.approx(first.max()) or answer.optimum_at_least == len(rows)
    mass = ask(library, 0.8, weights="activation")
    assert mass.coverage >= 0.8
    assert len(mass.samples) <= len(answer.samples), "few features hold most of the activation"


def test_a_number_of_samples(library: Library, fired: Reference) -> None:
    answer = ask(library, n=2)
    matrix = np.asarray(fired.any) > 0
    best = max(int((one | two).sum()) for one, two in itertools.combinations(matrix, 2)) / int(matrix.any(0).sum())
    assert (len(answer.samples), answer.asked, answer.optimum_at_least) == (2, None, None)
    assert answer.coverage_at_most is not None
    assert answer.random_coverage < answer.coverage <= best <= answer.coverage_at_most + 1e-12
    assert answer.guarantee * best <= answer.coverage
    assert answer.guarantee == 0.75


def test_min_samples_shrinks_the_footprint(library: Library, fired: Reference) -> None:
    answer = ask(library, 1.0, "last", min_samples=3)
    assert answer.dataset.n_features == int(((np.asarray(fired.last) > 0).sum(0) >= 3).sum())
    assert answer.coverage == pytest.approx(1.0)


def test_the_rows_are_those_that_were_chosen(library: Library) -> None:
    chosen = select_subset(library, SAE, "tales", 0.9, "last")
    rows = list(sample_records(library, chosen.source, chosen.found.ordinals))
    assert [row["id"] for row in rows] == answer_of(library, chosen).samples
    assert all(row in TALES for row in rows)


@pytest.mark.parametrize("where", [{"level": 1}, {"answer": {"min": 90}}])
def test_a_slice_is_a_dataset_of_its_own(library: Library, problems: Reference, where: dict[str, Any]) -> None:
    """The samples, the footprint and the null are those of the slice; the optimum is found by trying every pair."""
    chosen = [i for i, row in enumerate(PROBLEMS) if row["level"] == 1 or "answer" in where]
    chosen = [i for i in chosen if "answer" not in where or PROBLEMS[i]["answer"] >= 90]
    matrix = np.asarray(problems.last)[chosen] > 0
    part = DatasetPart(dataset="problems", where=where)
    answer = answer_of(library, select_subset(library, SAE, part, 0.9, "last"))
    rows = [int(id_[1:]) for id_ in answer.samples]
    assert set(rows) <= set(chosen)
    assert answer.dataset.n_samples == len(chosen)
    assert answer.dataset.where == where
    assert answer.dataset.n_features == matrix.any(0).sum()
    covered = (np.asarray(problems.last)[rows] > 0).any(0).sum() / matrix.any(0).sum()
    assert answer.coverage == pytest.approx(covered)
    assert answer.coverage >= 0.9
    best = max(int((a | b).sum()) for a, b in itertools.combinations(matrix, 2)) / int(matrix.any(0).sum())
    two = answer_of(library, select_subset(library, SAE, part, None, "last", n=2))
    assert 0.75 * best <= two.coverage <= best <= (two.coverage_at_most or 0) + 1e-12
    n, m = len(chosen), matrix.sum(0)
    expected = [1 - comb(n - int(k), 2) / comb(n, 2) for k in m[m > 0]]
    assert two.random_coverage == pytest.approx(float(np.mean(expected)))
    mass = select_subset(library, SAE, part, 0.9, "last", weights="activation").worth
    whole = select_subset(library, SAE, "problems", 0.9, "last", weights="activation").worth
    np.testing.assert_array_equal(mass, np.where(matrix.any(0), whole, 0))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"coverage": 0.0}, InputError, "coverage=0: a share above 0 and up to 1"),
        ({"coverage": 1.5}, InputError, "coverage=1.5: a share"),
        ({"coverage": 0.5, "n": 3}, InputError, "a coverage or a number of samples, not both"),
        ({"n": 0}, InputError, "n=0: at least 1 sample"),
        ({"n": 51}, InputError, "n=51: tales has 50 samples"),
        ({"weights": "random"}, InputError, "weights='random': one of uniform, inverse_frequency, activation"),
        ({"min_samples": 51}, InputError, "no feature fires in 51 samples of tales: there is nothing to cover"),
        ({"as_of": 2}, NotFound, "dataset 'tales' was not indexed"),
    ],
)
def test_wrong_questions_are_refused_in_words(
    library: Library, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        ask(library, **arguments)


def test_what_memory_cannot_hold_is_refused(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MOST_PAIRS", 10)
    with pytest.raises(
        InputError, match="tales has .* pairs of a sample and a feature under pool any, .* ask with pool last"
    ):
        ask(library)
