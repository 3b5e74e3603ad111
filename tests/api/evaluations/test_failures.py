"""Where a model fails: every number against a table of samples, and a planted failure that must come first."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy import stats

from api.services.evaluations.failures import failures
from api.services.evaluations.files import parse_rows
from api.services.evaluations.results import import_scores
from api.services.library import Library
from schema.errors import InputError, NotFound
from schema.home import open_home
from schema.lab import Label
from schema.lookup import find_sae
from schema.settings import Settings
from tests.indexer.reference import Reference, reference
from tests.making import TALES
from tests.scoring import score_rows

SAE = "tiny-qwen3/2-tiny"
IDS = [row["id"] for row in TALES]


@pytest.fixture(scope="module")
def fired(model_dir: Any, release_dir: Any) -> Reference:
    return reference(model_dir, release_dir, [2], [row["text"] for row in TALES], 6, max_tokens=256)[2]


@pytest.fixture(scope="module")
def planted(fired: Reference) -> int:
    """The feature that fires in about half of the samples."""
    return int(np.abs((np.asarray(fired.any) > 0).sum(0) - 25).argmin())


@pytest.fixture(scope="module")
def right(fired: Reference, planted: int) -> np.ndarray:
    """A model that is wrong where the planted feature fires, with 10 % of accidents."""
    accident = np.random.default_rng(0).random(50) < 0.1
    wrong: np.ndarray = (np.asarray(fired.any)[:, planted] > 0) ^ accident
    return (~wrong).astype(np.float64)


@pytest.fixture(scope="module")
def library(
    indexed: Settings, tmp_path_factory: pytest.TempPathFactory, right: np.ndarray, planted: int
) -> Iterator[Library]:
    copy = Settings.read(tmp_path_factory.mktemp("failures") / "home", {})
    shutil.copytree(indexed.home, copy.home)
    library = Library(open_home(copy))
    graded = right * 0.5 + np.arange(50) / 100
    for metric, scores, n in (("acc", right, 50), ("acc_40", right, 40), ("f1", graded, 50)):
        file = parse_rows(score_rows(IDS[:n], scores[:n]), metric, "invented")
        import_scores(library, "tales", "clumsy", metric, [file], "ann")
    with library.home.database.writing() as session:
        sae = find_sae(session, SAE)
        session.add(Label(sae_id=sae.id, feature=planted, text="the planted one", author="ann", source="person"))
    yield library
    library.home.close()


@pytest.mark.parametrize(("metric", "n"), [("acc", 50), ("acc_40", 40)])
@pytest.mark.parametrize("pool", ["any", "last"])
def test_right_and_wrong_answers(
    library: Library, fired: Reference, right: np.ndarray, metric: str, n: int, pool: Any
) -> None:
    answer = failures(library, SAE, "tales", "clumsy", metric, pool, 5, "both", limit=1000, samples=10)
    fires, scores = np.asarray(getattr(fired, pool))[:n] > 0, right[:n]
    tested = [f for f in range(256) if 5 <= fires[:, f].sum() <= n - 5]
    assert sorted(item.index for item in answer.data) == tested
    assert (answer.n_tested, answer.total, answer.n_scored, answer.test) == (len(tested), len(tested), n, "fisher")
    p = {}
    for item in answer.data:
        one, two = scores[fires[:, item.index]], scores[~fires[:, item.index]]
        table = [[one.sum(), len(one) - one.sum()], [two.sum(), len(two) - two.sum()]]
        p[item.index] = stats.fisher_exact(table).pvalue
        assert (item.n_firing, item.n_silent) == (len(one), len(two))
        assert (item.mean_firing, item.mean_silent) == pytest.approx((one.mean(), two.mean()))
        assert item.difference == pytest.approx(one.mean() - two.mean())
        assert item.p_value == pytest.approx(p[item.index], rel=1e-6)
        assert item.interval[0] <= item.difference <= item.interval[1]
        assert len(item.samples) == min(10, len(one))
        shown = [scores[IDS.index(id_)] for id_ in item.samples]
        assert shown == sorted(one)[:10]
        assert all(fires[IDS.index(id_), item.index] for id_ in item.samples)
    if tested:
        q = dict(zip(tested, stats.false_discovery_control([p[f] for f in tested]), strict=True))
        assert {item.index: item.q_value for item in answer.data} == pytest.approx(q)
    assert [i.p_value for i in answer.data] == sorted(i.p_value for i in answer.data)


def test_the_planted_failure_comes_first(library: Library, planted: int) -> None:
    answer = failures(library, SAE, "tales", metric="acc")
    assert (answer.data[0].index, answer.data[0].label) == (planted, "the planted one")
    assert answer.data[0].q_value < 0.001
    assert answer.data[0].feature == f"{SAE}/{planted}"
    assert all(item.difference < 0 for item in answer.data)
    higher = failures(library, SAE, "tales", metric="acc", direction="higher", sort="difference")
    differences = [item.difference for item in higher.data]
    assert differences == sorted(differences, reverse=True)
    assert min(differences) > 0


def test_graded_scores(library: Library, fired: Reference, right: np.ndarray) -> None:
    answer = failures(library, SAE, "tales", metric="f1", direction="both", limit=1000)
    fires, scores = np.asarray(fired.any) > 0, right * 0.5 + np.arange(50) / 100
    assert answer.test == "mann-whitney"
    for item in answer.data:
        one, two = scores[fires[:, item.index]], scores[~fires[:, item.index]]
        expected = stats.mannwhitneyu(one, two, method="asymptotic", alternative="two-sided").pvalue
        assert item.p_value == pytest.approx(expected, rel=1e-9)
        half = 1.959964 * np.sqrt(one.var(ddof=1) / len(one) + two.var(ddof=1) / len(two))
        assert item.interval == pytest.approx((item.difference - half, item.difference + half))


def test_pages_cover_the_list(library: Library) -> None:
    whole = failures(library, SAE, "tales", metric="acc", limit=1000)
    seen, cursor = [], None
    while True:
        page = failures(library, SAE, "tales", metric="acc", limit=2, cursor=cursor)
        seen += page.data
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == whole.data
    assert len(seen) == whole.total > 2


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"evaluated": "clumsey"}, NotFound, "no model evaluated on tales@1 named 'clumsey'; did you mean clumsy"),
        ({"metric": None}, InputError, "several metrics; name one: acc, acc_40, f1"),
        ({"min_support": 0}, InputError, "min_support=0: at least 1"),
        ({"direction": "up"}, InputError, "direction='up': one of lower, higher, both"),
        ({"sort": "p"}, InputError, "sort='p': one of q_value, difference"),
        ({"samples": 11}, InputError, "samples=11: from 0 to 10"),
    ],
)
def test_wrong_questions_are_refused_in_words(
    library: Library, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        failures(library, SAE, "tales", **{"metric": "acc", **arguments})
