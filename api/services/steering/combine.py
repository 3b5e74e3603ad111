"""Weighted sums of features and saved vectors, each at its own layer or where it is put."""

from __future__ import annotations

import numpy as np
from sqlalchemy.orm import Session

from api.services.features.directions import read_columns
from api.services.library import Library
from api.services.steering.made import Doubles, Made, finish
from api.services.steering.models import check_layers
from api.services.steering.stored import Floats, at_layer, find_usable, vectors_of
from schema.errors import Conflict, InputError
from schema.lookup import find_feature
from schema.steer import SteeringVector
from schema.tables import Model, Sae
from schema.wire.vectors import Component, SaveVector


def combine(library: Library, session: Session, body: SaveVector) -> Made:
    """The sum of the request's components, in float64.

    Raises:
        NotFound: a feature or vector that is not there.
        Conflict: a deleted vector, or parts that cancel each other out.
        InputError: components of different models, or a layer that the model does not have.
    """
    assert body.components is not None
    sums: dict[int, Doubles] = {}
    models: dict[int, Model] = {}
    saes: dict[str, str] = {}
    vectors: dict[str, str] = {}
    for place, component in enumerate(body.components):
        model, found = _part(library, session, place, component, saes, vectors)
        models.setdefault(model.id, model)
        for layer, vector in found.items():
            scaled = component.weight * _at_length(vector.astype(np.float64), body.normalise == "components")
            sums[layer] = sums.get(layer, np.zeros(len(vector))) + scaled
    if len(models) > 1:
        names = " and ".join(model.name for model in models.values())
        raise InputError(f"components of different models, {names}; a vector belongs to one model")
    made = {"request": body.model_dump(mode="json", exclude_none=True), "saes": saes, "vectors": vectors}
    return finish(next(iter(models.values())), sums, body.normalise == "result", "components", made)


def _part(
    library: Library,
    session: Session,
    place: int,
    component: Component,
    saes: dict[str, str],
    vectors: dict[str, str],
) -> tuple[Model, dict[int, Floats]]:
    """A component's model and its vectors by layer; notes what it stands on."""
    where = f"components.{place}"
    if component.feature is not None:
        sae, index = find_feature(session, component.feature)
        saes[sae.name] = sae.sha256
        found = {sae.layer: _column(library, sae, index)}
        model, name = sae.model, f"{sae.name}/{index}"
    else:
        assert component.vector is not None
        row = find_usable(session, component.vector)
        model, name = _model_of(session, row), f"{row.name}@{row.version}"
        vectors[name] = row.sha256
        found = vectors_of(row)
    if component.layer is not None:
        check_layers(model, [component.layer], where)
        found = at_layer(found, component.layer, f"{where}: {name}")
    return model, found


def _column(library: Library, sae: Sae, index: int) -> Floats:
    column = read_columns(library, sae, [index])[0]
    if not column.any():
        raise Conflict(
            f"the decoder column of {sae.name}/{index} is zero, so it steers nothing; choose another feature"
        )
    return column


def _model_of(session: Session, row: SteeringVector) -> Model:
    return session.get_one(Model, row.model_id)


def _at_length(vector: Doubles, unit: bool) -> Doubles:
    return vector / np.linalg.norm(vector) if unit else vector
