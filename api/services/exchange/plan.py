"""What an export is asked for, and what it says when it is done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from api.services.exchange.examples import Choice
from api.services.exchange.whole import Whole, find_whole
from api.services.library import Library
from api.services.provenance import provenance
from schema.errors import InputError
from schema.lookup import find_sae

BLOCK = 256
"""Features whose examples are read, and held, at once."""


@dataclass(frozen=True)
class Plan:
    """One export of one SAE."""

    library: Library
    whole: Whole
    out: Path
    features: Sequence[int]
    choice: Choice
    advance: Callable[[int], None]
    """Told how many features were done."""

    def blocks(self, batch: Sequence[int]) -> Iterator[Sequence[int]]:
        """A batch of features in blocks that fit in memory."""
        for begin in range(0, len(batch), BLOCK):
            yield batch[begin : begin + BLOCK]

    def batches(self, size: int) -> Iterator[tuple[int, Sequence[int]]]:
        """(number, features) of the files of an export."""
        for number, begin in enumerate(range(0, len(self.features), size)):
            yield number, self.features[begin : begin + size]

    def manifest(self, format: str, **more: Any) -> dict[str, Any]:
        """What two exports must share for one to go on with the other."""
        return {
            "format": format,
            "provenance": provenance(self.whole.subject, "any").model_dump(),
            "choice": asdict(self.choice),
            "n_features": len(self.features),
            "features_sha256": hashlib.sha256(json.dumps(list(self.features)).encode()).hexdigest(),
            **more,
        }


def plan(
    library: Library,
    sae: str | None,
    out: Path,
    datasets: Sequence[str] = (),
    features: str | None = None,
    choice: Choice | None = None,
    advance: Callable[[int], None] = lambda _n: None,
) -> Plan:
    """What is exported, checked before anything is written.

    Args:
        datasets: those whose samples speak for the SAE; all unless given.
        features: `0,5-9`; all unless given.

    Raises:
        NotFound, Conflict: see `schema.lookup.find_sources`.
        InputError: features that the SAE does not have, or nothing is indexed with it.
    """
    with library.home.database.reading() as session:
        found = find_sae(session, sae)
        whole = find_whole(session, found, datasets)
    if not whole.sources:
        raise InputError(f"nothing is indexed with {found.name} yet; there is nothing to export")
    chosen = range(found.d_sae) if features is None else parse_features(features, found.d_sae)
    return Plan(library, whole, out, chosen, choice or Choice(), advance)


def parse_features(text: str, d_sae: int) -> list[int]:
    """`0,5-9` as [0, 5, 6, 7, 8, 9], ascending.

    Raises:
        InputError: anything else, or a feature that the SAE does not have.
    """
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        ends = (first, last if dash else first)
        if not all(end.isascii() and end.isdigit() and len(end) <= 9 for end in ends) or int(ends[0]) > int(ends[1]):
            raise InputError(f"--features {text[:60]!r}: indices and ranges with commas between, like 0,5-9")
        if int(ends[1]) >= d_sae:
            raise InputError(f"--features {text[:60]!r}: the SAE's features are 0 to {d_sae - 1:,}")
        chosen.update(range(int(ends[0]), int(ends[1]) + 1))
    return sorted(chosen)
