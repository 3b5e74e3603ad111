"""Votes and comments that packs bring.

Each is known by the home it was made in: votes by home and voter, comments by their ids. So a pack may come twice, and home by
whatever way. Of two votes the later one holds, but no pack changes a vote that was cast here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.services.labels.talk import HERE, count_votes
from api.services.library import Library
from schema.lab import LabelComment, LabelVote
from schema.tables import now
from schema.wire.labels import TalkConflict
from schema.wire.packs import PackComment, PackLabel, PackVote

What = Literal["vote", "comment"]
MOST_CONFLICTS = 1_000
NOT_MADE = -1


@dataclass(frozen=True)
class Said:
    """The votes and comments of one label of a pack."""

    line: int
    uid: str
    """The label's."""
    feature: str
    votes: dict[tuple[str, str], PackVote]
    """By voter and home, `HERE` for this one."""
    comments: dict[str, tuple[str, PackComment]]
    """By id, with the home."""


@dataclass
class Heard:
    """What was heard so far."""

    votes: int = 0
    comments: int = 0
    n_talk_conflicts: int = 0
    talk_conflicts: list[TalkConflict] = field(default_factory=list)

    def report(self, said: Said, what: What, by: str, mine: str, theirs: str) -> None:
        self.n_talk_conflicts += 1
        if len(self.talk_conflicts) < MOST_CONFLICTS:
            conflict = TalkConflict(
                line=said.line, id=said.uid, feature=said.feature, what=what, by=by, mine=mine, theirs=theirs
            )
            self.talk_conflicts.append(conflict)


def said_of(
    label: PackLabel, line: int, uid: str, feature: str, pack_home: str | None, here: str | None
) -> Said | None:
    """What a pack's label brings, None where nobody said anything.

    Args:
        pack_home: the home that wrote the pack.
        here: this home's id.
    """
    if not label.votes and not label.comments:
        return None

    def home(given: str | None) -> str:
        named = given or pack_home or "unknown"
        return HERE if named == here else named

    votes: dict[tuple[str, str], PackVote] = {}
    for vote in label.votes or ():
        key = (vote.voter, home(vote.home))
        if key not in votes or vote.at > votes[key].at:
            votes[key] = vote
    comments = {comment.id: (home(comment.home), comment) for comment in label.comments or ()}
    return Said(line, uid, feature, votes, comments)


def hear(session: Session, brought: Sequence[tuple[int | None, Said]], dry_run: bool, heard: Heard) -> None:
    """Takes in, or with `dry_run` only counts, what was said of labels.

    Args:
        brought: the id in SQL of each label, None where it is only made when it is no dry run.
    """
    known = [label for label, _ in brought if label is not None]
    votes, comments = _votes(session, known), _comments(session, known)
    changed = set()
    for label, said in brought:
        n_votes = heard.votes
        for key, vote in said.votes.items():
            _vote(session, label, key, vote, votes.get((label or NOT_MADE, *key)), said, dry_run, heard)
        for home, comment in said.comments.values():
            _comment(session, label, home, comment, comments.get((label or NOT_MADE, comment.id)), said, dry_run, heard)
        if heard.votes > n_votes and label is not None:
            changed.add(label)
    if not dry_run and changed:
        session.flush()
        count_votes(session, sorted(changed))


def _vote(
    session: Session,
    label: int | None,
    key: tuple[str, str],
    vote: PackVote,
    mine: LabelVote | None,
    said: Said,
    dry_run: bool,
    heard: Heard,
) -> None:
    voter, home = key
    if mine is not None and (mine.value == vote.value or vote.at < mine.at):
        if not dry_run and home != HERE:
            mine.at = max(mine.at, vote.at)
        return
    if mine is not None and (home == HERE or vote.at == mine.at):
        heard.report(said, "vote", voter, f"{mine.value:+d}", f"{vote.value:+d}")
        return
    heard.votes += 1
    if dry_run:
        return
    if mine is None:
        assert label is not None
        session.add(LabelVote(label_id=label, voter=voter, home=home, value=vote.value, at=vote.at))
    else:
        mine.value, mine.at, mine.heard_at = vote.value, vote.at, now()


def _comment(
    session: Session,
    label: int | None,
    home: str,
    comment: PackComment,
    mine: LabelComment | None,
    said: Said,
    dry_run: bool,
    heard: Heard,
) -> None:
    if mine is not None:
        if (mine.author, mine.text) != (comment.author, comment.text):
            heard.report(said, "comment", comment.author, mine.text, comment.text)
        return
    heard.comments += 1
    if not dry_run:
        assert label is not None
        session.add(
            LabelComment(
                label_id=label, uid=comment.id, author=comment.author, home=home, text=comment.text, at=comment.at
            )
        )


def _votes(session: Session, labels: Iterable[int]) -> dict[tuple[int, str, str], LabelVote]:
    found = session.scalars(select(LabelVote).where(LabelVote.label_id.in_(labels)))
    return {(vote.label_id, vote.voter, vote.home): vote for vote in found}


def _comments(session: Session, labels: Iterable[int]) -> dict[tuple[int, str], LabelComment]:
    found = session.scalars(select(LabelComment).where(LabelComment.label_id.in_(labels)))
    return {(comment.label_id, comment.uid): comment for comment in found}


def talk_of(library: Library, labels: Sequence[int]) -> dict[int, dict[str, list[dict[str, Any]]]]:
    """Votes and comments of labels as packs have them, oldest first; labels of which nobody said anything are left out.

    Args:
        labels: ids in SQL.
    """
    here = library.home.store.identity()
    with library.home.database.reading() as session:
        votes = [*_votes(session, labels).values()]
        comments = [*_comments(session, labels).values()]
    said: dict[int, dict[str, list[dict[str, Any]]]] = {}
    for vote in sorted(votes, key=lambda vote: (vote.at, vote.home, vote.voter)):
        row = {"voter": vote.voter, "home": vote.home or here, "value": vote.value, "at": vote.at.isoformat()}
        _told(said, vote.label_id, "votes", row)
    for comment in sorted(comments, key=lambda comment: (comment.at, comment.uid)):
        row = {"id": comment.uid, "author": comment.author, "home": comment.home or here, "text": comment.text}
        _told(said, comment.label_id, "comments", {**row, "at": comment.at.isoformat()})
    return said


def _told(said: dict[int, dict[str, list[dict[str, Any]]]], label: int, what: str, row: dict[str, Any]) -> None:
    said.setdefault(label, {}).setdefault(what, []).append(row)
