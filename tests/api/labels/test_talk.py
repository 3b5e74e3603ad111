"""Votes and comments travel with labels: with their authors and times, once however often they come, and never over what is said here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from sqlalchemy import text

from api.services.labels import book, talk
from api.services.labels.book import Filter
from api.services.labels.importing import import_labels
from api.services.library import Library
from schema.database import Database, current_revision, downgrade, upgrade
from schema.errors import InputError
from schema.home import open_home
from schema.settings import Settings
from tests.api.labels.test_packs import add, every, pack, send, write
from tests.laboratory import make_lab, sha_of


@pytest.fixture
def labs(tmp_path: Path) -> Iterator[list[Library]]:
    """Three labs with the same SAEs."""
    made = [make_lab(tmp_path / name) for name in "abc"]
    yield made
    for lab in made:
        lab.home.close()


def said(lab: Library, uid: str) -> list[tuple[str, str, str | None, datetime]]:
    return [(each.author, each.text, each.home, each.at) for each in talk.comments(lab, uid).data]


def votes(lab: Library) -> list[tuple[str, str, int]]:
    query = text("SELECT voter, home, value FROM label_votes ORDER BY voter, home")
    with lab.home.database.reading() as session:
        return [tuple(row) for row in session.execute(query)]  # type: ignore[misc]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_what_was_said_arrives_once_and_goes_on(labs: list[Library], tmp_path: Path, form: str) -> None:
    a, b, c = labs
    uid = add(a, "apples").id
    for who, value in (("ann", 1), ("bob", 1), ("cyd", -1)):
        talk.vote(a, uid, who, value)
    first, second = talk.comment(a, uid, "bob", "why?"), talk.comment(a, uid, "ann", "«so»\nyes")
    report = send(a, b, tmp_path, form=form)
    assert (report.created, report.votes, report.comments, report.n_talk_conflicts) == (1, 3, 2, 0)
    home = a.store.identity()
    assert every(b)[uid].votes == 1
    assert said(b, uid) == [("bob", "why?", home, first.at), ("ann", "«so»\nyes", home, second.at)]
    again = send(a, b, tmp_path, form=form)
    assert (again.unchanged, again.votes, again.comments) == (1, 0, 0)
    # bob of b is somebody else, and what came goes on to the next
    talk.vote(b, uid, "bob", 1)
    talk.comment(b, uid, "bob", "because")
    report = send(b, c, tmp_path, form=form)
    assert (report.votes, report.comments, every(c)[uid].votes) == (4, 3, 2)
    assert [(who, home) for who, _, home, _ in said(c, uid)][2:] == [("bob", b.store.identity())]
    # home again by a detour: only what is new
    report = send(c, a, tmp_path, form=form)
    assert (report.unchanged, report.votes, report.comments, report.n_talk_conflicts) == (1, 1, 1, 0)
    assert (every(a)[uid].votes, every(a)[uid].version) == (2, 1)


def test_the_later_vote_holds_and_one_taken_back_stays_away(labs: list[Library], tmp_path: Path) -> None:
    a, b, _ = labs
    uid = add(a, "apples").id
    talk.vote(a, uid, "ann", 1)
    old = shutil.copy(pack(a, tmp_path), tmp_path / "old.jsonl")
    import_labels(b, old, "bob")
    talk.vote(a, uid, "ann", 0)
    assert (send(a, b, tmp_path).votes, every(b)[uid].votes) == (1, 0)
    assert votes(b) == [("ann", a.store.identity(), 0)]
    for lab in (a, b):
        report = import_labels(lab, old, "bob")
        assert (report.votes, report.n_talk_conflicts, every(lab)[uid].votes) == (0, 0, 0)


def test_no_pack_changes_a_vote_that_was_cast_here(labs: list[Library], tmp_path: Path) -> None:
    """A copy of a home has its id: what it says is taken in, but where it contradicts a vote of ours it is reported."""
    a = labs[0]
    uid = add(a, "apples").id
    talk.vote(a, uid, "ann", 1)
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    twin = Library(open_home(Settings.read(tmp_path / "copy", {})))
    talk.vote(twin, uid, "ann", -1)
    talk.vote(twin, uid, "dan", 1)
    report = send(twin, a, tmp_path)
    assert (report.votes, report.n_talk_conflicts, every(a)[uid].votes) == (1, 1, 2)
    conflict = report.talk_conflicts[0]
    assert (conflict.what, conflict.by, conflict.mine, conflict.theirs) == ("vote", "ann", "+1", "-1")
    twin.home.close()


def comment_row(**more: Any) -> dict[str, Any]:
    row = {"id": "c1", "author": "eve", "text": "hm", "at": "2026-01-02T03:04:05Z"}
    return {"id": "x1", "sae_sha256": sha_of("m/3-tiny"), "index": 1, "text": "apples", "comments": [row | more]}


def test_a_comment_of_one_id_with_other_words_is_reported(labs: list[Library], tmp_path: Path) -> None:
    a = labs[0]
    import_labels(a, write(tmp_path, comment_row()), "bob")
    report = import_labels(a, write(tmp_path, comment_row(text="other words")), "bob")
    assert (report.comments, report.n_talk_conflicts) == (0, 1)
    assert (report.talk_conflicts[0].mine, report.talk_conflicts[0].theirs) == ("hm", "other words")
    assert said(a, "x1") == [("eve", "hm", "unknown", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))]


def test_what_was_said_of_both_goes_to_the_one_it_was_said_of(labs: list[Library], tmp_path: Path) -> None:
    a, b, _ = labs
    uid = add(a, "apples").id
    send(a, b, tmp_path)
    book.change(b, uid, book.LabelChange(version=1, text="pears"), "bob")
    talk.vote(b, uid, "bob", 1)
    assert send(b, a, tmp_path, "duplicate").votes == 1
    assert {label.text: label.votes for label in every(a).values()} == {"apples": 0, "pears": 1}
    assert send(b, a, tmp_path, "duplicate").votes == 0
    book.delete(a, uid, "ann")
    assert send(b, a, tmp_path).votes == 0, "what is deleted here is not talked about"


def test_a_changed_vote_is_news_to_who_asks_what_is_new(labs: list[Library], tmp_path: Path) -> None:
    a, b, _ = labs
    quiet, loud = add(a, "apples"), add(a, "pears", 2)
    since = datetime.now(UTC)
    talk.vote(a, loud.id, "ann", 1)
    assert {label.id for label in book.list_labels(a, Filter(updated_since=since)).data} == {loud.id}
    import_labels(b, pack(a, tmp_path), "bob")
    assert set(every(b)) == {quiet.id, loud.id}


def test_packs_written_before_are_read(labs: list[Library], tmp_path: Path) -> None:
    a, b, c = labs
    header = {"scopebase_labels": 1, "home": "0f" * 16, "exported_at": "2026-01-01T00:00:00Z"}
    row = {
        "id": "x1",
        "sae_sha256": sha_of("m/3-tiny"),
        "index": 1,
        "text": "apples",
        "updated_at": "2026-01-01T00:00:00",
    }
    assert import_labels(a, write(tmp_path, header, row), "bob").created == 1
    later = write(tmp_path, header, {**row, "text": "pears", "updated_at": "2025-01-01T00:00:00"})
    assert import_labels(a, later, "bob", policy="update").kept == 1, "who names no time zone means UTC"
    talk.vote(a, "x1", "ann", 1)
    before = pq.read_table(pack(a, tmp_path, "parquet")).drop_columns(["votes", "comments"])
    metadata = {b"scopebase_labels": json.dumps(header).encode()}
    pq.write_table(before.replace_schema_metadata(metadata), tmp_path / "before.parquet")
    assert import_labels(b, tmp_path / "before.parquet", "bob").created == 1
    talk.vote(b, "x1", "ann", 1)
    assert json.loads(pack(b, tmp_path).read_text().splitlines()[0])["scopebase_labels"] == 2
    assert import_labels(c, pack(b, tmp_path), "bob").votes == 1


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"at": "0001-01-01T00:00:00+14:00"}, "line 1: comments.0.at: Value error, no such moment"),
        ({"home": "a b"}, "line 1: comments.0.home: String should match"),
        ({"text": "a\x00b"}, "line 1: comments.0.text: String should match"),
    ],
)
def test_what_is_no_comment_is_refused(labs: list[Library], tmp_path: Path, more: Any, sentence: str) -> None:
    with pytest.raises(InputError) as refused:
        import_labels(labs[0], write(tmp_path, comment_row(**more)), "bob")
    assert sentence in str(refused.value)
    assert every(labs[0]) == {}


def test_votes_and_comments_of_an_older_home_are_kept(tmp_path: Path, database_url: str) -> None:
    lab = make_lab(tmp_path / "lab", database_url)
    uid = add(lab, "apples").id
    talk.vote(lab, uid, "ann", 1), talk.comment(lab, uid, "bob", "why?")
    import_labels(lab, write(tmp_path, {**comment_row(), "id": uid}), "bob")
    lab.home.close()
    database = Database(database_url)
    downgrade(database, "0003")
    with database.reading() as session:
        assert session.execute(text("SELECT author FROM label_comments")).scalars().all() == ["bob"]
    upgrade(database)
    assert current_revision(database) != "0003"
    database.close()
    again = Library(open_home(Settings(tmp_path / "lab", database_url, str(tmp_path / "lab" / "store"))))
    assert every(again)[uid].votes == 1
    assert [(who, words, home) for who, words, home, _ in said(again, uid)] == [("bob", "why?", None)]
    again.home.close()
