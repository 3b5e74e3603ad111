"""Many people at one label at once, each with connections of their own: nothing that was acknowledged is lost, and one of two wins."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from api.services.labels import book, talk
from api.services.library import Library
from api.services.rules.book import make_rule
from schema import database
from schema.errors import Conflict, NotFound, ScopebaseError
from schema.home import open_home
from schema.keys import create_key
from schema.wire.labels import LabelChange, NewLabel
from schema.wire.rules import RuleBody
from tests.laboratory import make_lab

N_PEOPLE, N_EDITS = 4, 4
FEATURE = "m/3-tiny/7"
T = TypeVar("T")


@pytest.fixture
def desks(tmp_path: Path, database_url: str) -> Iterator[list[Library]]:
    """One home, opened by several processes' worth of connections."""
    first = make_lab(tmp_path, database_url)
    opened = [Library(open_home(first.home.settings)) for _ in range(N_PEOPLE)]
    yield opened
    for library in (first, *opened):
        library.home.close()


def at_once(call: Callable[[int], T]) -> list[T | ScopebaseError]:
    """What each person got, all of them begun at the same moment."""
    barrier = threading.Barrier(N_PEOPLE)

    def wait_and_call(number: int) -> T | ScopebaseError:
        barrier.wait()
        try:
            return call(number)
        except (Conflict, NotFound) as refused:
            return refused

    with ThreadPoolExecutor(N_PEOPLE) as pool:
        return list(pool.map(wait_and_call, range(N_PEOPLE)))


def test_every_acknowledged_change_is_in_the_history(desks: list[Library]) -> None:
    uid = book.create(desks[0], NewLabel(feature=FEATURE, text="start"), "p0").id

    def edit(number: int) -> list[str]:
        library, rng, done = desks[number], random.Random(number), list[str]()
        while len(done) < N_EDITS:
            version, text = book.get(library, uid).version, f"{number}-{len(done)}"
            try:
                book.change(library, uid, LabelChange(text=text, version=version), f"p{number}")
            except Conflict:
                continue
            done.append(text)
            talk.vote(library, uid, f"p{number}", rng.choice([1, -1]))
            talk.comment(library, uid, f"p{number}", text)
        talk.vote(library, uid, f"p{number}", 1)
        return done

    acknowledged = [text for done in at_once(edit) if not isinstance(done, ScopebaseError) for text in done]
    events = talk.history(desks[0], uid, limit=1000).data[::-1]
    texts = [event.after["text"] for event in events if event.after]
    assert sorted(texts) == sorted(["start", *acknowledged])
    assert [event.before["text"] for event in events[1:] if event.before] == texts[:-1], "each on top of the one before"
    label = book.get(desks[0], uid)
    assert (label.text, label.version, label.votes) == (texts[-1], len(texts), N_PEOPLE)
    assert sorted(said.text for said in talk.comments(desks[0], uid, limit=1000).data) == sorted(acknowledged)


@pytest.mark.parametrize("action", ["change", "delete"])
def test_one_of_several_who_saw_the_same_version_wins(desks: list[Library], action: str) -> None:
    uid = book.create(desks[0], NewLabel(feature=FEATURE, text="start"), "p0").id

    def act(number: int) -> str:
        if action == "delete" and number % 2:
            return book.delete(desks[number], uid, f"p{number}", version=1).id
        return book.change(desks[number], uid, LabelChange(text=str(number), version=1), f"p{number}").text

    said = at_once(act)
    assert sum(not isinstance(each, ScopebaseError) for each in said) == 1


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_the_database_itself_refuses_the_second_of_two(desks: list[Library], monkeypatch: pytest.MonkeyPatch) -> None:
    """Though nobody waited for anybody, and both had read the same version before either wrote."""
    uid = book.create(desks[0], NewLabel(feature=FEATURE, text="start"), "p0").id
    monkeypatch.setattr(database, "_wait_alone", lambda _connection: None)
    read, check = threading.Barrier(N_PEOPLE), book.check_version
    monkeypatch.setattr(book, "check_version", lambda *given: (check(*given), read.wait()))
    said = at_once(lambda n: book.change(desks[n], uid, LabelChange(text=str(n), version=1), f"p{n}").text)
    assert sorted(isinstance(each, Conflict) for each in said) == [False] + [True] * (N_PEOPLE - 1)
    assert {str(each) for each in said if isinstance(each, Conflict)} == {
        "somebody else changed it at the same moment; read it again"
    }
    assert book.get(desks[0], uid).version == 2
    assert len(talk.history(desks[0], uid).data) == 2


def test_rules_get_versions_of_their_own_and_a_key_one_secret(desks: list[Library]) -> None:
    body = RuleBody.model_validate({"name": "few", "expression": {"any": [{"feature": FEATURE, "above": 0.0}]}})
    made = at_once(lambda n: make_rule(desks[n], body, f"p{n}").version)
    assert sorted(each for each in made if not isinstance(each, ScopebaseError)) == [1, 2, 3, 4]

    def key(number: int) -> str:
        with desks[number].home.database.writing(alone=True) as session:
            return create_key(session, "ann", "read", None, f"p{number}")[1]

    assert sum(not isinstance(each, ScopebaseError) for each in at_once(key)) == 1
