"""Watching a coverage gap: what every finished run closes and opens, as one JSON object a line."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from api.services.gaps.gap import find_gap, stream, summary
from api.services.library import Library
from schema.lookup import newest_snapshot
from schema.wire.gaps import CoverageGapQuestion


def watch(library: Library, question: CoverageGapQuestion, interval: float) -> Iterator[tuple[int, dict[str, Any]]]:
    """(snapshot, line) without end: `start`, then for each new snapshot its changed features and `snapshot`.

    Args:
        interval: seconds between looks.
    """
    newest = _newest(library)
    last = newest if question.since is None else question.since
    begin = question.model_copy(update={"since": None, "as_of": newest or None, "cursor": None})
    about = summary(library, find_gap(library, begin))
    yield last, {"event": "start", "snapshot": newest, "since": last, "coverage": about.coverage.model_dump()}
    while True:
        newest = _newest(library)
        if newest > last:
            gap = find_gap(library, begin.model_copy(update={"since": last, "as_of": newest}))
            about, moment = summary(library, gap), {"snapshot": newest, "since": last}
            for batch in stream(library, gap):
                for item in batch:
                    yield last, {"event": item.change, **moment, **item.model_dump(mode="json")}
            before = about.coverage_before
            assert before is not None
            last = newest
            coverage = {"coverage": about.coverage.model_dump(), "coverage_before": before.model_dump()}
            yield last, {"event": "snapshot", **moment, "changed": about.total, **coverage}
        time.sleep(interval)


def _newest(library: Library) -> int:
    library.refresh()
    with library.home.database.reading() as session:
        return newest_snapshot(session)
