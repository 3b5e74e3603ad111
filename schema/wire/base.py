"""What all answers share. Knows no store."""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Pool = Literal["any", "last"]
Item = TypeVar("Item")


class Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Page(Wire, Generic[Item]):
    """One page of a list."""

    data: list[Item]
    next_cursor: str | None = Field(None, description="Pass it as `cursor` to get the next page; null on the last")


class Provenance(Wire):
    """What an answer over activations was made from; `as_of=<snapshot>` repeats it."""

    sae: str
    sae_sha256: str
    runs: dict[str, int] = Field(description="Dataset -> run")
    pool: Pool
    mask: str
    snapshot: int


class SchemaState(Wire):
    """What `scopebase db` says of the database."""

    revision: str
    state: Literal["made", "upgraded", "up to date"]


class Problem(Wire):
    """An error, RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[dict[str, str]] | None = None


class Health(Wire):
    status: Literal["ok"]
    version: str


class Ready(Wire):
    status: Literal["ready", "not ready"]
    checks: dict[str, str]
