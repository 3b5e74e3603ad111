"""Two labs and what they should hold, kept in plain Python: labels, votes and comments, made, taken back and sent around as packs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule

from api.services.labels import book, talk
from api.services.labels.book import Filter
from api.services.labels.export import export
from api.services.labels.importing import import_labels
from api.services.labels.search import search
from api.services.library import Library
from schema.errors import Conflict, NotFound
from schema.wire.labels import LabelChange, LabelItem, NewLabel

LABS = st.integers(0, 1)
MOST_LABELS = 3
"""Of a lab before packs came: few, so that one label meets much."""
WORDS = st.sampled_from(["apples", "coins", "moon"])
PEOPLE = st.sampled_from(["ann", "bob"])


@dataclass
class Expected:
    """A label as one lab should have it."""

    feature: int
    text: str
    version: int
    updated_at: datetime
    deleted: bool = False
    votes: dict[tuple[str, str], tuple[int, datetime]] = field(default_factory=dict)
    """(voter, id of the home) -> value, when."""
    comments: dict[tuple[str, str, str], str] = field(default_factory=dict)
    """(id of the home, author, when) -> text."""
    before: list[dict[str, Any]] = field(default_factory=list)
    """What each change that was not taken back replaced, oldest first."""

    def change(self, version: int, updated_at: datetime, **values: Any) -> None:
        self.before.append({name: getattr(self, name) for name in values})
        self.take(version, updated_at, values)

    def take(self, version: int, updated_at: datetime, values: dict[str, Any]) -> None:
        for name, value in values.items():
            setattr(self, name, value)
        self.version, self.updated_at = version, updated_at


Shelf = dict[str, Expected]


@dataclass
class Sent:
    """A pack, and what it should hold."""

    path: Path
    form: str
    labels: Shelf


class LabelMachine(RuleBasedStateMachine):
    """Subclasses say how two empty labs are made."""

    make: Callable[[Path], list[Library]]
    packs = Bundle("packs")

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="scopebase-labs-"))
        self.labs = type(self).make(self.folder)
        self.homes = [str(lab.store.identity()) for lab in self.labs]
        self.shelves: list[Shelf] = [{}, {}]
        self.n_packs = 0

    def teardown(self) -> None:
        if hasattr(self, "labs"):
            for lab in self.labs:
                lab.home.close()
            shutil.rmtree(self.folder)

    def one_of(self, at: int, k: int, deleted: bool = False) -> str | None:
        """The k-th label of a lab, counted round."""
        there = sorted(uid for uid, label in self.shelves[at].items() if deleted or not label.deleted)
        return there[k % len(there)] if there else None

    @rule(at=LABS, feature=st.integers(0, 3), text=WORDS)
    def create(self, at: int, feature: int, text: str) -> None:
        if len(self.shelves[at]) >= MOST_LABELS:
            return
        made = book.create(self.labs[at], NewLabel(feature=f"m/3-tiny/{feature}", text=text), "ann")
        self.shelves[at][made.id] = Expected(feature, text, 1, made.updated_at, before=[{"deleted": True}])

    @rule(at=LABS, k=st.integers(0, 2), text=WORDS)
    def edit(self, at: int, k: int, text: str) -> None:
        uid = self.one_of(at, k)
        if uid is None:
            return
        mine = self.shelves[at][uid]
        changed = book.change(self.labs[at], uid, LabelChange(version=mine.version, text=text), "ann")
        mine.change(mine.version + 1, changed.updated_at, text=text)

    @rule(at=LABS, k=st.integers(0, 2))
    def delete(self, at: int, k: int) -> None:
        uid = self.one_of(at, k)
        if uid is None:
            return
        gone = book.delete(self.labs[at], uid, "bob")
        self.shelves[at][uid].change(gone.version, gone.updated_at, deleted=True)
        try:
            book.get(self.labs[at], uid)
        except NotFound:
            return
        raise AssertionError("a deleted label is still there")

    @rule(at=LABS, k=st.integers(0, 2))
    def undo(self, at: int, k: int) -> None:
        uid = self.one_of(at, k, deleted=True)
        if uid is None:
            return
        mine = self.shelves[at][uid]
        if not mine.before and not mine.deleted:
            try:
                talk.undo(self.labs[at], uid, "ann")
            except Conflict:
                return
            raise AssertionError("there was nothing to undo")
        after = talk.undo(self.labs[at], uid, "ann")
        mine.take(mine.version + 1, after.updated_at, mine.before.pop() if mine.before else {"deleted": False})

    @rule(at=LABS, k=st.integers(0, 2), who=PEOPLE, value=st.sampled_from([-1, 0, 1]))
    def vote(self, at: int, k: int, who: str, value: int) -> None:
        uid = self.one_of(at, k)
        if uid is None:
            return
        talk.vote(self.labs[at], uid, who, value)
        votes, key = self.shelves[at][uid].votes, (who, self.homes[at])
        if value or key in votes:
            votes[key] = (value, self._when(at, uid, who))

    def _when(self, at: int, uid: str, who: str) -> datetime:
        from sqlalchemy import select

        from schema.lab import Label, LabelVote

        with self.labs[at].home.database.reading() as session:
            mine = (Label.uid == uid, LabelVote.voter == who, LabelVote.home == "")
            found = session.scalar(select(LabelVote.at).join(Label, Label.id == LabelVote.label_id).where(*mine))
        assert found is not None
        return found

    @rule(at=LABS, k=st.integers(0, 2), who=PEOPLE, text=WORDS)
    def comment(self, at: int, k: int, who: str, text: str) -> None:
        uid = self.one_of(at, k)
        if uid is None:
            return
        made = talk.comment(self.labs[at], uid, who, text)
        self.shelves[at][uid].comments[self.homes[at], who, made.at.isoformat()] = text

    @rule(target=packs, at=LABS, form=st.sampled_from(["jsonl", "parquet"]))
    def pack(self, at: int, form: Any) -> Any:
        if self.n_packs >= 6:
            return multiple()
        self.n_packs += 1
        path = self.folder / f"{self.n_packs}.{form}"
        path.write_bytes(b"".join(export(self.labs[at], Filter(), form)))
        living = {uid: deepcopy(label) for uid, label in self.shelves[at].items() if not label.deleted}
        return Sent(path, form, living)

    @rule(sent=packs, at=LABS, policy=st.sampled_from(["skip", "update"]))
    def take_in(self, sent: Sent, at: int, policy: Any) -> None:
        """Old packs come late and again."""
        expected = deepcopy(self.shelves[at])
        counted = self._merge(expected, sent.labels, policy, self.homes[at])
        dry = import_labels(self.labs[at], sent.path, "cyd", policy=policy, dry_run=True)
        report = import_labels(self.labs[at], sent.path, "cyd", policy=policy)
        assert report == dry.model_copy(update={"dry_run": False})
        names = ("created", "unchanged", "updated", "kept", "votes", "comments", "n_talk_conflicts")
        assert {name: getattr(report, name) for name in names} == {name: counted.get(name, 0) for name in names}
        for uid, item in self._there(at).items():
            expected[uid].updated_at = item.updated_at
        self.shelves[at] = expected
        again = import_labels(self.labs[at], sent.path, "cyd", policy=policy)
        assert (again.created, again.updated, again.votes, again.comments) == (0, 0, 0, 0)

    @staticmethod
    def _merge(mine: Shelf, theirs: Shelf, policy: str, here: str) -> dict[str, int]:
        """What an import should do, done to `mine`."""
        counted: dict[str, int] = {}

        def count(name: str) -> None:
            counted[name] = counted.get(name, 0) + 1

        for uid, their in theirs.items():
            label = mine.get(uid)
            if label is None:
                mine[uid] = label = Expected(
                    their.feature, their.text, their.version, their.updated_at, before=[{"deleted": True}]
                )
                count("created")
            elif label.deleted:
                count("kept")
                continue
            elif label.text == their.text:
                count("unchanged")
                label.version = max(label.version, their.version)
            elif policy == "update" and (their.version, their.updated_at) > (label.version, label.updated_at):
                count("updated")
                label.change(max(label.version + 1, their.version), label.updated_at, text=their.text)
            else:
                count("kept")
            for key, (value, at) in their.votes.items():
                known = label.votes.get(key)
                if known is None:
                    count("votes")
                    label.votes[key] = (value, at)
                elif value == known[0]:
                    label.votes[key] = (value, known[1] if key[1] == here else max(at, known[1]))
                elif at > known[1]:
                    assert key[1] != here, "nobody else knows a later vote of ours"
                    count("votes")
                    label.votes[key] = (value, at)
            for said, text in their.comments.items():
                if said not in label.comments:
                    count("comments")
                    label.comments[said] = text
        return counted

    @precondition(lambda self: any(self.shelves))
    @rule(at=LABS, word=WORDS)
    def look_for(self, at: int, word: str) -> None:
        found = {hit.label.uid for hit in search(self.labs[at], None, word, 1_000)}
        assert found == {uid for uid, label in self.shelves[at].items() if not label.deleted and label.text == word}

    def _there(self, at: int) -> dict[str, LabelItem]:
        lab = self.labs[at]
        return {
            item.id: item
            for deleted in (False, True)
            for item in book.list_labels(lab, Filter(deleted=deleted), 1000).data
        }

    @invariant()
    def holds_what_it_should(self) -> None:
        for at, shelf in enumerate(getattr(self, "shelves", [])):
            there = self._there(at)
            found = {
                uid: (item.index, item.text, item.version, item.deleted, item.votes) for uid, item in there.items()
            }
            assert found == {
                uid: (each.feature, each.text, each.version, each.deleted, sum(v for v, _ in each.votes.values()))
                for uid, each in shelf.items()
            }

    @invariant()
    def says_what_was_said(self) -> None:
        for at, shelf in enumerate(getattr(self, "shelves", [])):
            for uid, each in shelf.items():
                said = talk.comments(self.labs[at], uid, 1000).data
                found = {(c.home or self.homes[at], c.author, c.at.isoformat()): c.text for c in said}
                assert (len(said), found) == (len(each.comments), each.comments)
