"""Evaluation results: importing, listing, removing, and the panel of models that a question reads."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.services.cursors import read_cursor, write_cursor
from api.services.evaluations.matching import Matched, match
from api.services.evaluations.scored import ScoreFile
from api.services.library import Library
from schema.audit import audit
from schema.errors import InputError, NotFound, WorkFailed, not_found
from schema.lab import Evaluation
from schema.lookup import find_dataset
from schema.names import parse_dataset
from schema.scores import TABLE, drop_scores, publish_scores, read_scores
from schema.tables import Dataset
from schema.wire.base import Page
from schema.wire.evaluations import EvaluationItem, EvaluationReport, Match

SHOWN = 5
Floats = npt.NDArray[np.float64]
LISTER = "scopebase evaluation list"


def evaluated_in(files: Sequence[ScoreFile]) -> str:
    """The one model that the files name themselves.

    Raises:
        InputError: they name none, or several.
    """
    names = sorted({file.evaluated or "" for file in files})
    if len(names) != 1 or not names[0]:
        raise InputError(
            "name the model that was evaluated with --evaluated, over HTTP evaluated=; only Inspect's logs name it, "
            "one model a call"
        )
    return names[0]


def import_scores(
    library: Library,
    dataset: str,
    evaluated: str,
    metric: str,
    files: Sequence[ScoreFile],
    actor: str,
    how: Match = "auto",
) -> EvaluationReport:
    """Stores one model's scores; the same ones again change nothing, others take the place of the former.

    Raises:
        NotFound: an unknown dataset.
        InputError, Conflict: the rows do not fit it; the stores are as they were.
        WorkFailed: a store cannot be written.
    """
    source = ", ".join(file.source for file in files)
    for name, text in (("evaluated", evaluated), ("metric", metric), ("source", source)):
        if not text.strip() or not text.isprintable():
            raise InputError(f"{name}={text!r}: a name of printable characters")
    home = library.home
    with home.database.reading() as session:
        found = find_dataset(session, dataset)
    rows = [row for file in files for row in file.rows]
    if len(files) > 1 and how == "order":
        raise InputError("several files have no common order; match them by id or text")
    matched = match(library.store, found, rows, how)
    digest = hashlib.sha256(f"{found.id}\0{evaluated}\0{metric}\0".encode() + matched.scores.tobytes()).hexdigest()
    home.ensure_table(TABLE)
    with home.database.writing(alone=True) as session:
        former = _one(session, found, evaluated, metric)
        if former is not None and former.sha256 == digest:
            return _report(former, found, matched, "unchanged")
        listed = set(session.scalars(select(Evaluation.id)))
        gone = [former.id] if former is not None else []
        if former is not None:
            session.delete(former)
            session.flush()
        made = Evaluation(
            dataset_id=found.id,
            evaluated=evaluated,
            metric=metric,
            format=files[0].format,
            source=source,
            sha256=digest,
            n_scores=int(np.isfinite(matched.scores).sum()),
            mean=float(np.nanmean(matched.scores)),
        )
        session.add(made)
        session.flush()
        publish_scores(home, made.id, matched.scores, listed)  # SQL lists it only when the row is there
        target = f"{found.name}@{found.version} {evaluated} {metric}"
        audit(session, actor, "evaluation.replace" if gone else "evaluation.import", target, {"sha256": digest})
    drop_scores(home, gone)
    return _report(made, found, matched, "replaced" if gone else "added")


def _one(session: Session, dataset: Dataset, evaluated: str, metric: str) -> Evaluation | None:
    where = (
        Evaluation.dataset_id == dataset.id,
        Evaluation.evaluated == evaluated,
        Evaluation.metric == metric,
    )
    return session.scalars(select(Evaluation).where(*where)).one_or_none()


def _report(made: Evaluation, dataset: Dataset, matched: Matched, state: str) -> EvaluationReport:
    return EvaluationReport.model_validate(
        {
            "evaluation": _item(made, dataset),
            "state": state,
            "matched_by": matched.by,
            "n_rows": matched.n_rows,
            "n_matched": matched.n_rows - len(matched.unmatched),
            "n_unmatched": len(matched.unmatched),
            "unmatched": [row.shown[:120].encode(errors="replace").decode() for row in matched.unmatched[:SHOWN]],
            "n_missing": int(np.isnan(matched.scores).sum()),
        }
    )


def _item(made: Evaluation, dataset: Dataset) -> EvaluationItem:
    return EvaluationItem(
        id=made.id,
        dataset=f"{dataset.name}@{dataset.version}",
        evaluated=made.evaluated,
        metric=made.metric,
        n_scores=made.n_scores,
        n_samples=dataset.n_samples,
        mean=made.mean,
        format=made.format,
        source=made.source,
        sha256=made.sha256,
        created_at=made.created_at,
    )


def list_evaluations(
    library: Library,
    dataset: str | None = None,
    evaluated: str | None = None,
    metric: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> Page[EvaluationItem]:
    """What is imported, oldest first. The cursor holds the last id, so that pages stay apart while some are added."""
    after, _ = read_cursor(cursor)
    for name, text in (("evaluated", evaluated), ("metric", metric)):
        if text is not None and not text.isprintable():
            raise InputError(f"{name}={text!r}: a name of printable characters")
    query = select(Evaluation, Dataset).join(Dataset, Dataset.id == Evaluation.dataset_id).where(Evaluation.id > after)
    if dataset is not None:
        name, version, _ = parse_dataset(dataset)
        query = query.where(Dataset.name == name)
        query = query if version is None else query.where(Dataset.version == version)
    if evaluated is not None:
        query = query.where(Evaluation.evaluated == evaluated)
    if metric is not None:
        query = query.where(Evaluation.metric == metric)
    with library.home.database.reading() as session:
        rows = session.execute(query.order_by(Evaluation.id).limit(limit + 1)).all()
        items = [_item(made, found) for made, found in rows[:limit]]
    more = len(rows) > limit
    return Page(data=items, next_cursor=write_cursor(items[-1].id) if more else None)


def remove_evaluation(library: Library, id_: int, actor: str) -> None:
    """Removes an evaluation and its scores.

    Raises:
        NotFound: there is none of this id.
    """
    with library.home.database.writing() as session:
        made = session.get(Evaluation, id_)
        if made is None:
            raise NotFound(f"no evaluation {id_} ('{LISTER}' lists what is there)")
        dataset = session.get_one(Dataset, made.dataset_id)
        target = f"{dataset.name}@{dataset.version} {made.evaluated} {made.metric}"
        session.delete(made)
        audit(session, actor, "evaluation.remove", target, {"sha256": made.sha256})
    drop_scores(library.home, [id_])


@dataclass(frozen=True)
class Panel:
    """The scores of several models on one dataset under one metric."""

    dataset: Dataset
    metric: str
    evaluated: list[str]
    ids: list[int]
    scores: Floats
    """(n_models, n_samples) NaN where a sample has none."""

    @property
    def common(self) -> npt.NDArray[np.int64]:
        """Ordinals of the samples that all models have scores of."""
        return np.flatnonzero(np.isfinite(self.scores).all(axis=0))

    @property
    def name(self) -> str:
        return f"{self.dataset.name}@{self.dataset.version}"


def read_panel(library: Library, dataset: str | int, metric: str | None, least: int = 1) -> Panel:
    """All models evaluated on a dataset under a metric, by name.

    Args:
        dataset: its name, or the id of one version.
        metric: may be left out where the dataset's evaluations have one.
        least: models that the question needs.

    Raises:
        NotFound: an unknown dataset or metric, or nothing imported.
        InputError: several metrics and none named, or fewer models than needed.
    """
    with library.home.database.reading() as session:
        found = session.get_one(Dataset, dataset) if isinstance(dataset, int) else find_dataset(session, dataset)
        rows = list(session.scalars(select(Evaluation).where(Evaluation.dataset_id == found.id)))
    name = f"{found.name}@{found.version}"
    metrics = sorted({row.metric for row in rows})
    if not rows:
        raise NotFound(f"no evaluation of {name} ('scopebase evaluation import' adds some, '{LISTER}' lists them)")
    if metric is None and len(metrics) > 1:
        raise InputError(f"the evaluations of {name} have several metrics; name one: {', '.join(metrics)}")
    if metric is not None and metric not in metrics:
        raise not_found(f"metric of the evaluations of {name}", metric, metrics, LISTER)
    chosen = sorted((row for row in rows if row.metric == (metric or metrics[0])), key=lambda row: row.evaluated)
    if len(chosen) < least:
        raise InputError(
            f"{name} has {len(chosen)} evaluated models under {chosen[0].metric}; this needs at least {least}"
        )
    ids = [row.id for row in chosen]
    try:
        scores = library.remembered(("panel", *ids), lambda: np.stack(read_scores(library.store, ids)))
    except WorkFailed:
        if _listed(library, ids):
            raise
        return read_panel(library, dataset, metric, least)  # one of them was replaced since
    return Panel(found, chosen[0].metric, [row.evaluated for row in chosen], ids, scores)


def _listed(library: Library, ids: list[int]) -> bool:
    """Whether the database still lists all these evaluations."""
    with library.home.database.reading() as session:
        return len(session.scalars(select(Evaluation.id).where(Evaluation.id.in_(ids))).all()) == len(ids)
