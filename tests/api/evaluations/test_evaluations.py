"""Importing evaluation results: what joins rows and samples, what is stored, and what survives."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from api.services.evaluations import results as service
from api.services.evaluations.files import parse_rows
from api.services.evaluations.results import import_scores, list_evaluations, read_panel, remove_evaluation
from api.services.evaluations.scored import Scored, ScoreFile
from api.services.library import Library
from schema.errors import Conflict, InputError, NotFound, WorkFailed
from schema.home import open_home
from schema.lab import AuditEntry
from schema.scores import read_scores
from schema.settings import Settings
from schema.wire.evaluations import EvaluationReport
from tests.making import PROBLEMS, TALES

IDS = [row["id"] for row in PROBLEMS]


@pytest.fixture
def library(indexed: Settings, tmp_path: Path) -> Iterator[Library]:
    """A copy that may be written to."""
    copy = Settings.read(tmp_path / "home", {})
    shutil.copytree(indexed.home, copy.home)
    home = open_home(copy)
    yield Library(home)
    home.close()


def plain(values: dict[str, float]) -> ScoreFile:
    return parse_rows([{"id": id_, "score": value} for id_, value in values.items()], "acc", "rows")


def add(library: Library, file: ScoreFile, evaluated: str = "m", **changes: Any) -> EvaluationReport:
    return import_scores(library, "problems", evaluated, "acc", [file], "ann", **changes)


def test_scores_are_stored_by_sample(library: Library) -> None:
    values = {id_: (i % 3) / 2 for i, id_ in enumerate(IDS) if i != 7}
    report = add(library, plain({**dict(reversed(values.items())), "unknown": 1.0}))
    assert (report.state, report.matched_by, report.n_rows, report.n_matched) == ("added", "id", 60, 59)
    assert (report.n_unmatched, report.unmatched, report.n_missing) == (1, ["unknown"], 1)
    assert report.evaluation.mean == pytest.approx(np.mean(list(values.values())))
    panel = read_panel(library, "problems", None)
    assert (panel.evaluated, panel.metric, len(panel.common)) == (["m"], "acc", 59)
    expected = [values.get(id_, np.nan) for id_ in IDS]
    np.testing.assert_array_equal(panel.scores[0], expected)


def test_the_same_again_changes_nothing_and_others_replace(library: Library) -> None:
    first = add(library, plain(dict.fromkeys(IDS, 1.0)))
    again = add(library, plain(dict.fromkeys(reversed(IDS), 1.0)))
    assert (again.state, again.evaluation) == ("unchanged", first.evaluation)
    changed = add(library, plain(dict.fromkeys(IDS, 0.0)))
    assert changed.state == "replaced"
    assert changed.evaluation.id > first.evaluation.id
    assert [item.mean for item in list_evaluations(library).data] == [0.0]
    assert library.store.latest("scores").count_rows("key >= 0") == 1, "the former row is gone"
    with library.home.database.reading() as session:
        actions = [(entry.actor, entry.action) for entry in session.scalars(select(AuditEntry))]
    assert actions == [("ann", "evaluation.import"), ("ann", "evaluation.replace")]


def test_an_import_that_dies_leaves_nothing_and_can_be_repeated(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies between the row in the store and the commit of the transaction that lists it."""

    def die(*_args: object) -> None:
        raise WorkFailed("dead")

    with monkeypatch.context() as patch:
        patch.setattr(service, "audit", die)
        with pytest.raises(WorkFailed, match="dead"):
            add(library, plain(dict.fromkeys(IDS, 1.0)))
    assert list_evaluations(library).data == []
    assert library.store.latest("scores").count_rows("key >= 0") == 1, "nobody's row"
    report = add(library, plain(dict.fromkeys(IDS, 0.5)))
    assert library.store.latest("scores").count_rows("key >= 0") == 1
    assert library.store.latest("scores").count_rows(f"key = {report.evaluation.id}") == 1
    np.testing.assert_array_equal(read_panel(library, "problems", "acc").scores, np.full((1, 60), 0.5))


def test_a_replacement_that_dies_leaves_the_former(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_args: object) -> None:
        raise WorkFailed("dead")

    add(library, plain(dict.fromkeys(IDS, 1.0)))
    with monkeypatch.context() as patch:
        patch.setattr(service, "audit", die)
        with pytest.raises(WorkFailed, match="dead"):
            add(library, plain(dict.fromkeys(IDS, 0.0)))
    np.testing.assert_array_equal(read_panel(library, "problems", "acc").scores, np.ones((1, 60)))
    add(library, plain(dict.fromkeys(IDS, 0.0)))
    np.testing.assert_array_equal(read_panel(library, "problems", "acc").scores, np.zeros((1, 60)))


