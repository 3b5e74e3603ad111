"""Overlap, difference and redundancy against sets counted by hand from an independent computation."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from api.services.library import Library
from api.services.questions.diff import diff
from api.services.questions.overlap import overlap
from api.services.questions.redundancy import redundancies
from schema.errors import Conflict, InputError, NotFound
from schema.settings import Settings
from schema.wire.query import DatasetPart
from tests.indexer.reference import Reference, reference
from tests.making import PROBLEMS, SONGS, TALES

SAE = "tiny-qwen3/2-tiny"
NAMES = ["problems", "songs", "tales"]
ROWS = {"problems": PROBLEMS, "songs": SONGS, "tales": TALES}


@pytest.fixture(scope="module")
def fired(model_dir: Path, release_dir: Path) -> dict[str, Reference]:
    """Layer 2, one sample at a time."""
    return {
        name: reference(model_dir, release_dir, [2], [row["text"] for row in rows], 6, max_tokens=256)[2]
        for name, rows in ROWS.items()
    }


def footprint(found: Reference, pool: str, at_least: int) -> set[int]:
    counts = ((found.any if pool == "any" else found.last) > 0).sum(0)
    return set(np.flatnonzero(counts >= at_least).tolist())


@pytest.mark.parametrize("pool", ["any", "last"])
@pytest.mark.parametrize("at_least", [1, 5])
def test_overlap_is_set_arithmetic(library: Library, fired: dict[str, Reference], pool: Any, at_least: int) -> None:
    answer = overlap(library, SAE, NAMES, pool, at_least)
    sets = [footprint(fired[name], pool, at_least) for name in NAMES]
    assert [d.n_features for d in answer.datasets] == [len(s) for s in sets]
    for i, j in itertools.product(range(3), repeat=2):
        a, b = sets[i], sets[j]
        assert answer.shared[i][j] == len(a & b)
        assert answer.overlap[i][j] == pytest.approx(len(a & b) / len(a))
        assert answer.overlap_min[i][j] == pytest.approx(len(a & b) / min(len(a), len(b)))
        assert answer.jaccard[i][j] == pytest.approx(len(a & b) / len(a | b))
    assert answer.provenance.pool == pool
    assert answer.provenance.mask == "special,first"
    assert answer.provenance.runs == {"problems": 1, "songs": 2, "tales": 3}


def test_rarefied_overlap_is_what_random_subsets_show(library: Library, fired: dict[str, Reference]) -> None:
    """The closed form against 4,000 draws of 45 samples from each dataset."""
    answer = overlap(library, SAE, NAMES, "any", 2)
    assert answer.rarefied_n == 45
    rng = np.random.default_rng(0)
    fires = [fired[name].any > 0 for name in NAMES]
    draws = 4000
    shared, size = np.zeros((3, 3)), np.zeros(3)
    for _ in range(draws):
        one, two = ([f[rng.choice(len(f), 45, replace=False)].sum(0) >= 2 for f in fires] for _ in range(2))
        size += [a.sum() for a in one]
        shared += [[(a & b).sum() for b in two] for a in one]
    np.testing.assert_allclose(np.array(answer.rarefied, float), shared / size[:, None], atol=0.005)


def test_the_difference_is_a_set_and_its_pages_cover_it(library: Library, fired: dict[str, Reference]) -> None:
    expected = footprint(fired["tales"], "last", 1) - footprint(fired["songs"], "last", 1)
    seen: list[int] = []
    cursor, rates = None, []
    while True:
        page = diff(library, SAE, "tales", "songs", "last", limit=7, cursor=cursor, samples=0)
        assert page.total == len(expected)
        seen += [item.index for item in page.data]
        rates += [item.rate_difference for item in page.data]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert len(seen) == len(set(seen))
    assert set(seen) == expected
    assert rates == sorted(rates, reverse=True)


def test_counts_rates_and_tests_of_a_difference(library: Library, fired: dict[str, Reference]) -> None:
    from scipy import stats

    answer = diff(library, SAE, "problems", "songs", "any", min_samples=3, samples=0, limit=1000)
    a, b = ((fired[name].any > 0).sum(0) for name in ("problems", "songs"))
    tested = np.flatnonzero(a + b)
    p = np.array([stats.fisher_exact([[a[f], 60 - a[f]], [b[f], 45 - b[f]]]).pvalue for f in tested])
    q = dict(zip(tested.tolist(), stats.false_discovery_control(p), strict=True))
    assert answer.n_tested == len(tested)
    assert {item.index for item in answer.data} == footprint(fired["problems"], "any", 3) - footprint(
        fired["songs"], "any", 3
    )
    for item in answer.data:
        assert item.counts == {"problems": a[item.index], "songs": b[item.index]}
        assert item.rates == {"problems": a[item.index] / 60, "songs": b[item.index] / 45}
        assert item.q_value == pytest.approx(q[item.index], rel=1e-6)
        assert item.interval[0] <= item.rate_difference <= item.interval[1]
        assert item.max_activation == pytest.approx(fired["problems"].any[:, item.index].max(), rel=2e-3)


@pytest.mark.parametrize("pool", ["any", "last"])
def test_the_samples_shown_prove_the_feature(library: Library, fired: dict[str, Reference], pool: Any) -> None:
    texts = {row["id"]: row["text"] for row in TALES}
    answer = diff(library, SAE, "tales", "songs", pool, samples=2, limit=20)
    assert any(item.samples for item in answer.data)
    for item in answer.data:
        values = (fired["tales"].any if pool == "any" else fired["tales"].last)[:, item.index]
        assert len(item.samples) == min(2, int((values > 0).sum()))
        strongest = sorted(values[values > 0], reverse=True)
        # postings rank to within 3 %: which of two nearly equal samples comes first is open, how strong they are is not
        assert [s.activation for s in item.samples] == pytest.approx(strongest[: len(item.samples)], rel=0.035)
        assert [s.activation for s in item.samples] == sorted((s.activation for s in item.samples), reverse=True)
        own = {row["id"]: values[i] for i, row in enumerate(TALES)}
        assert [s.activation for s in item.samples] == pytest.approx([own[s.id] for s in item.samples], rel=2e-3)
        for sample in item.samples:
            assert sample.text == texts[sample.id][sample.offset : sample.offset + len(sample.text)]
            assert sample.tokens
            assert max(token.activation for token in sample.tokens) == pytest.approx(sample.activation)
            assert all(0 <= token.start <= token.end <= len(sample.text) for token in sample.tokens)


def test_other_orders(library: Library) -> None:
    by_q = diff(library, SAE, "problems", "songs", sort="q_value", samples=0)
    assert [i.q_value for i in by_q.data] == sorted(i.q_value for i in by_q.data)
    by_max = diff(library, SAE, "problems", "songs", sort="max_activation", samples=0)
    assert [i.max_activation for i in by_max.data] == sorted((i.max_activation for i in by_max.data), reverse=True)


def test_redundancy_with_its_baselines(library: Library, fired: dict[str, Reference]) -> None:
    answer = redundancies(library, SAE, NAMES, "last")
    for item in answer.data:
        m = (fired[item.dataset].last > 0).sum(0)
        m, n = m[m > 0], len(ROWS[item.dataset])
        assert item.redundancy == pytest.approx((n + 1) / len(m) ** 2 * (m / (m + 1)).sum())
        assert (item.baseline_n, item.baseline_n_over_f) == (n, pytest.approx(n / len(m)))
        assert item.curve[-1] == (n, pytest.approx(1.0))
        assert item.footprints == {pool: len(footprint(fired[item.dataset], pool, 1)) for pool in ("any", "last")}


def test_redundancy_of_a_slice(library: Library, fired: dict[str, Reference]) -> None:
    chosen = [i for i, row in enumerate(PROBLEMS) if row["level"] == 2]
    part = DatasetPart(dataset="problems", where={"level": 2})
    item, whole = redundancies(library, SAE, [part, "problems"], "last").data
    m = (np.asarray(fired["problems"].last)[chosen] > 0).sum(0)
    m, n = m[m > 0], len(chosen)
    assert item.redundancy == pytest.approx((n + 1) / len(m) ** 2 * (m / (m + 1)).sum())
    assert (item.dataset, item.n_samples, item.n_features) == ("problems[level=2]", n, len(m))
    assert item.footprints["any"] == (np.asarray(fired["problems"].any)[chosen] > 0).any(0).sum()
    assert (whole.dataset, whole.n_samples) == ("problems", 60)


def test_an_empty_footprint_gives_no_share(library: Library) -> None:
    answer = overlap(library, SAE, NAMES, "last", 46)
    assert answer.overlap[1] == [None, None, None], "no feature fires in 46 of 45 samples"
    assert answer.datasets[1].n_features == 0


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda b: overlap(b, SAE, ["problem", "songs"]), NotFound, "did you mean problems?"),
        (lambda b: overlap(b, "tiny-qwen3/9-tiny", NAMES), NotFound, "no SAE named .*did you mean tiny-qwen3/"),
        (lambda b: overlap(b, None, NAMES), InputError, "name an SAE with --sae: tiny-qwen3/0-tiny"),
        (lambda b: overlap(b, SAE, ["songs"]), InputError, "at least two datasets"),
        (lambda b: overlap(b, SAE, ["songs", "songs"]), InputError, "at least two datasets"),
        (lambda b: overlap(b, SAE, NAMES, min_samples=0), InputError, "min_samples=0"),
        (lambda b: overlap(b, SAE, NAMES, as_of=99), InputError, "as_of=99: snapshots so far are 1 to 3"),
        (lambda b: overlap(b, SAE, NAMES, as_of=2), NotFound, "dataset 'tales' was not indexed with"),
        (lambda b: overlap(b, SAE, ["songs@7", "tales"]), NotFound, "dataset 'songs@7' was not indexed"),
        (lambda b: overlap(b, SAE, ["songs@x", "tales"]), InputError, "a dataset's version, as in songs@2"),
        (lambda b: diff(b, SAE, "songs", "songs"), InputError, "are the same dataset"),
        (lambda b: diff(b, SAE, "songs", "tales", sort="id"), InputError, "sort='id'"),
        (lambda b: diff(b, SAE, "songs", "tales", samples=11), InputError, "samples=11"),
        (
            lambda b: diff(b, SAE, "songs", "tales", cursor="nonsense"),
            InputError,
            "cursor: not one that this server gave",
        ),
        (lambda b: redundancies(b, SAE, []), InputError, "at least one dataset"),
    ],
)
def test_wrong_questions_are_refused_in_words(library: Library, call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call(library)


def test_answers_stay_the_same_as_of_their_snapshot(tmp_path: Path, index_args: dict[str, Any], data_dir: Path) -> None:
    from indexer.config import IndexConfig
    from indexer.run import index
    from schema.home import open_home
    from tests.making import write_jsonl

    settings = Settings.read(tmp_path / "home", {})
    songs = write_jsonl(tmp_path / "songs.jsonl", SONGS)

    def run(**changes: Any) -> None:
        datasets = (("songs", str(songs)), ("tales", str(data_dir / "tales.jsonl")))
        index(IndexConfig(**{**index_args, "datasets": datasets, "layers": "2", **changes}), settings)

    run()
    library = Library(open_home(settings))
    before = overlap(library, None, ["songs", "tales"])
    write_jsonl(songs, SONGS[:9])
    run()
    library.refresh()
    after = overlap(library, None, ["songs", "tales"])
    assert (before.datasets[0].n_samples, after.datasets[0].n_samples) == (45, 9)
    assert overlap(library, None, ["songs", "tales"], as_of=before.provenance.snapshot) == before
    assert overlap(library, None, ["songs@1", "tales"]).overlap == before.overlap
    assert overlap(library, None, ["songs@1", "songs@2"]).provenance.runs == {"songs@1": 1, "songs@2": 3}

    run(mask="none", datasets=(("songs", str(songs)),))
    assert overlap(library, None, ["songs", "tales"]).provenance.mask == "special,first", "the recipe that both share"
    run(mask="none", datasets=(("other", str(songs)),))
    with pytest.raises(Conflict, match=r"cannot be compared: other with mask=none and tales with mask=special,fi"):
        overlap(library, None, ["other", "tales"])
    library.home.close()


def test_runs_of_one_template_are_compared_and_any_run_can_be_named(
    tmp_path: Path, index_args: dict[str, Any], data_dir: Path
) -> None:
    from indexer.config import IndexConfig
    from indexer.run import index
    from schema.home import open_home

    settings = Settings.read(tmp_path / "home", {})
    songs, tales = (("songs", str(data_dir / "songs.jsonl")), ("tales", str(data_dir / "tales.jsonl")))

    def run(*datasets: tuple[str, str], **changes: Any) -> None:
        index(IndexConfig(**{**index_args, "datasets": datasets, "layers": "2", **changes}), settings)

    run(songs)
    run(songs, template="Mood: {mood}")
    run(tales)
    library = Library(open_home(settings))
    assert overlap(library, None, ["songs", "tales"]).provenance.runs == {"songs": 1, "tales": 3}
    assert redundancies(library, None, ["songs"]).provenance.runs == {"songs": 2}, "the newest, where nothing decides"
    assert overlap(library, None, ["songs@run2", "tales"]).provenance.runs == {"songs": 2, "tales": 3}
    both = overlap(library, None, ["songs@run1", "songs@run2"])
    assert both.provenance.runs == {"songs@run1": 1, "songs@run2": 2}
    assert [*diff(library, None, "songs@run1", "songs@run2").data[0].counts] == ["songs@run1", "songs@run2"]
    assert [item.dataset for item in redundancies(library, None, ["songs@run1", "songs@run2"]).data] == [
        "songs@run1",
        "songs@run2",
    ]
    with pytest.raises(NotFound, match=r"dataset 'tales@run2' was not indexed with"):
        overlap(library, None, ["songs", "tales@run2"])
    library.home.close()


def test_a_run_that_is_not_finished_does_not_exist(tmp_path: Path, index_args: dict[str, Any], data_dir: Path) -> None:
    from indexer.config import IndexConfig
    from indexer.run import index
    from schema.home import open_home
    from schema.tables import Run

    settings = Settings.read(tmp_path / "home", {})
    index(
        IndexConfig(**{**index_args, "datasets": (("songs", str(data_dir / "songs.jsonl")),), "layers": "2"}), settings
    )
    home = open_home(settings)
    with home.database.writing() as session:
        session.query(Run).one().finished = None
    with pytest.raises(NotFound, match="is not indexed to the end with .* run its 'scopebase index' command again"):
        overlap(Library(home), None, ["songs", "songs@1"])
    home.close()
