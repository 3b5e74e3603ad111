"""Labels of features: making, reading, changing and removing them.

Writers wait for each other, and each change names the version it was made on, so that no change is lost. A label belongs to the
tensors of its SAE: whoever speaks of others is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Select, func, or_, select
from sqlalchemy.orm import Session

from api.services.cursors import read_cursor, write_cursor
from api.services.library import Library
from schema.audit import audit
from schema.errors import Conflict, InputError, NotFound
from schema.lab import Label, LabelComment, LabelEvent, LabelVote
from schema.lookup import find_feature, find_sae
from schema.tables import Sae, now
from schema.wire.base import Page
from schema.wire.labels import LabelChange, LabelContent, LabelItem, LabelSource, NewLabel

CONTENT = tuple(LabelContent.model_fields)
"""What of a label can be changed."""


@dataclass(frozen=True)
class Filter:
    """Which labels are meant; None leaves a condition out."""

    sae: str | None = None
    feature: str | None = None
    """`<sae>/<index>`."""
    author: str | None = None
    source: LabelSource | None = None
    text: str | None = None
    """Contained in the label, whatever the case."""
    updated_since: datetime | None = None
    """Changed, voted on or commented, here or by a pack that came."""
    deleted: bool = False
    """The deleted ones instead."""


def create(library: Library, new: NewLabel, author: str) -> LabelItem:
    """Makes a label.

    Raises:
        NotFound: no such SAE or feature.
        Conflict: the label speaks of other tensors.
        InputError: a score without its method, a model's label without the model.
    """
    check_content(new.score, new.score_method, new.source, new.explainer)
    with library.home.database.writing(alone=True) as session:
        sae, index = find_feature(session, new.feature)
        check_tensors(sae, new.sae_sha256)
        content = {name: getattr(new, name) for name in CONTENT}
        label = Label(sae_id=sae.id, feature=index, author=author, source=new.source, origin=[], **content)
        session.add(label)
        session.flush()
        note(session, label, "create", author, None, {"text": label.text})
        audit(session, author, "label.create", f"{sae.name}/{index}", {"label": label.uid})
        return item(label, sae)


def get(library: Library, uid: str) -> LabelItem:
    """The label of this id.

    Raises:
        NotFound: there is none, or it is deleted.
    """
    with library.home.database.reading() as session:
        label = find_label(session, uid)
        return item(label, session.get_one(Sae, label.sae_id))


def list_labels(library: Library, which: Filter, limit: int = 50, cursor: str | None = None) -> Page[LabelItem]:
    """The labels that are meant, newest first."""
    before, _ = read_cursor(cursor)
    with library.home.database.reading() as session:
        query = filtered(session, which).order_by(Label.id.desc()).limit(limit + 1)
        rows = list(session.scalars(query.where(Label.id < before) if before else query))
        following = write_cursor(rows[limit - 1].id) if len(rows) > limit else None
        return Page(data=items(session, rows[:limit]), next_cursor=following)


def change(library: Library, uid: str, wanted: LabelChange, actor: str) -> LabelItem:
    """Changes the fields that are given.

    Raises:
        Conflict: somebody changed the label since the version named.
        InputError: nothing to change, or what would be left is no label.
    """
    given = wanted.model_fields_set - {"version"}
    if not given or ("text" in given and wanted.text is None):
        raise InputError(
            "name at least one field to change; a label's text cannot be emptied, but a label can be deleted"
        )
    with library.home.database.writing(alone=True) as session:
        label = find_label(session, uid)
        check_version(label, wanted.version)
        update(session, label, {name: getattr(wanted, name) for name in given}, "edit", actor)
        check_content(label.score, label.score_method, label.source, label.explainer)
        sae = session.get_one(Sae, label.sae_id)
        audit(session, actor, "label.edit", f"{sae.name}/{label.feature}", {"label": uid, "fields": sorted(given)})
        return item(label, sae)


def delete(library: Library, uid: str, actor: str, version: int | None = None) -> LabelItem:
    """Removes a label from sight; `undo` brings it back."""
    with library.home.database.writing(alone=True) as session:
        label = find_label(session, uid)
        check_version(label, version)
        update(session, label, {"deleted": True}, "delete", actor)
        sae = session.get_one(Sae, label.sae_id)
        audit(session, actor, "label.delete", f"{sae.name}/{label.feature}", {"label": uid})
        return item(label, sae)


def update(
    session: Session, label: Label, values: dict[str, Any], action: str, actor: str, undoes: int | None = None
) -> None:
    """Sets fields of a label as one change of its history."""
    before = {name: _value(label, name) for name in values}
    for name, value in values.items():
        if name == "deleted":
            label.deleted_at = now() if value else None
        else:
            setattr(label, name, value)
    label.version += 1
    label.updated_at = now()
    note(session, label, action, actor, before, values, undoes)


def note(
    session: Session,
    label: Label,
    action: str,
    actor: str,
    before: dict[str, Any] | None,
    after: dict[str, Any] | None,
    undoes: int | None = None,
) -> None:
    """One more event of a label's history; the session must be alone."""
    event = LabelEvent(label_id=label.id, action=action, actor=actor, before=before, after=after, undoes=undoes)
    session.add(event)


