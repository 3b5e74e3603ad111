"""What was found when both stores were held against each other."""

from __future__ import annotations

from pydantic import Field

from schema.wire.base import Wire


class FindingItem(Wire):
    """Something that is not as it should be."""

    where: str
    problem: str
    mend: str = Field(description="What was done, or what to do")
    mended: bool


class VerifyAnswer(Wire):
    """`scopebase verify`."""

    clean: bool = Field(description="Nothing is wrong, or all of it was mended")
    counts: dict[str, int] = Field(description="What was looked at, and how many of it")
    data: list[FindingItem]
