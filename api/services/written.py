"""Answers kept as their JSON: one block of bytes each, where trees of objects would make every full garbage collection longer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel

Answer = TypeVar("Answer", bound=BaseModel)


@dataclass(frozen=True)
class Written(Generic[Answer]):
    """An answer that is sent as it is."""

    shape: type[Answer]
    json: bytes

    @classmethod
    def of(cls, answer: Answer) -> Written[Answer]:
        return cls(type(answer), answer.model_dump_json(by_alias=True).encode())

    def read(self) -> Answer:
        """The answer itself."""
        return self.shape.model_validate_json(self.json)
