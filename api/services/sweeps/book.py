"""Sweeps as stored objects: begun by a request, gone on with by the same request, listed and shown with what is done."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from api.services.cursors import read_cursor, write_cursor
from api.services.library import Library
from api.services.sweeps.effects import names_of
from api.services.sweeps.plan import Plan, make_plan
from api.services.sweeps.summary import conclude
from schema.audit import audit
from schema.errors import Conflict, InputError, not_found
from schema.generation import Generator
from schema.steer import Sweep, SweepPoint
from schema.tables import Model, now
from schema.wire.base import Page
from schema.wire.sweeps import State, SweepAnswer, SweepItem, SweepRequest, SweepText

LISTER = "scopebase sweep list"
States = Mapping[str, State]
"""Sweeps that this process has at work, or waiting."""


def find_sweep(session: Session, name: str) -> Sweep:
    """The sweep of this name.

    Raises:
        NotFound: there is none.
    """
    found = session.scalars(select(Sweep).where(Sweep.name == name)).one_or_none()
    if found is None:
        raise not_found("sweep", name, session.scalars(select(Sweep.name)), LISTER)
    return found


def plan_of(sweep: Sweep) -> Plan:
    return Plan.model_validate(sweep.plan)


def begin(library: Library, generator: Generator, request: SweepRequest, author: str) -> bool:
    """Stores a sweep, or finds the one that the same request began; whether something is left to do.

    Raises:
        Conflict: another sweep has the name, or this one was begun with another model, engine, vector or prompts.
        NotFound, InputError: see `make_plan`; then nothing is stored.
    """
    asked = request.model_dump(mode="json")
    with library.home.database.reading() as session:
        known = session.scalars(select(Sweep).where(Sweep.name == request.name)).one_or_none()
    if known is not None and known.request != asked:
        raise Conflict(
            f"there is a sweep {request.name!r} of another request, from {known.created_at:%Y-%m-%d}; give this one another name"
        )
    if known is not None and known.finished_at is not None:
        return False
    plan = make_plan(library, generator, request)
    with library.home.database.writing(alone=True) as session:
        known = session.scalars(select(Sweep).where(Sweep.name == request.name)).one_or_none()
        if known is not None:
            _check_same(known, plan)
            known.error = None
            return True
        model = session.scalars(select(Model).where(Model.name == generator.name)).one()
        session.add(
            Sweep(
                name=request.name,
                model_id=model.id,
                request=asked,
                plan=plan.model_dump(mode="json"),
                n_points=len(plan.points),
                author=author,
            )
        )
        audit(session, author, "sweep.create", request.name, {"points": len(plan.points)})
    return True


def finish(library: Library, name: str) -> SweepAnswer:
    """Keeps the conclusion with the sweep."""
    answer = show_sweep(library, name)
    with library.home.database.writing() as session:
        sweep = find_sweep(session, name)
        if sweep.finished_at is None:
            sweep.finished_at = now()
            answer = answer.model_copy(update={"finished_at": sweep.finished_at, "state": "done"})
            sweep.summary = answer.model_dump(mode="json")
    return answer


def note_error(library: Library, name: str, error: str) -> None:
    with library.home.database.writing() as session:
        find_sweep(session, name).error = error


def delete_sweep(library: Library, name: str, actor: str) -> SweepItem:
    """Removes a sweep with its points and texts. The audit log keeps its name and how much there was of it.

    Raises:
        NotFound: there is none of that name.
    """
    with library.home.database.writing(alone=True) as session:
        sweep = find_sweep(session, name)
        item = _item(session, sweep, {})
        session.execute(delete(SweepPoint).where(SweepPoint.sweep_id == sweep.id))
        session.delete(sweep)
        audit(session, actor, "sweep.delete", name, {"points": item.n_done, "author": item.author})
    return item


def list_sweeps(library: Library, limit: int, cursor: str | None, states: States) -> Page[SweepItem]:
    """The newest first."""
    offset, _ = read_cursor(cursor)
    query = select(Sweep).order_by(Sweep.id.desc()).offset(offset).limit(limit + 1)
    with library.home.database.reading() as session:
        rows = session.scalars(query).all()
        items = [_item(session, sweep, states) for sweep in rows[:limit]]
    return Page(data=items, next_cursor=write_cursor(offset + limit) if len(rows) > limit else None)


def show_sweep(library: Library, name: str, states: States = {}) -> SweepAnswer:  # noqa: B006 - read only
    """A sweep with the points that are done; its conclusion once all are.

    Raises:
        NotFound: there is none of that name.
    """
    with library.home.database.reading() as session:
        sweep = find_sweep(session, name)
        if sweep.summary is not None:
            return SweepAnswer.model_validate(sweep.summary)
        item = _item(session, sweep, states)
        rows = session.scalars(select(SweepPoint).where(SweepPoint.sweep_id == sweep.id).order_by(SweepPoint.place))
        measured = {row.place: row.measured for row in rows}
    request, plan = SweepRequest.model_validate(sweep.request), plan_of(sweep)
    points, nulls, suggestion = conclude(request, plan, measured)
    return SweepAnswer(
        **item.model_dump(exclude={"suggested"}),
        suggested=suggestion.strength if suggestion else None,
        request=request,
        made=plan.made,
        points=points,
        nulls=nulls,
        suggestion=suggestion,
        provenance=plan.provenance,
    )


def sweep_texts(library: Library, name: str, place: int, limit: int, cursor: str | None) -> Page[SweepText]:
    """What was generated at a point, by prompt, then sample.

    Raises:
        NotFound: there is no such sweep.
        InputError: no such point, or one that is not done yet.
    """
    offset, _ = read_cursor(cursor)
    with library.home.database.reading() as session:
        sweep = find_sweep(session, name)
        if place >= sweep.n_points:
            raise InputError(f"sweep {name} has points 0 to {sweep.n_points - 1}, and none {place}")
        texts = session.scalar(
            select(SweepPoint.texts).where(SweepPoint.sweep_id == sweep.id, SweepPoint.place == place)
        )
    if texts is None:
        raise InputError(f"point {place} of sweep {name} is not done yet; send its request again to go on")
    plan, names = plan_of(sweep), names_of(SweepRequest.model_validate(sweep.request).effects)
    data = [
        SweepText(
            place=place,
            prompt=plan.prompts[one["prompt"]].text,
            perplexity=_perplexity(one["nll"], len(one["ids"])),
            effects={name: one["effects"][name] for name in names},
            **{field: one[field] for field in ("sample", "seed", "text", "ended")},
        )
        for one in texts[offset : offset + limit]
    ]
    return Page(data=data, next_cursor=write_cursor(offset + limit) if len(texts) > offset + limit else None)


def _perplexity(nll: float, n: int) -> float | None:
    return math.exp(min(nll / n, 700.0)) if n else None


def _item(session: Session, sweep: Sweep, states: States) -> SweepItem:
    request = SweepRequest.model_validate(sweep.request)
    done = session.scalar(select(func.count()).select_from(SweepPoint).where(SweepPoint.sweep_id == sweep.id)) or 0
    idle: State = "failed" if sweep.error else "stopped"
    return SweepItem(
        id=sweep.name,
        name=sweep.name,
        model=session.get_one(Model, sweep.model_id).name,
        target=[spec.feature or spec.vector or "" for spec in request.target],
        strengths=request.strengths,
        state="done" if sweep.finished_at else states.get(sweep.name, idle),
        n_points=sweep.n_points,
        n_done=done,
        suggested=(sweep.summary or {}).get("suggested"),
        error=sweep.error,
        author=sweep.author,
        created_at=sweep.created_at,
        finished_at=sweep.finished_at,
    )


def _check_same(sweep: Sweep, plan: Plan) -> None:
    """Raises Conflict where the points that are left would be of something else than those that are done."""
    begun, here = plan_of(sweep), plan
    for what in ("model", "revision", "tokenizer_sha256", "engine", "dtype", "vectors", "prompts_sha256", "mask"):
        if getattr(begun.made, what) != getattr(here.made, what):
            raise Conflict(
                f"sweep {sweep.name} was begun with {what}={str(getattr(begun.made, what))[:40]}, and here it is "
                f"{str(getattr(here.made, what))[:40]}; go on where it was begun, or give the sweep another name"
            )
