"""Labels under many hands: nothing is lost, everything can be taken back, and what speaks of other tensors is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, text

from api.services.labels import book, talk
from api.services.labels.book import Filter
from api.services.library import Library
from schema.errors import Conflict, InputError, NotFound
from schema.lab import AuditEntry, LabelEvent
from schema.wire.labels import LabelChange, LabelItem, NewLabel
from tests.laboratory import make_lab, sha_of


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Library]:
    made = make_lab(tmp_path / "lab")
    yield made
    made.home.close()


@pytest.fixture
def shared_lab(tmp_path: Path, database_url: str) -> Iterator[Library]:
    """On SQLite and on PostgreSQL."""
    made = make_lab(tmp_path / "lab", database_url)
    yield made
    made.home.close()


def new(feature: str = "m/3-tiny/7", text: str = "apples", **more: Any) -> NewLabel:
    return NewLabel(feature=feature, text=text, **more)


def at_once(*calls: Callable[[], object]) -> list[object]:
    """Runs calls at the same moment; what each returned or raised."""
    found: list[object] = [None] * len(calls)
    barrier = threading.Barrier(len(calls))

    def run(i: int, call: Callable[[], object]) -> None:
        barrier.wait()
        try:
            found[i] = call()
        except Exception as error:
            found[i] = error

    threads = [threading.Thread(target=run, args=(i, call)) for i, call in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_a_feature_has_several_labels_each_with_its_provenance(lab: Library) -> None:
    one = book.create(lab, new(licence="CC0"), "ann")
    two = book.create(
        lab, new(text="fruit", source="model", explainer="gpt", score=0.5, score_method="detection"), "bob"
    )
    found = book.list_labels(lab, Filter(feature="m/3-tiny/7")).data
    assert [label.id for label in found] == [two.id, one.id]
    assert (one.author, one.source, one.licence, one.version, one.origin) == ("ann", "person", "CC0", 1, [])
    assert one.sae_sha256 == sha_of("m/3-tiny")
    assert book.get(lab, two.id) == two
    with lab.home.database.reading() as session:
        entries = [(e.actor, e.action, e.target) for e in session.scalars(select(AuditEntry).order_by(AuditEntry.id))]
    assert entries == [("ann", "label.create", "m/3-tiny/7"), ("bob", "label.create", "m/3-tiny/7")]


@pytest.mark.parametrize(
    ("given", "error", "sentence"),
    [
        ({"feature": "m/9-tiny/1"}, NotFound, "no SAE named 'm/9-tiny'; did you mean"),
        ({"feature": "m/3-tiny/1000"}, NotFound, "SAE m/3-tiny has features 0 to 999, and none 1,000"),
        ({"feature": "m/3-tiny"}, InputError, "'m/3-tiny' is no feature's id; it looks like"),
        ({"feature": "m/3-tiny/²"}, InputError, "is no feature's id"),
        ({"sae_sha256": "f" * 64}, Conflict, "the label is for tensors ffffffffffff..., but m/3-tiny here has"),
        ({"score": 0.5}, InputError, "a score and its score_method come together"),
        ({"source": "model"}, InputError, "source 'model' needs `explainer`"),
    ],
)
def test_what_is_no_label_is_refused(lab: Library, given: dict[str, Any], error: type, sentence: str) -> None:
    with pytest.raises(error, match=sentence.replace("(", r"\(").replace(".", r"\.")):
        book.create(lab, new(**given), "ann")
    assert book.list_labels(lab, Filter()).data == []


def test_filters_narrow_and_pages_cover(lab: Library) -> None:
    made = [
        book.create(lab, new(f"m/{3 + i % 2}-tiny/{i}", f"Thing {i}%"), ("ann", "bob")[i % 3 == 0]) for i in range(9)
    ]
    cursor, seen = None, []
    while True:
        page = book.list_labels(lab, Filter(sae="m/3-tiny"), 2, cursor)
        seen += [label.index for label in page.data]
        cursor = page.next_cursor
        if cursor is None:
            break
        if len(seen) == 2:
            book.create(lab, new("m/3-tiny/500", "made between two pages"), "ann")
    assert seen == [8, 6, 4, 2, 0]

    def found(**by: Any) -> set[str]:
        return {label.id for label in book.list_labels(lab, Filter(**by)).data}

    assert found(author="bob") == {label.id for i, label in enumerate(made) if i % 3 == 0}
    assert found(text="thing 5%") == {made[5].id}
    assert found(text="_") == set()
    book.change(lab, made[1].id, LabelChange(version=1, text="other"), "ann")
    since = book.get(lab, made[1].id).updated_at
    assert found(updated_since=since) == {made[1].id}
    assert found(updated_since=datetime.now(UTC)) == set()
    book.delete(lab, made[2].id, "ann")
    assert found(deleted=True) == {made[2].id}
    assert made[2].id not in found()
    with pytest.raises(NotFound, match="was deleted; 'scopebase label undo"):
        book.get(lab, made[2].id)


def test_a_stale_change_is_refused(lab: Library) -> None:
    label = book.create(lab, new(), "ann")
    book.change(lab, label.id, LabelChange(version=1, text="pears"), "bob")
    for attempt in (
        lambda: book.change(lab, label.id, LabelChange(version=1, text="plums"), "ann"),
        lambda: book.delete(lab, label.id, "ann", 1),
        lambda: talk.undo(lab, label.id, "ann", 1),
    ):
        with pytest.raises(Conflict, match="is at version 2, you saw 1"):
            attempt()
    assert book.get(lab, label.id).text == "pears"
    with pytest.raises(InputError, match="name at least one field"):
        book.change(lab, label.id, LabelChange(version=2), "ann")
    with pytest.raises(InputError, match="a score and its score_method"):
        book.change(lab, label.id, LabelChange(version=2, score=1.0), "ann")
    assert book.get(lab, label.id).score is None


def test_of_two_who_change_at_once_one_is_told(shared_lab: Library) -> None:
    """Ten rounds of four writers on one version: exactly one wins each round, and the history has exactly the winners."""
    label = book.create(shared_lab, new(), "ann")
    winners = []
    for _ in range(10):
        seen = book.get(shared_lab, label.id).version
        results = at_once(
            *(
                lambda who=who, seen=seen: book.change(
                    shared_lab, label.id, LabelChange(version=seen, text=f"{seen} {who}"), who
                )
                for who in "abcd"
            )
        )
        won = [result for result in results if isinstance(result, LabelItem)]
        assert len(won) == 1
        assert sum(isinstance(result, Conflict) for result in results) == 3
        winners.append(won[0].text)
    events = talk.history(shared_lab, label.id).data
    assert [event.after["text"] for event in reversed(events) if event.after][1:] == winners
    assert book.get(shared_lab, label.id).version == 11


def test_votes_at_once_are_all_counted_and_one_each(shared_lab: Library) -> None:
    label = book.create(shared_lab, new(), "ann")
    at_once(*(lambda i=i: talk.vote(shared_lab, label.id, f"voter{i % 8}", 1) for i in range(16)))
    assert book.get(shared_lab, label.id).votes == 8
    assert talk.vote(shared_lab, label.id, "voter0", -1).votes == 6
    assert talk.vote(shared_lab, label.id, "voter0", 0).votes == 7


def test_events_are_in_the_order_of_their_commits(shared_lab: Library) -> None:
    """What the search table's mark rests on: while writers run, a reader never sees an id appear below one it saw before."""
    done = threading.Event()
    faults: list[str] = []

    def watch() -> None:
        seen: set[int] = set()
        while not done.is_set():
            with shared_lab.home.database.reading() as session:
                now = set(session.scalars(select(LabelEvent.id)))
            late = {id_ for id_ in now - seen if seen and id_ < max(seen)}
            faults.extend(f"{id_} after {max(seen)}" for id_ in late)
            seen = now

    watcher = threading.Thread(target=watch)
    watcher.start()
    at_once(*(lambda i=i: [book.create(shared_lab, new(f"m/3-tiny/{i}"), "ann") for _ in range(12)] for i in range(4)))
    done.set()
    watcher.join()
    assert faults == []


