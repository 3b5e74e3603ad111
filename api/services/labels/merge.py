"""One batch of a pack meets the labels that are here."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from sqlalchemy import Table, insert, select
from sqlalchemy.orm import Session

from api.services.labels import explanations
from api.services.labels.book import CONTENT, update
from api.services.labels.heard import Heard, Said, hear
from schema.lab import Label, LabelEvent
from schema.tables import Sae, now
from schema.wire.labels import LabelConflict, Policy, Stop
from schema.wire.packs import PackLabel

Done = Literal["kept", "updated", "duplicated"]
MOST_CONFLICTS = 1_000


@dataclass
class Counts(Heard):
    """What an import did so far."""

    read: int = 0
    created: int = 0
    unchanged: int = 0
    updated: int = 0
    duplicated: int = 0
    kept: int = 0
    skipped: int = 0
    n_conflicts: int = 0
    conflicts: list[LabelConflict] = field(default_factory=list)

    @property
    def written(self) -> int:
        return self.created + self.updated + self.duplicated

    @property
    def talk(self) -> int:
        return self.votes + self.comments


@dataclass(frozen=True)
class Incoming:
    """A label of a pack, bound to the SAE here."""

    line: int
    uid: str
    sae: Sae
    index: int
    label: PackLabel
    stop: Stop | None = None
    """The exchange that brings it; None where it is made here."""
    said: Said | None = None
    """What people say of it."""

    @property
    def origin(self) -> list[dict[str, Any]]:
        """The exchanges it went through, this one included."""
        return [stop.model_dump(mode="json") for stop in (*self.label.origin, *([self.stop] if self.stop else []))]

    @property
    def author(self) -> str:
        if self.label.author is not None:
            return self.label.author
        assert self.stop is not None
        return self.stop.by

    @property
    def action(self) -> str:
        """What its history says of its coming."""
        return "describe" if self.stop is None else "import"

    @property
    def twin(self) -> str:
        """The id under which it is kept beside the label that has its own; the same content gets the same."""
        said = [self.uid, *(getattr(self.label, name) for name in CONTENT)]
        return "twin:" + hashlib.sha256(json.dumps(said).encode()).hexdigest()[:40]


def merge(session: Session, batch: list[Incoming], policy: Policy, dry_run: bool, actor: str, counts: Counts) -> None:
    """Writes a batch, or with `dry_run` only counts. No id comes twice in a batch.

    Votes and comments go to the label of that id, whoever's words it has; where both are kept, to theirs.
    """
    here = _existing(session, [each.uid for each in batch])
    new: list[tuple[str, Incoming]] = []
    twins: list[Incoming] = []
    for each in batch:
        counts.read += 1
        mine = here.get(each.uid)
        if mine is None:
            new.append((each.uid, each))
        elif mine.deleted_at is None and _same(mine, each):
            counts.unchanged += 1
            if not dry_run and each.label.version > mine.version:
                mine.version = each.label.version  # else a third lab could never tell whose words are the later
        else:
            done = _settle(mine, each, policy)
            _report(counts, mine, each, done)
            if done == "duplicated":
                twins.append(each)
            elif done == "updated" and not dry_run:
                _overwrite(session, mine, each, actor)
    known = _existing(session, [each.twin for each in twins])
    fresh = [(each.twin, each) for each in twins if each.twin not in known]
    counts.created += len(new)
    counts.duplicated += len(fresh)
    made = {} if dry_run else _insert(session, [*new, *fresh], actor)
    ids = {uid: label.id for uid, label in (here | known).items() if label.deleted_at is None} | made
    deleted = {uid for uid, label in (here | known).items() if label.deleted_at is not None}
    beside = {each.uid for each in twins}
    spoken = [(each.twin if each.uid in beside else each.uid, each.said) for each in batch if each.said is not None]
    hear(session, [(ids.get(uid), said) for uid, said in spoken if uid not in deleted], dry_run, counts)


def _existing(session: Session, uids: list[str]) -> dict[str, Label]:
    return {label.uid: label for label in session.scalars(select(Label).where(Label.uid.in_(uids)))} if uids else {}


def _same(mine: Label, theirs: Incoming) -> bool:
    if not _same_place(mine, theirs):
        return False
    if theirs.stop is not None and theirs.stop.home == explanations.HOME:
        return mine.text == theirs.label.text  # their rows cannot say the rest
    said = all(getattr(mine, name) == getattr(theirs.label, name) for name in (*CONTENT, "source"))
    return said and mine.author == (theirs.label.author or mine.author)


def _same_place(mine: Label, theirs: Incoming) -> bool:
    return (mine.sae_id, mine.feature) == (theirs.sae.id, theirs.index)


def _settle(mine: Label, theirs: Incoming, policy: Policy) -> Done:
    """What becomes of a label that is here and says something else. What was deleted here stays deleted, and no label moves to another
    feature."""
    if mine.deleted_at is not None or policy == "skip" or (policy == "update" and not _same_place(mine, theirs)):
        return "kept"
    if policy == "duplicate":
        return "duplicated"
    return "updated" if _later(mine, theirs.label) else "kept"


def _later(mine: Label, theirs: PackLabel) -> bool:
    """Whether the pack's is the newer of two; rows that tell no time are taken for newer."""
    return theirs.updated_at is None or (theirs.version, theirs.updated_at) > (mine.version, mine.updated_at)


