"""The model that a direction belongs to."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from schema.errors import InputError, not_found
from schema.tables import Model


def find_model(session: Session, name: str) -> Model:
    """The model of this name.

    Raises:
        NotFound: there is none.
    """
    found = session.scalars(select(Model).where(Model.name == name)).one_or_none()
    if found is None:
        raise not_found("model", name, session.scalars(select(Model.name)), "scopebase models")
    return found


def check_layers(model: Model, layers: Sequence[int], what: str) -> None:
    """Raises InputError for layers that the model does not have."""
    outside = [layer for layer in layers if not 0 <= layer < model.n_layers]
    if outside:
        raise InputError(f"{what}: layer {outside[0]}, but {model.name} has layers 0 to {model.n_layers - 1}")
