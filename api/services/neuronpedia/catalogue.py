"""Models, source sets and releases in Neuronpedia's shape."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.services.neuronpedia.names import find_model, source_set
from api.services.neuronpedia.rows import model_row, release_row, source_row, source_set_row
from schema.lab import Label
from schema.tables import Model, RunSae, Sae
from schema.wire.neuronpedia import NpGlobal, NpModelAnswer, NpName, NpSourceSetAnswer


def models(session: Session) -> list[NpModelAnswer]:
    """Every model with its source sets."""
    return [_model(session, model) for model in session.scalars(select(Model).order_by(Model.id))]


def one_model(session: Session, name: str) -> NpModelAnswer:
    """A model with its source sets.

    Raises:
        NotFound: there is none.
    """
    return _model(session, find_model(session, name))


def one_source_set(session: Session, model: str, name: str) -> NpSourceSetAnswer:
    """A source set with its sources.

    Raises:
        NotFound: no such model, or no such set of it.
    """
    return _set(session, source_set(session, model, name))


def overview(session: Session) -> NpGlobal:
    """All that their pages ask for first."""
    releases = {row.name: row for row in map(release_row, session.scalars(select(Sae).order_by(Sae.id)))}
    return NpGlobal(
        models={model.id: model for model in models(session)},
        releases=list(releases.values()),
        explanationTypes=_names(session, Label.method),
        explanationModels=_names(session, Label.explainer),
        explanationScoreTypes=_names(session, Label.score_method),
        explanationScoreModelTypes=[],
    )


def _names(session: Session, column: object) -> list[NpName]:
    """The kinds that labels are of."""
    found = session.scalars(select(column).where(Label.deleted_at.is_(None)).distinct().order_by(column))  # type: ignore[call-overload]
    return [NpName(name=name, displayName=name) for name in found if name]


def _model(session: Session, model: Model) -> NpModelAnswer:
    saes = list(session.scalars(select(Sae).where(Sae.model_id == model.id).order_by(Sae.layer)))
    sets: dict[str, list[Sae]] = {}
    for sae in saes:
        sets.setdefault(sae.set_name, []).append(sae)
    return NpModelAnswer(
        **dict(model_row(model, saes)), sourceSets=[_set(session, members) for members in sets.values()]
    )


def _set(session: Session, saes: Sequence[Sae]) -> NpSourceSetAnswer:
    indexed = set(session.scalars(select(RunSae.sae_id).where(RunSae.sae_id.in_([sae.id for sae in saes]))))
    sources = [source_row(sae).model_copy(update={"hasDashboards": sae.id in indexed}) for sae in saes]
    return NpSourceSetAnswer(**dict(source_set_row(saes[0])), sources=sources)
