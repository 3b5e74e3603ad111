"""The SQL side: names, revisions, hashes, runs and the shard ledger. What it does not list does not exist.

One set of tables for SQLite and PostgreSQL. Nothing here grows with tokens; activations are in the Lance tables of `schema.layout`,
keyed by the integer ids below.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    ForeignKey,
    Index,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

NEVER_REUSED = {"sqlite_autoincrement": True}  # ids that key Lance rows must not come back after a delete
Json = JSON().with_variant(JSONB(), "postgresql")


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC on both dialects; SQLite forgets time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


def now() -> datetime:
    return datetime.now(UTC)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Setting(Base):
    """Facts of the home itself, such as the id it shares with its activation store."""

    __tablename__ = "settings"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class Model(Base):
    """A model under study."""

    __tablename__ = "models"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(128), unique=True)
    source: Mapped[str] = mapped_column(Text)
    revision: Mapped[str] = mapped_column(String(80))
    family: Mapped[str] = mapped_column(String(64))
    n_layers: Mapped[int]
    d_model: Mapped[int]
    context: Mapped[int | None]
    tokenizer_sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class Sae(Base):
    """One SAE at one layer of one model, identified by the hash of its tensors."""

    __tablename__ = "saes"
    __table_args__ = (UniqueConstraint("model_id", "layer", "set_name"), NEVER_REUSED)
    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    name: Mapped[str] = mapped_column(String(256), unique=True)
    set_name: Mapped[str] = mapped_column(String(120))
    layer: Mapped[int]
    release: Mapped[str] = mapped_column(Text)
    format: Mapped[str] = mapped_column(String(32))
    activation: Mapped[str] = mapped_column(String(16))
    k: Mapped[int | None]
    d_model: Mapped[int]
    d_sae: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    source: Mapped[str] = mapped_column(Text)
    file_size: Mapped[int] = mapped_column(BigInteger)
    file_time: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    model: Mapped[Model] = relationship(lazy="joined")


class Dataset(Base):
    """One version of a dataset: the rows that hash to `sha256`."""

    __tablename__ = "datasets"
    __table_args__ = (
        UniqueConstraint("name", "version"),
        Index("ix_datasets_name_sha256", "name", "sha256", unique=True),
        NEVER_REUSED,
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    version: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))
    source: Mapped[str] = mapped_column(Text)
    id_field: Mapped[str | None] = mapped_column(String(256))
    fields: Mapped[dict[str, str]] = mapped_column(Json)
    n_samples: Mapped[int] = mapped_column(BigInteger)
    n_chars: Mapped[int] = mapped_column(BigInteger)
    n_skipped: Mapped[int] = mapped_column(BigInteger, default=0)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class Run(Base):
    """One dataset through one model and chosen SAEs under one recipe. `finished` orders the complete ones; it is the snapshot number."""

    __tablename__ = "runs"
    __table_args__ = NEVER_REUSED
    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(64), unique=True)
    dataset_id: Mapped[int] = mapped_column(ForeignKey("datasets.id"), index=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    recipe: Mapped[dict[str, Any]] = mapped_column(Json)
    recipe_sha256: Mapped[str] = mapped_column(String(64))
    batch_tokens: Mapped[int]
    versions: Mapped[dict[str, str]] = mapped_column(Json)
    counts: Mapped[dict[str, Any]] = mapped_column(Json, default=dict)
    finished: Mapped[int | None] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    dataset: Mapped[Dataset] = relationship(lazy="joined")
    model: Mapped[Model] = relationship(lazy="joined")
    pairs: Mapped[list[RunSae]] = relationship(lazy="selectin", back_populates="run", order_by="RunSae.id")


class RunSae(Base):
    """A pair: one SAE in one run. Its id is the owner in the keys of forward rows, parts and profiles."""

    __tablename__ = "run_saes"
    __table_args__ = (UniqueConstraint("run_id", "sae_id"), NEVER_REUSED)
    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"))
    sae_id: Mapped[int] = mapped_column(ForeignKey("saes.id"), index=True)
    run: Mapped[Run] = relationship(lazy="joined", back_populates="pairs")
    sae: Mapped[Sae] = relationship(lazy="joined")


class Segment(Base):
    """Samples [first, stop) of a pair whose postings were sealed together."""

    __tablename__ = "segments"
    __table_args__ = NEVER_REUSED
    id: Mapped[int] = mapped_column(primary_key=True)
    run_sae_id: Mapped[int] = mapped_column(ForeignKey("run_saes.id"), index=True)
    first: Mapped[int] = mapped_column(BigInteger)
    stop: Mapped[int] = mapped_column(BigInteger)


class Shard(Base):
    """The ledger: one piece of work that is leased, staged and committed as a whole (see `schema.ledger`).

    `samples` writes a dataset's rows, `directions` an SAE's decoder, `encode` a run's samples [first, stop),
    `seal` a pair's profile and postings. `logits` writes an SAE's logit effects; no run waits for it.
    """

    __tablename__ = "shards"
    __table_args__ = (
        Index("ix_shards_of_a_run", "run_id", "kind", "state", "ordinal"),
        Index("ix_shards_of_a_dataset", "dataset_id", "kind", "state", "ordinal"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    dataset_id: Mapped[int | None] = mapped_column(ForeignKey("datasets.id"))
    sae_id: Mapped[int | None] = mapped_column(ForeignKey("saes.id"), index=True)
    run_id: Mapped[int | None] = mapped_column(ForeignKey("runs.id"))
    run_sae_id: Mapped[int | None] = mapped_column(ForeignKey("run_saes.id"))
    ordinal: Mapped[int]
    first: Mapped[int] = mapped_column(BigInteger, default=0)
    stop: Mapped[int] = mapped_column(BigInteger, default=0)
    n_chars: Mapped[int] = mapped_column(BigInteger, default=0)
    state: Mapped[str] = mapped_column(String(16), default="open", index=True)
    token: Mapped[int] = mapped_column(BigInteger, default=0)
    owner: Mapped[str | None] = mapped_column(String(200))
    leased_until: Mapped[float | None]
    staged: Mapped[dict[str, list[str]] | None] = mapped_column(Json)
    stats: Mapped[dict[str, Any] | None] = mapped_column(Json)


Ranges = dict[str, list[list[int]]]
"""Table of the store -> [first, stop) of keys."""


class Removal(Base):
    """Something that was removed, and what is left to do for it."""

    __tablename__ = "removals"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    """`run`, `dataset` or `sae`."""
    name: Mapped[str] = mapped_column(String(300))
    snapshot: Mapped[int | None] = mapped_column(index=True)
    """Its number among the snapshots; None where nothing finished was removed."""
    pairs: Mapped[list[Any]] = mapped_column(Json)
    """[dataset, SAE, snapshot since which they were there] of each pair."""
    rows: Mapped[Ranges] = mapped_column(Json)
    trimmed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """When the store was found without them."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class Job(Base):
    """Long work that somebody asked for, and what became of it (see `schema.jobs` and `schema.queue`).

        queued -> running -> finished | failed | cancelled

    `due` and `leased_until` are seconds since the epoch by the database's clock.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("author", "idempotency_key"),
        Index("ix_jobs_state_due", "state", "due"),
        NEVER_REUSED,
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    request: Mapped[dict[str, Any]] = mapped_column(Json)
    author: Mapped[str] = mapped_column(String(128))
    request_id: Mapped[str | None] = mapped_column(String(64))
    """Of the HTTP request that submitted it."""
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    state: Mapped[str] = mapped_column(String(16), default="queued")
    due: Mapped[float]
    """When a worker may take it."""
    token: Mapped[int] = mapped_column(BigInteger, default=0)
    """Grows each time it is taken: whoever holds an older one is not heard any more."""
    owner: Mapped[str | None] = mapped_column(String(200))
    leased_until: Mapped[float | None]
    attempts: Mapped[int] = mapped_column(default=0)
    cancelled_by: Mapped[str | None] = mapped_column(String(128))
    """Who wants it ended."""
    reports: Mapped[list[Any]] = mapped_column(Json, default=list)
    """What the work says of itself at its end, one entry a run."""
    error: Mapped[str | None] = mapped_column(Text)
    progress: Mapped[dict[str, Any] | None] = mapped_column(Json)
    progress_number: Mapped[int] = mapped_column(default=0)
    """The event that `progress` is."""
    n_events: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    begun_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class JobEvent(Base):
    """One thing that happened to a job, numbered from 1 in the order of the commits. Progress takes a number too and no row."""

    __tablename__ = "job_events"
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    """`state` or `line`."""
    state: Mapped[str] = mapped_column(String(16))
    text: Mapped[str | None] = mapped_column(Text)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
