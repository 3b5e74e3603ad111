"""What a lab says about its labels: votes, comments, and the history that can be taken back."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy import update as sql_update
from sqlalchemy.orm import Session

from api.services.cursors import read_cursor, write_cursor
from api.services.labels.book import check_version, find_label, item, update
from api.services.library import Library
from schema.audit import audit
from schema.errors import Conflict
from schema.lab import Label, LabelComment, LabelEvent, LabelVote
from schema.tables import Sae, now
from schema.wire.base import Page
from schema.wire.labels import CommentItem, LabelEventItem, LabelItem

HERE = ""
"""The home of votes and comments that were made here."""
_NO_SYNC = {"synchronize_session": False}


def vote(library: Library, uid: str, voter: str, value: int) -> LabelItem:
    """Sets somebody's vote on a label, one each, which may be changed; 0 takes it back."""
    with library.home.database.writing(alone=True) as session:
        label = find_label(session, uid)
        mine = session.get(LabelVote, (label.id, voter, HERE))
        if value or mine is not None:
            moment = now()
            session.merge(LabelVote(label_id=label.id, voter=voter, home=HERE, value=value, at=moment, heard_at=moment))
            session.flush()
        count_votes(session, [label.id])
        session.refresh(label)
        audit(session, voter, "label.vote", uid, {"value": value})
        return item(label, session.get_one(Sae, label.sae_id))


def count_votes(session: Session, labels: Sequence[int]) -> None:
    """Sums the votes of labels anew."""
    total = select(func.coalesce(func.sum(LabelVote.value), 0)).where(LabelVote.label_id == Label.id).scalar_subquery()
    session.execute(sql_update(Label).where(Label.id.in_(labels)).values(votes=total), execution_options=_NO_SYNC)


def comment(library: Library, uid: str, author: str, text: str) -> CommentItem:
    """Adds a comment to a label."""
    with library.home.database.writing(
        alone=True
    ) as session:  # who removes the SAE meanwhile removes its labels with their comments
        label = find_label(session, uid)
        made = LabelComment(label_id=label.id, author=author, text=text)
        session.add(made)
        session.flush()
        audit(session, author, "label.comment", uid)
        return _comment(made)


def comments(library: Library, uid: str, limit: int = 50, cursor: str | None = None) -> Page[CommentItem]:
    """What was said about a label, oldest first."""
    after, _ = read_cursor(cursor)
    with library.home.database.reading() as session:
        label = find_label(session, uid, deleted=True)
        query = select(LabelComment).where(LabelComment.label_id == label.id, LabelComment.id > after)
        rows = list(session.scalars(query.order_by(LabelComment.id).limit(limit + 1)))
    following = write_cursor(rows[limit - 1].id) if len(rows) > limit else None
    return Page(data=[_comment(row) for row in rows[:limit]], next_cursor=following)


def _comment(row: LabelComment) -> CommentItem:
    return CommentItem(id=row.id, author=row.author, home=row.home or None, text=row.text, at=row.at)


def history(library: Library, uid: str, limit: int = 50, cursor: str | None = None) -> Page[LabelEventItem]:
    """Every change of a label, newest first; of deleted labels too."""
    before, _ = read_cursor(cursor)
    with library.home.database.reading() as session:
        label = find_label(session, uid, deleted=True)
        query = select(LabelEvent).where(LabelEvent.label_id == label.id).order_by(LabelEvent.id.desc())
        rows = list(session.scalars((query.where(LabelEvent.id < before) if before else query).limit(limit + 1)))
    following = write_cursor(rows[limit - 1].id) if len(rows) > limit else None
    fields = LabelEventItem.model_fields
    return Page(
        data=[LabelEventItem(**{name: getattr(row, name) for name in fields}) for row in rows[:limit]],
        next_cursor=following,
    )


def undo(library: Library, uid: str, actor: str, version: int | None = None) -> LabelItem:
    """Takes the last change back that was not taken back yet. Of a label that was only made, that is its making; then it comes back.

    Raises:
        Conflict: nothing is left to take back, or somebody changed the label since the version named.
    """
    with library.home.database.writing(alone=True) as session:
        label = find_label(session, uid, deleted=True)
        check_version(label, version)
        undone = select(LabelEvent.undoes).where(LabelEvent.label_id == label.id, LabelEvent.undoes.is_not(None))
        mine = select(LabelEvent).where(LabelEvent.label_id == label.id, LabelEvent.action != "undo")
        last = session.scalars(mine.where(LabelEvent.id.not_in(undone)).order_by(LabelEvent.id.desc()).limit(1)).first()
        if last is None and label.deleted_at is None:
            raise Conflict(f"nothing of label {uid} is left to undo")
        change = {"deleted": False} if last is None else last.before or {"deleted": True}
        update(session, label, change, "undo", actor, undoes=last.id if last else None)
        audit(session, actor, "label.undo", uid, {"event": last.id if last else None})
        return item(label, session.get_one(Sae, label.sae_id))
