"""Coverage gaps: the features of a target that a curator's datasets miss or hold weakly, ranked, and what has changed since."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from api.services.cursors import read_cursor, write_cursor
from api.services.gaps.items import Gap, Tested, hold_against, items, proving_sources
from api.services.gaps.standing import Standing, stand, stand_before
from api.services.gaps.targets import kind_of
from api.services.library import Library
from api.services.provenance import count_in, provenance
from schema.errors import InputError
from schema.wire.gaps import CoverageGapAnswer, CoverageGapQuestion, GapItem, GapTarget

PAGE = 50
CHUNK = 100
"""Features read at once for a stream."""


def find_gap(library: Library, question: CoverageGapQuestion) -> Gap:
    """The gap as of the question's snapshot. Refuses what cannot be answered, before anything is read for a stream.

    Raises:
        NotFound, Conflict: see `schema.lookup.find_sources`; no such rule, feature or label.
        InputError: the target is one of the datasets, or a sort by what the target does not have.
    """
    _, snapshot = read_cursor(question.cursor)
    now = stand(library, question, question.as_of or snapshot)
    before = None if question.since is None else stand_before(library, question, question.since)
    tested = hold_against(library, now)
    weight = now.weight if before is None else np.where(np.isnan(now.weight), before.weight, now.weight)
    order = _order(question, now, weight, tested)
    wanted = now.in_gap if before is None else (now.in_gap | before.in_gap) & (now.state != before.state)
    return Gap(question, now, before, tested, weight, order, np.flatnonzero(wanted[order]))


def coverage_gap(library: Library, question: CoverageGapQuestion) -> CoverageGapAnswer:
    """One page of the gap.

    Raises:
        see `find_gap`.
    """
    gap = find_gap(library, question)
    offset, _ = read_cursor(question.cursor)
    page = gap.kept[np.searchsorted(gap.kept, offset) :][: question.limit or PAGE]
    assert gap.now.subject is not None
    more = len(page) and page[-1] < gap.kept[-1]
    found = _look_up(library, gap, page)
    cursor = write_cursor(int(page[-1]) + 1, gap.now.subject.snapshot) if more else None
    return summary(library, gap).model_copy(update={"data": found, "next_cursor": cursor})


def stream(library: Library, gap: Gap) -> Iterator[list[GapItem]]:
    """All of the gap from the question's cursor on, up to its limit, in small batches."""
    offset, _ = read_cursor(gap.question.cursor)
    places = gap.kept[np.searchsorted(gap.kept, offset) :][: gap.question.limit]
    for begin in range(0, len(places), CHUNK):
        yield _look_up(library, gap, places[begin : begin + CHUNK])


def summary(library: Library, gap: Gap) -> CoverageGapAnswer:
    """The answer without its features."""
    question, now = gap.question, gap.now
    assert now.subject is not None
    kind, name = kind_of(question)
    read = {s.pair: s for s in [*now.subject.sources, *proving_sources(library, question, now)]}
    return CoverageGapAnswer(
        data=[],
        next_cursor=None,
        total=len(gap.kept),
        coverage=now.coverage(),
        since=question.since,
        coverage_before=None if gap.before is None else gap.before.coverage(),
        datasets=[count_in(column, int((column.fires >= question.min_samples).sum())) for column in now.datasets],
        target=GapTarget(
            kind=kind,
            name=name if now.target is None else now.target.name,
            n_features=now.coverage().n_targets,
            n_samples=None if now.target is None else now.target.n_samples,
        ),
        n_tested=None if gap.tested is None else gap.tested.n_tested,
        min_samples=question.min_samples,
        support=question.support,
        sort=question.sort,
        provenance=provenance(replace(now.subject, sources=list(read.values())), question.pool),
    )


def _look_up(library: Library, gap: Gap, places: npt.NDArray[np.int64]) -> list[GapItem]:
    features = [int(feature) for feature in gap.order[places]]
    return items(library, gap, features)


def _order(
    question: CoverageGapQuestion, now: Standing, weight: npt.NDArray[np.float64], tested: Tested | None
) -> npt.NDArray[np.int64]:
    """Every feature, best first; ties by the target's rate, then missing before weak, then by index."""
    rate = np.zeros(len(weight)) if now.target is None else now.target.rates
    keys = {"weight": np.nan_to_num(weight, nan=-np.inf, posinf=np.inf), "index": -np.arange(len(weight)) * 1.0}
    if tested is not None:
        keys |= {"target_rate": rate, "q_value": -tested.q}
    if question.sort not in keys:
        raise InputError(f"sort={question.sort!r} needs a dataset as target; sort by weight or index")
    return np.lexsort((now.state, -rate, -keys[question.sort]))