def test_comments_stay_with_the_label(lab: Library) -> None:
    label = book.create(lab, new(), "ann")
    for i in range(3):
        talk.comment(lab, label.id, "bob", f"remark {i}")
    first = talk.comments(lab, label.id, 2)
    rest = talk.comments(lab, label.id, 2, first.next_cursor)
    assert [c.text for c in (*first.data, *rest.data)] == ["remark 0", "remark 1", "remark 2"]
    assert rest.next_cursor is None


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(st.sampled_from(["undo", "delete"]), st.text("abc", min_size=1, max_size=3)), max_size=12))
def test_undo_walks_back_through_every_state(lab: Library, steps: list[str]) -> None:
    """Against a stack of states: edits and deletions push, undo pops; a label whose making was undone comes back to stay."""
    label = book.create(lab, new(text="first"), "ann")
    stack: list[str | None] = [None, "first"]  # None: deleted, or not yet made
    for step in steps:
        state = stack[-1]
        if step == "undo":
            if stack == ["first"]:
                with pytest.raises(Conflict, match="is left to undo"):
                    talk.undo(lab, label.id, "bob")
                continue
            if len(stack) == 1:
                stack = ["first"]
            else:
                stack.pop()
            after = talk.undo(lab, label.id, "bob")
            assert after.deleted == (stack[-1] is None)
        elif state is None:
            continue
        elif step == "delete":
            book.delete(lab, label.id, "ann")
            stack.append(None)
        else:
            version = book.get(lab, label.id).version
            book.change(lab, label.id, LabelChange(version=version, text=step), "ann")
            stack.append(step)
        if stack[-1] is not None:
            assert book.get(lab, label.id).text == stack[-1]


def test_an_id_may_be_shortened_where_it_is_the_only_one(lab: Library) -> None:
    one, two = (book.create(lab, new(), "ann").id for _ in range(2))
    start = next(one[:n] for n in range(1, 33) if not two.startswith(one[:n]))
    assert book.complete_id(lab, start) == one
    with lab.home.database.writing() as session:
        session.execute(text("UPDATE labels SET uid = 'described:zyx1' WHERE uid = :uid"), {"uid": two})
    assert book.complete_id(lab, "zyx") == "described:zyx1"
    with pytest.raises(NotFound, match="no label has the id 'zz'"):
        book.complete_id(lab, "zz")
    with pytest.raises(InputError, match="several labels begin with ''"):
        book.complete_id(lab, "")
