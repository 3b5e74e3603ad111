"""Label packs: what labs give each other, a label a line after a line that says whose they are. JSONL, or the same as Parquet."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

from schema.wire.base import Wire
from schema.wire.labels import LabelContent, LabelSource, LabelText, Person, Stop, Uid

PACK = 2
"""The format's version. 1 had no votes and no comments; packs of both are read."""


def _utc(moment: datetime) -> datetime:
    """Who names no time zone means UTC."""
    try:
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except OverflowError:
        raise ValueError("no such moment") from None


Moment = Annotated[datetime, AfterValidator(_utc)]
HomeId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


class PackHeader(Wire):
    """Where a pack comes from. Any line of a pack may be one: packs can be joined with `cat`."""

    scopebase_labels: int = Field(description="Version of the format")
    home: str = Field(max_length=64, description="Id of the home that wrote it")
    exported_at: datetime


class PackVote(Wire):
    """What somebody thinks of a label. Known by voter and home; of two the later one holds."""

    voter: Person
    home: HomeId | None = Field(
        default=None, description="The home where the voter has that name; the pack's where it is missing"
    )
    value: Literal[-1, 0, 1] = Field(description="0: taken back")
    at: Moment


class PackComment(Wire):
    """What somebody said about a label."""

    id: Uid = Field(description="The same in every home")
    author: Person
    home: HomeId | None = Field(default=None, description="The home where it was said; the pack's where it is missing")
    text: LabelText
    at: Moment


class PackLabel(LabelContent):
    """One label of a pack. By hand, `feature` and `text` are enough where --sae, or `sae_sha256`, says which tensors are meant."""

    id: Uid | None = Field(
        default=None, description="The same in every home; made from the content where it is missing"
    )
    feature: str | None = Field(
        default=None, max_length=300, description="`<sae>/<index>`, in place of `sae` and `index`"
    )
    sae: str | None = Field(default=None, max_length=256)
    sae_sha256: str | None = Field(default=None, max_length=64)
    index: int | None = Field(default=None, ge=0, le=1 << 31)
    author: Person | None = Field(default=None, description="Who imports it, where it is missing")
    source: LabelSource = "import"
    origin: list[Stop] = Field(default_factory=list, max_length=1_000)
    version: int = Field(default=1, ge=1, le=1 << 30)
    created_at: Moment | None = None
    updated_at: Moment | None = None
    votes: list[PackVote] | None = Field(default=None, max_length=100_000)
    comments: list[PackComment] | None = Field(default=None, max_length=100_000)
