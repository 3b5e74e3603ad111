"""Advice on a suite, against sets and draws from an independent computation."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from api.services.library import Library
from api.services.suite.advice import advise
from schema.errors import InputError, NotFound
from schema.wire.suite import SuiteRequest
from tests.indexer.reference import Reference, reference
from tests.making import PROBLEMS, SONGS, TALES

SAE = "tiny-qwen3/2-tiny"
ROWS = {"problems": PROBLEMS, "songs": SONGS, "tales": TALES}
NAMES = list(ROWS)


@pytest.fixture(scope="module")
def fired(model_dir: Any, release_dir: Any) -> dict[str, Reference]:
    return {
        name: reference(model_dir, release_dir, [2], [row["text"] for row in rows], 6, max_tokens=256)[2]
        for name, rows in ROWS.items()
    }


@pytest.mark.parametrize("pool", ["any", "last"])
@pytest.mark.parametrize("least", [1, 4])
def test_shares_and_drops_are_set_arithmetic(
    library: Library, fired: dict[str, Reference], pool: Any, least: int
) -> None:
    sets = {
        name: set(np.flatnonzero(((getattr(found, pool)) > 0).sum(0) >= least).tolist())
        for name, found in fired.items()
    }
    answer = advise(library, SuiteRequest(datasets=NAMES, sae=SAE, pool=pool, min_samples=least))
    for item in answer.data:
        own = sets[item.dataset.name]
        rest = set().union(*(s for name, s in sets.items() if name != item.dataset.name))
        assert item.covered == pytest.approx(len(own & rest) / len(own))
        assert (item.n_unique, item.dataset.n_features) == (len(own - rest), len(own))
    union = set().union(*sets.values())
    assert answer.n_features == len(union)
    left = list(NAMES)
    for drop in answer.drops:
        here = set().union(*(sets[name] for name in left))
        loss = {name: len(here - set().union(*(sets[n] for n in left if n != name))) for name in left}
        assert drop.lost == loss[drop.dataset] == min(loss.values())
        left.remove(drop.dataset)
        remaining = set().union(*(sets[name] for name in left))
        assert drop.coverage == pytest.approx(len(remaining) / len(union))
        assert drop.n_samples == sum(len(ROWS[name]) for name in left)
        picks = [set().union(*(sets[n] for n in kept)) for kept in itertools.combinations(NAMES, len(left))]
        assert drop.random_coverage == pytest.approx(np.mean([len(p) for p in picks]) / len(union))
    assert left == [answer.keep]


def test_rarefied_shares_are_what_draws_show(library: Library, fired: dict[str, Reference]) -> None:
    answer = advise(library, SuiteRequest(datasets=NAMES, sae=SAE, pool="last", low=0.9))
    rng, fires = np.random.default_rng(0), [np.asarray(fired[name].last) > 0 for name in NAMES]
    assert answer.rarefied_n == 45
    shared, own, nearest, size = np.zeros(3), np.zeros(3), np.zeros((3, 3)), np.zeros(3)
    for _ in range(3000):
        one, two = ([f[rng.choice(len(f), 45, replace=False)].any(0) for f in fires] for _ in range(2))
        for i in range(3):
            size[i] += one[i].sum()
            own[i] += (one[i] & two[i]).sum()
            shared[i] += (one[i] & np.any([two[j] for j in range(3) if j != i], axis=0)).sum()
            nearest[i] += [(one[i] & two[j]).sum() for j in range(3)]
    for i, item in enumerate(answer.data):
        assert item.covered_rarefied == pytest.approx(shared[i] / size[i], abs=0.01)
        assert item.self_rarefied == pytest.approx(own[i] / size[i], abs=0.01)
        single = {NAMES[j]: nearest[i][j] / size[i] for j in range(3) if j != i}
        assert item.nearest_rarefied == pytest.approx(max(single.values()), abs=0.01)
        assert (item.nearest is None) == (max(single.values()) == 0)
        assert item.nearest is None or single[item.nearest] == pytest.approx(item.nearest_rarefied, abs=0.01)
        assert item.apart == (item.nearest_rarefied < 0.9)


def test_slices_of_one_dataset_are_a_suite(library: Library, fired: dict[str, Reference]) -> None:
    parts = [{"dataset": "problems", "where": {"level": level}} for level in (0, 1)]
    rest = {"dataset": "problems", "where_not": {"level": [0, 1]}}
    request = {"sae": SAE, "pool": "last", "datasets": ["songs", *parts, rest]}
    answer = advise(library, SuiteRequest.model_validate(request))
    last = {name: np.asarray(found.last) > 0 for name, found in fired.items()}
    rows = [[i for i, row in enumerate(PROBLEMS) if row["level"] == level] for level in range(3)]
    sets = [set(np.flatnonzero(last["songs"].any(0)).tolist())]
    sets += [set(np.flatnonzero(last["problems"][chosen].any(0)).tolist()) for chosen in rows]
    names = ["songs", "problems[level=0]", "problems[level=1]", "problems[not level=0|1]"]
    assert [item.dataset.name for item in answer.data] == names
    for i, item in enumerate(answer.data):
        others = set().union(*(found for j, found in enumerate(sets) if j != i))
        assert item.dataset.n_features == len(sets[i])
        assert item.covered == pytest.approx(len(sets[i] & others) / len(sets[i]))
    assert answer.rarefied_n == min(len(chosen) for chosen in rows)
    assert {*(drop.dataset for drop in answer.drops), answer.keep} == set(names)
    assert answer.drops[-1].n_samples in (45, *(len(chosen) for chosen in rows))
    for both in (["problems", parts[0]], [parts[0], {"dataset": "problems", "where": {"level": [0, 2]}}]):
        with pytest.raises(InputError, match="share 20 samples and cannot be compared"):
            advise(library, SuiteRequest.model_validate({**request, "datasets": both}))


def test_wrong_questions_are_refused_in_words(library: Library) -> None:
    for datasets, error, words in (
        (["songs", "songs"], InputError, "at least two datasets of the suite"),
        (["songs", "tals"], NotFound, "did you mean tales?"),
    ):
        with pytest.raises(error, match=words):
            advise(library, SuiteRequest(datasets=datasets, sae=SAE))
    with pytest.raises(InputError, match="no feature fires in 1000 samples of any"):
        advise(library, SuiteRequest(datasets=NAMES, sae=SAE, min_samples=1000))
