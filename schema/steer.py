"""The SQL tables of steering: saved vectors and strength sweeps."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, LargeBinary, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from schema.tables import Base, Json, UtcDateTime, now


class SteeringVector(Base):
    """One version of a named direction, at one or several layers of a model's residual stream."""

    __tablename__ = "steering_vectors"
    __table_args__ = (UniqueConstraint("name", "version"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    version: Mapped[int]
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    layers: Mapped[list[int]] = mapped_column(Json)
    """Ascending."""
    d_model: Mapped[int]
    data: Mapped[bytes] = mapped_column(LargeBinary)
    """float32, little-endian, one vector a layer in the order of `layers`."""
    sha256: Mapped[str] = mapped_column(String(64))
    """Of `data`."""
    provenance: Mapped[dict[str, Any]] = mapped_column(Json, default=dict)
    """How it was made: `made` is `features`, `means` or `import`, with the request, SAE hashes, runs and snapshot, or the file's hash."""
    description: Mapped[str | None] = mapped_column(Text)
    author: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    deleted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Sweep(Base):
    """A direction tried at several strengths beside its controls. Points that are done stay done: a sweep goes on where it stopped."""

    __tablename__ = "sweeps"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    request: Mapped[dict[str, Any]] = mapped_column(Json)
    plan: Mapped[dict[str, Any]] = mapped_column(Json)
    """What the request came to: token ids of the prompts, the controls that were drawn, hashes, versions, points."""
    n_points: Mapped[int]
    summary: Mapped[dict[str, Any] | None] = mapped_column(Json)
    """None until every point is there."""
    error: Mapped[str | None] = mapped_column(Text)
    """Why it stopped; None where it did not, or goes on."""
    author: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class SweepPoint(Base):
    """One point of a sweep that is done: what was generated there and what was measured of it."""

    __tablename__ = "sweep_points"
    __table_args__ = (UniqueConstraint("sweep_id", "place"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    sweep_id: Mapped[int] = mapped_column(ForeignKey("sweeps.id"))
    place: Mapped[int]
    """In the plan's points."""
    measured: Mapped[dict[str, Any]] = mapped_column(Json)
    """Numbers a prompt: all that intervals are made of."""
    texts: Mapped[list[Any]] = mapped_column(Json, deferred=True)
    """Each generated text, by prompt, then sample."""
    done_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
