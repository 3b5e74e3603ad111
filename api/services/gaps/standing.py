"""How a curator's datasets stand against a target at one snapshot: which of its features they miss, hold weakly or cover."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from api.services.columns import Column, Columns, check_apart
from api.services.gaps.targets import sae_of, weigh
from api.services.library import Library
from schema.errors import InputError, NotFound
from schema.lookup import Subject, find_sae, find_sources, newest_snapshot
from schema.tables import Sae
from schema.wire.gaps import Coverage, CoverageGapQuestion, DatasetTarget, State
from schema.wire.query import DatasetPart

STATES: tuple[State, ...] = ("untargeted", "missing", "weak", "covered")
UNTARGETED, MISSING, WEAK, COVERED = range(4)


@dataclass(frozen=True)
class Standing:
    """The datasets, taken together, against the target; arrays are d_sae long."""

    sae: Sae
    subject: Subject | None
    """The datasets and the target dataset; None where none of them was there yet."""
    datasets: list[Column]
    target: Column | None
    """The target dataset's counts, where the target is one."""
    count: npt.NDArray[np.int64]
    """Samples of the datasets that fire each feature."""
    n_samples: int
    weight: npt.NDArray[np.float64]
    """nan for what is no target."""
    state: npt.NDArray[np.int64]

    @property
    def in_gap(self) -> npt.NDArray[np.bool_]:
        return (self.state == MISSING) | (self.state == WEAK)

    def coverage(self) -> Coverage:
        """The share of the target that is covered: a feature that is held weakly is covered, as in the paper."""
        n = np.bincount(self.state, minlength=4)
        n_targets, n_covered = int(n[1:].sum()), int(n[WEAK] + n[COVERED])
        return Coverage(
            share=n_covered / n_targets if n_targets else None,
            n_targets=n_targets,
            n_covered=n_covered,
            n_weak=int(n[WEAK]),
            n_missing=int(n[MISSING]),
            n_samples=self.n_samples,
        )


def stand(library: Library, question: CoverageGapQuestion, as_of: int | None) -> Standing:
    """The standing at a snapshot, the newest unless given.

    Raises:
        NotFound, Conflict: see `schema.lookup.find_sources`; no such rule or label.
        InputError: the target is one of the datasets.
    """
    with library.home.database.reading() as session:
        sae = find_sae(session, sae_of(session, question))
        names = _names(question)
        subject = find_sources(session, sae.name, names, as_of)
    return _stand(library, question, sae, subject, names)


def stand_before(library: Library, question: CoverageGapQuestion, since: int) -> Standing:
    """The same at an earlier snapshot, where some of the datasets may not have been there yet: what is not there fires nothing.

    Rules, labels and lists are taken as they are now: only runs have snapshots.

    Raises:
        InputError: there has been no such snapshot.
    """
    with library.home.database.reading() as session:
        newest = newest_snapshot(session)
        if since > newest:
            raise InputError(f"since={since}: snapshots so far are 0 to {newest}")
        sae = find_sae(session, sae_of(session, question))
        names = [name for name in _names(question) if since and _known(session, sae, name, since)]
        subject = find_sources(session, sae.name, names, since) if names else None
    return _stand(library, question, sae, subject, names)


def _names(question: CoverageGapQuestion) -> list[str]:
    target = [question.target] if isinstance(question.target, DatasetTarget) else []
    return [*dict.fromkeys(_name(part) for part in [*question.datasets, *target])]


def _name(part: str | DatasetPart) -> str:
    return part if isinstance(part, str) else part.dataset


def _known(session: Session, sae: Sae, name: str, as_of: int) -> bool:
    try:
        find_sources(session, sae.name, [name], as_of)
    except NotFound:
        return False
    return True


def _check_apart(datasets: Sequence[Column], target: Column | None) -> None:
    """Raises InputError where a sample would count twice, or on both sides."""
    if target is not None and target.key in {column.key for column in datasets}:
        raise InputError(f"the target {target.dataset} is one of the datasets; name another or leave it out")
    for a, b in itertools.combinations([*datasets, *([target] if target else [])], 2):
        check_apart(a, b)


def _stand(
    library: Library, question: CoverageGapQuestion, sae: Sae, subject: Subject | None, names: Sequence[str]
) -> Standing:
    sources = dict(zip(names, subject.sources, strict=True)) if subject else {}
    datasets: list[Column] = []
    target = None
    if subject:
        columns = Columns(library, subject, sources, question.pool)
        found = [columns.part(part) for part in question.datasets if _name(part) in sources]
        datasets = list({column.key: column for column in found}.values())
        if isinstance(question.target, DatasetTarget) and question.target.dataset in sources:
            target = columns.part(question.target)
        _check_apart(datasets, target)
    count = np.zeros(sae.d_sae, np.int64)
    for column in datasets:
        count += column.fires
    n_samples = sum(column.n_samples for column in datasets)
    if isinstance(question.target, DatasetTarget) and target is None:
        weight = np.full(sae.d_sae, np.nan)
    else:
        weight = weigh(library, question, sae, target)
    state = np.where(count < question.support * n_samples, WEAK, COVERED)
    state[count < question.min_samples] = MISSING
    state[np.isnan(weight)] = UNTARGETED
    return Standing(sae, subject, datasets, target, count, n_samples, weight, state)
