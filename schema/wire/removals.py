"""What was removed from a home."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schema.wire.base import Wire


class RemovalAnswer(Wire):
    """Something that was removed, with everything of it."""

    kind: Literal["run", "dataset", "sae"]
    name: str
    runs: list[int] = Field(description="Runs that went")
    datasets: list[str] = Field(description="Versions of datasets that went, with their evaluations")
    pairs: int = Field(description="Indexes of one SAE over one dataset that went")
    evaluations: int
    labels: int
    bytes: int = Field(
        description="Of the runs that went, as they counted them; files shrink as the store is compacted"
    )
    snapshot: int | None = Field(description="Answers as of an earlier one, over what went, are refused from now on")