def _value(label: Label, name: str) -> Any:
    return label.deleted_at is not None if name == "deleted" else getattr(label, name)


def find_label(session: Session, uid: str, deleted: bool = False) -> Label:
    """Raises NotFound for an id that no label bears, or, unless asked for, a deleted one."""
    label = session.scalars(select(Label).where(Label.uid == uid)).one_or_none()
    if label is None:
        raise NotFound(f"no label has the id {uid[:80]!r} ('scopebase label list' lists what is there)")
    if label.deleted_at is not None and not deleted:
        raise NotFound(f"label {uid} was deleted; 'scopebase label undo {uid}' brings it back")
    return label


def complete_id(library: Library, start: str) -> str:
    """The id of the one label, deleted or not, that begins so; else of the one whose id goes on so behind `described:` and the like.

    Raises:
        NotFound: none does.
        InputError: several do.
    """
    with library.home.database.reading() as session:
        begins = Label.uid.startswith(start, autoescape=True)
        goes_on = Label.uid.contains(f":{start}", autoescape=True)
        found: list[str] = []
        for alike in ((Label.uid == start) | begins, goes_on):
            found = found or [*session.scalars(select(Label.uid).where(alike).order_by(Label.uid).limit(3))]
        if start in found:
            return start
        if not found:
            return find_label(session, start).uid
    if len(found) > 1:
        raise InputError(f"several labels begin with {start!r}: {', '.join(found)}, ...; give more of the id")
    return found[0]


def check_tensors(sae: Sae, sha256: str | None) -> None:
    """Raises Conflict where a label speaks of other tensors than those that are indexed."""
    if sha256 is not None and sha256 != sae.sha256:
        raise Conflict(
            f"the label is for tensors {sha256[:12]}..., but {sae.name} here has {sae.sha256[:12]}...: "
            "a label holds only for the SAE it was made with"
        )


def check_version(label: Label, version: int | None) -> None:
    if version is not None and version != label.version:
        raise Conflict(
            f"label {label.uid} is at version {label.version}, you saw {version}: somebody changed it; read it again"
        )


def check_content(score: float | None, score_method: str | None, source: str, explainer: str | None) -> None:
    """Raises InputError for a score that says nothing, or a model's label that names no model."""
    if (score is None) != (score_method is None):
        raise InputError("a score and its score_method come together: a number alone cannot be compared")
    if source == "model" and not explainer:
        raise InputError("source 'model' needs `explainer`, the model that wrote the label")


def filtered(session: Session, which: Filter) -> Select[Label]:
    """The statement that selects the labels meant.

    Raises:
        NotFound, InputError: an SAE or feature that is not there.
    """
    if any("\x00" in given for given in (which.author, which.text) if given):
        raise InputError("no label holds a NUL character")
    query = select(Label).where(Label.deleted_at.is_not(None) if which.deleted else Label.deleted_at.is_(None))
    if which.sae is not None:
        query = query.where(Label.sae_id == find_sae(session, which.sae).id)
    if which.feature is not None:
        sae, index = find_feature(session, which.feature)
        query = query.where(Label.sae_id == sae.id, Label.feature == index)
    for column, value in ((Label.author, which.author), (Label.source, which.source)):
        if value is not None:
            query = query.where(column == value)
    if which.text is not None:
        folded = func.lower(Label.text).contains(which.text.lower(), autoescape=True)
        query = query.where(or_(folded, Label.text.contains(which.text, autoescape=True)))  # SQLite folds ASCII only
    if which.updated_since is not None:
        since = which.updated_since
        since = since.astimezone(UTC) if since.tzinfo else since.replace(tzinfo=UTC)
        said = (
            Label.id.in_(select(table.label_id).where(table.heard_at >= since)) for table in (LabelVote, LabelComment)
        )
        query = query.where(or_(Label.updated_at >= since, *said))
    return query


def items(session: Session, labels: Sequence[Label]) -> list[LabelItem]:
    saes = {sae.id: sae for sae in session.scalars(select(Sae).where(Sae.id.in_({label.sae_id for label in labels})))}
    return [item(label, saes[label.sae_id]) for label in labels]


def item(label: Label, sae: Sae) -> LabelItem:
    """A label as the service says it."""
    same = (*CONTENT, "author", "source", "origin", "votes", "version", "created_at", "updated_at")
    return LabelItem(
        id=label.uid,
        feature=f"{sae.name}/{label.feature}",
        sae=sae.name,
        sae_sha256=sae.sha256,
        index=label.feature,
        deleted=label.deleted_at is not None,
        **{name: getattr(label, name) for name in same},
    )
