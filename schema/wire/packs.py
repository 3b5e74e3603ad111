"""Label packs: what labs give each other, a label a line after a line that says whose they are. JSONL, or the same as Parquet."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from schema.wire.base import Wire
from schema.wire.labels import LabelContent, LabelSource, Person, Stop, Uid

PACK = 1
"""The format's version."""


class PackHeader(Wire):
    """Where a pack comes from. Any line of a pack may be one: packs can be joined with `cat`."""

    scopebase_labels: int = Field(description="Version of the format")
    home: str = Field(max_length=64, description="Id of the home that wrote it")
    exported_at: datetime


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
    created_at: datetime | None = None
    updated_at: datetime | None = None