def _report(counts: Counts, mine: Label, theirs: Incoming, done: Done) -> None:
    counts.kept += done == "kept"
    counts.updated += done == "updated"
    counts.n_conflicts += 1
    if len(counts.conflicts) < MOST_CONFLICTS:
        conflict = LabelConflict(
            line=theirs.line,
            id=theirs.uid,
            feature=f"{theirs.sae.name}/{theirs.index}",
            mine=mine.text,
            theirs=theirs.label.text,
            my_version=mine.version,
            their_version=theirs.label.version,
            deleted_here=mine.deleted_at is not None,
            done=done,
        )
        counts.conflicts.append(conflict)


def _overwrite(session: Session, mine: Label, theirs: Incoming, actor: str) -> None:
    content = {name: getattr(theirs.label, name) for name in (*CONTENT, "source")}
    changed = {name: value for name, value in content.items() if value != getattr(mine, name)}
    if theirs.label.author not in (None, mine.author):
        changed["author"] = theirs.label.author
    update(session, mine, {**changed, "origin": theirs.origin}, theirs.action, actor)
    mine.version = max(mine.version, theirs.label.version)


def _insert(session: Session, new: list[tuple[str, Incoming]], actor: str) -> dict[str, int]:
    """New labels, each with the first event of its history; their ids in SQL."""
    if not new:
        return {}
    at = now()
    rows = [
        {
            "uid": uid,
            "sae_id": each.sae.id,
            "feature": each.index,
            **{name: getattr(each.label, name) for name in CONTENT},
            "author": each.author,
            "source": each.label.source,
            "origin": each.origin,
            "votes": 0,
            "version": each.label.version,
            "created_at": each.label.created_at or at,
            "updated_at": at,
        }
        for uid, each in new
    ]
    table = cast(Table, Label.__table__)  # not the ORM: a third of the time
    ids = session.scalars(insert(table).returning(table.c.id, sort_by_parameter_order=True), rows).all()
    events = [
        {
            "label_id": id_,
            "action": each.action,
            "actor": actor,
            "before": None,
            "after": {"text": each.label.text} | ({"twin_of": each.uid} if uid != each.uid else {}),
            "at": at,
        }
        for id_, (uid, each) in zip(ids, new, strict=True)
    ]
    session.execute(insert(cast(Table, LabelEvent.__table__)), events)
    return {uid: id_ for id_, (uid, _) in zip(ids, new, strict=True)}
