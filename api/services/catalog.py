"""What is there: models, SAEs, datasets and runs, with counts, sizes and states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, get_args

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from api.services.cursors import read_cursor, write_cursor
from schema.errors import not_found
from schema.generation import Generator
from schema.tables import Dataset, Model, Run, RunSae, Sae, Shard
from schema.wire.base import Page, Wire
from schema.wire.catalog import DatasetItem, ModelItem, RunItem, SaeItem, SteeringFacts
from schema.wire.steering import MOST_OPS, Mode, Unit

Item = TypeVar("Item", bound=Wire)


def models(
    session: Session, limit: int = 50, cursor: str | None = None, loaded: Generator | None = None
) -> Page[ModelItem]:
    """Args:
    loaded: the model that generates here.
    """
    rows, following = _page(session, select(Model).order_by(Model.id), limit, cursor)
    n_saes = dict(session.execute(select(Sae.model_id, func.count()).group_by(Sae.model_id)).all())
    return Page(data=[_model(session, m, n_saes.get(m.id, 0), loaded) for m in rows], next_cursor=following)


def model(session: Session, name: str, loaded: Generator | None = None) -> ModelItem:
    """One model.

    Raises:
        NotFound: there is none of that name.
    """
    found = session.scalars(select(Model).where(Model.name == name)).one_or_none()
    if found is None:
        raise not_found("model", name, session.scalars(select(Model.name)), "scopebase models")
    n_saes = session.scalar(select(func.count()).select_from(Sae).where(Sae.model_id == found.id))
    return _model(session, found, n_saes or 0, loaded)


def _model(session: Session, row: Model, n_saes: int, loaded: Generator | None) -> ModelItem:
    fields = ("source", "revision", "family", "n_layers", "d_model", "context", "created_at")
    created = int(row.created_at.timestamp())
    steering = _steering(session, row, loaded.engine) if loaded is not None and loaded.name == row.name else None
    return ModelItem(
        id=row.name,
        created=created,
        loaded=steering is not None,
        n_saes=n_saes,
        steering=steering,
        **_take(row, fields),
    )


def _steering(session: Session, row: Model, engine: str) -> SteeringFacts:
    saes = session.scalars(select(Sae).where(Sae.model_id == row.id).order_by(Sae.layer, Sae.id))
    return SteeringFacts(
        engine=engine,
        layers=list(range(row.n_layers)),
        saes=[sae.name for sae in saes],
        modes=list(get_args(Mode)),
        units=list(get_args(Unit)),
        max_ops=MOST_OPS,
    )


def saes(
    session: Session,
    model: str | None = None,
    layer: int | None = None,
    set_name: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> Page[SaeItem]:
    query = select(Sae).join(Model).order_by(Sae.id)
    for column, value in ((Model.name, model), (Sae.layer, layer), (Sae.set_name, set_name)):
        if value is not None:
            query = query.where(column == value)
    rows, following = _page(session, query, limit, cursor)
    indexed = _datasets_of(session, [sae.id for sae in rows])
    measured = _unexplained_by(session, [sae.id for sae in rows])
    fields = ("layer", "release", "format", "activation", "k", "d_model", "d_sae", "sha256", "created_at")
    items = [
        SaeItem(
            id=s.name,
            model=s.model.name,
            set=s.set_name,
            datasets=indexed.get(s.id, []),
            fvu=measured.get(s.id),
            **_take(s, fields),
        )
        for s in rows
    ]
    return Page(data=items, next_cursor=following)


def datasets(
    session: Session, name: str | None = None, limit: int = 50, cursor: str | None = None
) -> Page[DatasetItem]:
    query = select(Dataset).order_by(Dataset.id)
    if name is not None:
        query = query.where(Dataset.name == name)
    rows, following = _page(session, query, limit, cursor)
    finished = select(Run.dataset_id, func.count()).where(Run.finished.is_not(None)).group_by(Run.dataset_id)
    n_runs = dict(session.execute(finished).all())
    fields = ("name", "version", "sha256", "n_samples", "n_chars", "n_skipped", "fields", "source", "created_at")
    items = [DatasetItem(id=f"{d.name}@{d.version}", n_runs=n_runs.get(d.id, 0), **_take(d, fields)) for d in rows]
    return Page(data=items, next_cursor=following)


def runs(
    session: Session, dataset: str | None = None, state: str | None = None, limit: int = 50, cursor: str | None = None
) -> Page[RunItem]:
    query = select(Run).join(Dataset).order_by(Run.id)
    if dataset is not None:
        query = query.where(Dataset.name == dataset)
    if state is not None:
        query = query.where(Run.finished.is_not(None) if state == "finished" else Run.finished.is_(None))
    rows, following = _page(session, query, limit, cursor)
    return Page(data=_run_items(session, rows), next_cursor=following)


def runs_by_id(session: Session, ids: Sequence[int]) -> list[RunItem]:
    """These runs, in the order of the ids."""
    rows = {run.id: run for run in session.scalars(select(Run).where(Run.id.in_(ids)))}
    return _run_items(session, [rows[id_] for id_ in ids])


def _run_items(session: Session, rows: Sequence[Run]) -> list[RunItem]:
    encoded = _encoded(session, [run.id for run in rows if run.finished is None])
    return [_run_item(run, encoded.get(run.id, 0)) for run in rows]


def _run_item(run: Run, encoded: int) -> RunItem:
    counts = {
        f"n_{name}": run.counts.get(name, 0) for name in ("tokens", "masked", "empty", "truncated", "activations")
    }
    return RunItem(
        id=run.id,
        dataset=f"{run.dataset.name}@{run.dataset.version}",
        model=run.model.name,
        saes=[pair.sae.name for pair in run.pairs],
        state="unfinished" if run.finished is None else "finished",
        progress=1.0 if run.finished is not None else encoded / run.dataset.n_samples,
        snapshot=run.finished,
        n_samples=run.dataset.n_samples,
        bytes=run.counts.get("bytes", 0),
        **{name: run.recipe[name] for name in ("mask", "max_tokens", "dtype", "template", "text_field")},
        origin=run.recipe.get("origin", ""),
        **counts,
        **_take(run, ("versions", "created_at", "finished_at")),
    )


def _encoded(session: Session, run_ids: Sequence[int]) -> dict[int, int]:
    """Run -> samples that are encoded and committed."""
    committed = (
        select(Shard.run_id, func.sum(Shard.stop - Shard.first))
        .where(Shard.run_id.in_(run_ids), Shard.kind == "encode", Shard.state == "committed")
        .group_by(Shard.run_id)
    )
    return {run: int(n) for run, n in session.execute(committed) if run is not None}


def _datasets_of(session: Session, sae_ids: Sequence[int]) -> dict[int, list[str]]:
    finished = (
        select(RunSae.sae_id, Dataset.name)
        .join(Run, RunSae.run_id == Run.id)
        .join(Dataset)
        .where(RunSae.sae_id.in_(sae_ids), Run.finished.is_not(None))
        .distinct()
        .order_by(Dataset.name)
    )
    found: dict[int, list[str]] = {}
    for sae, name in session.execute(finished):
        found.setdefault(sae, []).append(name)
    return found


def _unexplained_by(session: Session, sae_ids: Sequence[int]) -> dict[int, float]:
    """SAE -> what was measured when its directions were stored."""
    stored = select(Shard.sae_id, Shard.stats).where(Shard.sae_id.in_(sae_ids), Shard.kind == "directions")
    return {sae: stats["fvu"] for sae, stats in session.execute(stored) if sae is not None and "fvu" in (stats or {})}


def _take(row: object, fields: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in fields}


def _page(session: Session, query: Select[Any], limit: int, cursor: str | None) -> tuple[list[Any], str | None]:
    offset, _ = read_cursor(cursor)
    rows = list(session.scalars(query.offset(offset).limit(limit + 1)))
    return rows[:limit], write_cursor(offset + limit) if len(rows) > limit else None
