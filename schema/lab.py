"""The SQL tables of what people add to an index: labels, rules, evaluation results, keys and the audit log.

Each is bound to the SAE, dataset or key it speaks of. Larger things that belong to them (search vectors, per-sample scores) are Lance
tables keyed by the ids here.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from schema.tables import NEVER_REUSED, Base, Json, UtcDateTime, now


def new_uid() -> str:
    return uuid.uuid4().hex


class Label(Base):
    """What somebody, or a model, says that a feature means. `uid` stays the same through every exchange between labs."""

    __tablename__ = "labels"
    __table_args__ = (Index("ix_labels_sae_id_feature", "sae_id", "feature"), NEVER_REUSED)
    id: Mapped[int] = mapped_column(primary_key=True)
    uid: Mapped[str] = mapped_column(String(64), unique=True, default=new_uid)
    sae_id: Mapped[int] = mapped_column(ForeignKey("saes.id"))
    feature: Mapped[int]
    text: Mapped[str] = mapped_column(Text)
    author: Mapped[str] = mapped_column(String(128))
    source: Mapped[str] = mapped_column(String(16))
    """`person`, `model`, `describer`, or `import` where nobody knows."""
    explainer: Mapped[str | None] = mapped_column(String(200))
    """The model that wrote it."""
    method: Mapped[str | None] = mapped_column(String(120))
    score: Mapped[float | None]
    score_method: Mapped[str | None] = mapped_column(String(120))
    prompt: Mapped[str | None] = mapped_column(Text)
    examples: Mapped[list[Any] | None] = mapped_column(Json)
    licence: Mapped[str | None] = mapped_column(String(120))
    origin: Mapped[list[Any]] = mapped_column(Json, default=list)
    """Where it came from, one entry for each exchange, oldest first."""
    votes: Mapped[int] = mapped_column(default=0)
    version: Mapped[int] = mapped_column(default=1)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    deleted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    __mapper_args__ = {"version_id_col": version, "version_id_generator": False}  # noqa: RUF012 - SQLAlchemy's form
    """Every UPDATE names the version that was read: of two writers of one version, the database lets one through."""


class LabelEvent(Base):
    """One change of a label, with the changed fields before and after. Written under `writing(alone=True)` only, so that ids are
    in the order of the commits: `api.services.labels.search_index` counts on it."""

    __tablename__ = "label_events"
    id: Mapped[int] = mapped_column(primary_key=True)
    label_id: Mapped[int] = mapped_column(ForeignKey("labels.id"), index=True)
    action: Mapped[str] = mapped_column(String(16))
    actor: Mapped[str] = mapped_column(String(128))
    before: Mapped[dict[str, Any] | None] = mapped_column(Json)
    after: Mapped[dict[str, Any] | None] = mapped_column(Json)
    undoes: Mapped[int | None] = mapped_column(ForeignKey("label_events.id"))
    at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class LabelVote(Base):
    """One person's vote on a label, +1 or -1; 0 where it was taken back, so that an older pack does not bring it again."""

    __tablename__ = "label_votes"
    label_id: Mapped[int] = mapped_column(ForeignKey("labels.id"), primary_key=True)
    voter: Mapped[str] = mapped_column(String(128), primary_key=True)
    home: Mapped[str] = mapped_column(String(64), primary_key=True, default="")
    """The home whose people know the voter by that name; empty for this one."""
    value: Mapped[int]
    at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    heard_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    """When it was cast here, or came here."""


class LabelComment(Base):
    """What somebody says about a label. `uid` stays the same through every exchange between labs."""

    __tablename__ = "label_comments"
    __table_args__ = (UniqueConstraint("label_id", "uid"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    uid: Mapped[str] = mapped_column(String(64), default=new_uid)
    label_id: Mapped[int] = mapped_column(ForeignKey("labels.id"), index=True)
    author: Mapped[str] = mapped_column(String(128))
    home: Mapped[str] = mapped_column(String(64), default="")
    """The home it was made in; empty for this one."""
    text: Mapped[str] = mapped_column(Text)
    at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    heard_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    """When it was made here, or came here."""


class Rule(Base):
    """One version of a named boolean expression over features."""

    __tablename__ = "rules"
    __table_args__ = (UniqueConstraint("name", "version"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    version: Mapped[int]
    expression: Mapped[dict[str, Any]] = mapped_column(Json)
    pool: Mapped[str] = mapped_column(String(8))
    saes: Mapped[dict[str, Any]] = mapped_column(Json)
    """SAE -> its hash and that of its model and tokenizer when the rule was made; another one is drift."""
    provenance: Mapped[dict[str, Any]] = mapped_column(Json, default=dict)
    description: Mapped[str | None] = mapped_column(Text)
    author: Mapped[str] = mapped_column(String(128))
    signed_by: Mapped[str | None] = mapped_column(String(128))
    signed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class RuleEvaluation(Base):
    """What a rule was measured to do."""

    __tablename__ = "rule_evaluations"
    id: Mapped[int] = mapped_column(primary_key=True)
    rule_id: Mapped[int] = mapped_column(ForeignKey("rules.id"), index=True)
    result: Mapped[dict[str, Any]] = mapped_column(Json)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class Evaluation(Base):
    """One evaluated model's scores on a dataset; the scores themselves are the Lance row `scores` of this id."""

    __tablename__ = "evaluations"
    __table_args__ = (UniqueConstraint("dataset_id", "evaluated", "metric"), NEVER_REUSED)
    id: Mapped[int] = mapped_column(primary_key=True)
    dataset_id: Mapped[int] = mapped_column(ForeignKey("datasets.id"))
    evaluated: Mapped[str] = mapped_column(String(200))
    metric: Mapped[str] = mapped_column(String(120))
    format: Mapped[str] = mapped_column(String(32))
    source: Mapped[str] = mapped_column(Text)
    sha256: Mapped[str] = mapped_column(String(64))
    n_scores: Mapped[int] = mapped_column(BigInteger)
    mean: Mapped[float]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class Key(Base):
    """An API key: only its hash is kept."""

    __tablename__ = "api_keys"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(128), unique=True)
    prefix: Mapped[str] = mapped_column(String(16))
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[str]] = mapped_column(Json)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class AuditEntry(Base):
    """One write: who did what to what."""

    __tablename__ = "audit"
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime, default=now, index=True)
    actor: Mapped[str] = mapped_column(String(128))
    action: Mapped[str] = mapped_column(String(64))
    target: Mapped[str] = mapped_column(Text)
    detail: Mapped[dict[str, Any] | None] = mapped_column(Json)
