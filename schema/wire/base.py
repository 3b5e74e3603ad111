"""What all answers share. Knows no store."""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from schema.wire.frames import columns_of, rows_of, to_arrow, to_pandas
from schema.words import Pool as Pool

Item = TypeVar("Item")
BasedOn = Annotated[
    int | None,
    Field(
        ge=0,
        le=1 << 31,
        description="The newest version that you know, 0 where there is none: if there is another one by now, nothing is stored "
        "(409). Left out, what is sent becomes the next version whoever was quicker; the others stay",
    ),
]


class Wire(BaseModel):
    """Every shape. An answer can be had as a table: a row for each item of its `data`, or else one row of itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def to_rows(self) -> list[dict[str, Any]]:
        """What `to_arrow` and `to_pandas` make a table of."""
        data = getattr(self, "data", None)
        return rows_of(data if isinstance(data, list) else [self])

    def to_arrow(self) -> Any:
        """A `pyarrow.Table`."""
        return to_arrow(self.to_rows(), columns_of(type(self)))

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame`."""
        return to_pandas(self.to_rows(), columns_of(type(self)))


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


class OpenAiError(Wire):
    """An error as OpenAI's clients read it."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Problem(Wire):
    """An error, RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[dict[str, str]] | None = None
    code: str | None = Field(default=None, description="A word for programs, such as `context_length_exceeded`")
    error: OpenAiError | None = Field(
        default=None, description="The same, on the routes that answer in OpenAI's shapes"
    )


class Progress(Wire):
    """A line of a stream that says how far long work has come. The last line has its report, or what went wrong."""

    done: int
    of: int
    problem: Problem | None = None


class Health(Wire):
    status: Literal["ok"]
    version: str


class Ready(Wire):
    status: Literal["ready", "not ready"]
    checks: dict[str, str]
