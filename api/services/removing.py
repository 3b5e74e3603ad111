"""Removing runs, datasets and SAEs: found by their names, refused where something hangs on them."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import select
from sqlalchemy.orm import Session

from schema.errors import Conflict, NotFound, not_found
from schema.home import Home
from schema.lookup import find_sae
from schema.names import parse_dataset
from schema.removals import Doomed, doomed_dataset, doomed_run, doomed_sae, remove, trim
from schema.tables import Dataset, Run
from schema.wire.removals import RemovalAnswer

Choose = Callable[[Session], Doomed]


def a_run(number: int) -> Choose:
    """The run of this number."""

    def choose(session: Session) -> Doomed:
        run = session.get(Run, number) if number < 1 << 31 else None
        if run is None:
            raise NotFound(f"there is no run {number} ('scopebase runs' lists what is there)")
        return doomed_run(session, run)

    return choose


def a_dataset(text: str) -> Choose:
    """Every version of a dataset, or of `NAME@VERSION` the one."""

    def choose(session: Session) -> Doomed:
        name, version, run = parse_dataset(text)
        if run is not None:
            raise Conflict(f"{text} names a run; remove run {run}, or the dataset {name}")
        where = [Dataset.name == name, *([Dataset.version == version] if version is not None else [])]
        versions = list(session.scalars(select(Dataset).where(*where).order_by(Dataset.version)))
        if not versions:
            names = session.scalars(select(Dataset.name).distinct().order_by(Dataset.name))
            raise not_found("dataset", text, names, "scopebase datasets")
        return doomed_dataset(session, text, versions)

    return choose


def a_sae(name: str, *, labels: bool) -> Choose:
    """An SAE. Its labels are people's work, and go only where that is said."""

    def choose(session: Session) -> Doomed:
        doomed = doomed_sae(session, find_sae(session, name))
        if doomed.n_labels and not labels:
            raise Conflict(
                f"SAE {doomed.name} has {doomed.n_labels:,} labels, which would go with it; export them first "
                "('scopebase label export'), then say that they may go (--with-labels, or labels=true)"
            )
        return doomed

    return choose


def tell(home: Home, choose: Choose) -> RemovalAnswer:
    """What would go."""
    with home.database.reading() as session:
        return _answer(choose(session), None)


def do(home: Home, choose: Choose, actor: str) -> RemovalAnswer:
    """Removes it from both stores.

    Raises:
        NotFound, Conflict: it is not there, is being indexed, or something hangs on it.
    """
    with home.database.writing(alone=True) as session:
        doomed = choose(session)
        answer = _answer(doomed, None)
        removal = remove(session, doomed, actor)
        session.flush()
        answer = answer.model_copy(update={"snapshot": removal.snapshot})
    trim(home)
    return answer


def _answer(doomed: Doomed, snapshot: int | None) -> RemovalAnswer:
    return RemovalAnswer(
        kind=doomed.kind,
        name=doomed.name,
        runs=[run.id for run in doomed.runs],
        datasets=[f"{dataset.name}@{dataset.version}" for dataset in doomed.datasets],
        pairs=len(doomed.pairs),
        evaluations=len(doomed.evaluations),
        labels=doomed.n_labels,
        bytes=doomed.n_bytes,
        snapshot=snapshot,
    )