def test_a_server_sees_what_another_process_imports(library: Library) -> None:
    add(library, plain(dict.fromkeys(IDS, 1.0)), "one")
    assert len(read_panel(library, "problems", "acc").ids) == 1
    other = Library(open_home(library.home.settings))
    add(other, plain(dict.fromkeys(IDS, 0.0)), "two")
    other.home.close()
    assert read_panel(library, "problems", "acc").scores.mean(axis=1).tolist() == [1.0, 0.0]


def test_many_imports_keep_the_table_small(library: Library) -> None:
    for i in range(40):
        add(library, plain(dict.fromkeys(IDS, i / 40)), f"m{i:02d}")
    assert len(library.store.latest("scores").get_fragments()) <= 34
    assert read_panel(library, "problems", "acc").scores.mean(axis=1) == pytest.approx(np.arange(40) / 40)


def test_lists_in_pages_and_removal(library: Library) -> None:
    for name in ("one", "two", "three"):
        add(library, plain(dict.fromkeys(IDS, 1.0)), name)
    page = list_evaluations(library, limit=2)
    rest = list_evaluations(library, limit=2, cursor=page.next_cursor)
    assert [item.evaluated for item in page.data + rest.data] == ["one", "two", "three"]
    assert rest.next_cursor is None
    assert [item.evaluated for item in list_evaluations(library, "problems@1", "two", "acc").data] == ["two"]
    remove_evaluation(library, page.data[0].id, "bob")
    assert [item.evaluated for item in list_evaluations(library).data] == ["two", "three"]
    with pytest.raises(WorkFailed, match="lacks scores that the database lists"):
        read_scores(library.store, [page.data[0].id])
    with pytest.raises(NotFound, match="no evaluation 99"):
        remove_evaluation(library, 99, "bob")


def lm_eval_rows(order: list[int], with_id: bool = False, fields: bool = True) -> ScoreFile:
    """Rows whose score is the ordinal of their sample over 100; `order` are the samples in lm-eval's order."""
    rows = []
    for doc_id, ordinal in enumerate(order):
        doc = {"text": PROBLEMS[ordinal]["text"]} if fields else {}
        rows.append(Scored(ordinal / 100, None, doc_id, {**doc, "id": PROBLEMS[ordinal]["id"]} if with_id else doc))
    return ScoreFile("lm-eval", "x", rows)


SHUFFLED = np.random.default_rng(0).permutation(60).tolist()
STRAIGHT = list(range(60))


@pytest.mark.parametrize(
    ("file", "by"),
    [
        (lm_eval_rows(SHUFFLED, with_id=True), "id"),
        (lm_eval_rows(SHUFFLED), "text"),
        (lm_eval_rows(STRAIGHT, fields=False), "order"),
    ],
)
def test_lm_eval_documents_find_their_samples(library: Library, file: ScoreFile, by: str) -> None:
    report = add(library, file)
    assert (report.matched_by, report.n_missing) == (by, 0)
    np.testing.assert_array_equal(read_panel(library, "problems", "acc").scores[0], np.arange(60) / 100)


def test_places_are_not_believed_where_the_texts_say_otherwise(library: Library) -> None:
    with pytest.raises(Conflict, match="only 0 of 60 rows are samples of problems@1"):
        add(library, lm_eval_rows(SHUFFLED), how="order")
    assert add(library, lm_eval_rows(STRAIGHT), how="order").matched_by == "order"


@pytest.mark.parametrize(
    ("file", "error", "words"),
    [
        (
            plain(dict.fromkeys([row["id"] for row in TALES], 1.0)),
            Conflict,
            "only 0 of 50 rows .*the first row is 't0'",
        ),
        (
            ScoreFile("rows", "x", [Scored(1.0, "p1"), Scored(0.0, "p1")]),
            InputError,
            r"two rows are of one sample \('p1', matched by id\)",
        ),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    library: Library, file: ScoreFile, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        add(library, file)
    assert list_evaluations(library).data == []
    assert not library.store.has("scores"), "nothing was begun"


def test_names_and_datasets_that_are_wrong(library: Library) -> None:
    with pytest.raises(InputError, match=r"evaluated='\\x1b\[2J': a name of printable characters"):
        add(library, plain(dict.fromkeys(IDS, 1.0)), "\x1b[2J")
    with pytest.raises(NotFound, match="did you mean problems"):
        import_scores(library, "problem", "m", "acc", [plain({"p1": 1.0})], "ann")
    with pytest.raises(NotFound, match="no evaluation of problems@1"):
        read_panel(library, "problems", None)
    add(library, plain(dict.fromkeys(IDS, 1.0)))
    with pytest.raises(NotFound, match="no metric of the evaluations of problems@1 named 'ac'; did you mean acc"):
        read_panel(library, "problems", "ac")
    import_scores(library, "problems", "m", "f1", [plain(dict.fromkeys(IDS, 1.0))], "ann")
    with pytest.raises(InputError, match="several metrics; name one: acc, f1"):
        read_panel(library, "problems", None)
    with pytest.raises(InputError, match="has 1 evaluated models under acc; this needs at least 3"):
        read_panel(library, "problems", "acc", 3)
