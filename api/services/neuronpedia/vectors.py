"""Directions in Neuronpedia's shapes: a feature's decoder column, the vectors that were saved here, and the features nearest to one.

A saved vector `calm` with a direction at layer 12 is their vector `calm` of source `12-vectors`.
"""

from __future__ import annotations

import re

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.services.features.directions import nearest, no_directions, read_direction
from api.services.library import Library
from api.services.neuronpedia.names import feature_index, find_model, find_source, hook_name, source_id
from schema.errors import Conflict, NotFound, not_found
from schema.labels import best_labels
from schema.steer import SteeringVector
from schema.tables import Model, Sae
from schema.wire.neuronpedia import NpCosSim, NpNear, NpNearId, NpVector, NpVectorAnswer, NpVectorList
from schema.wire.neuronpedia_requests import NpCosSimAsked, NpFeatureId

N_NEAREST = 10
SAVED = "vectors"
MOST_LISTED = 1000


def vector(library: Library, wanted: NpFeatureId) -> NpVectorAnswer:
    """A feature's decoder column, at its own length, or a saved vector.

    Raises:
        NotFound: no such model, source, feature or vector, or the home has no directions of that SAE.
    """
    source = wanted.source or wanted.layer or ""
    match = re.fullmatch(rf"(\d{{1,4}})-{SAVED}", source)
    with library.home.database.reading() as session:
        if match:
            model = find_model(session, wanted.modelId)
            return NpVectorAnswer(vector=_saved(session, model, int(match[1]), wanted.index))
        sae = find_source(session, wanted.modelId, source)
        index = feature_index(sae, wanted.index)
        label = best_labels(session, sae.id, [index]).get(index)
    direction = read_direction(library, sae, index)
    if direction is None:
        raise no_directions(sae)
    return NpVectorAnswer(
        vector=NpVector(
            modelId=sae.model.name,
            layer=source_id(sae),
            source=source_id(sae),
            index=str(index),
            vectorLabel=label.text if label else None,
            hookName=hook_name(sae),
            vector=(direction.unit * direction.norm).tolist(),
        )
    )


def saved_vectors(library: Library) -> NpVectorList:
    """The newest version of every vector that was saved, once for each of its layers."""
    with library.home.database.reading() as session:
        models = {model.id: model for model in session.scalars(select(Model))}
        found = _newest(session)
        listed = [_as_vector(models[row.model_id], row, layer) for row in found for layer in row.layers]
    return NpVectorList(vectors=listed[:MOST_LISTED])


def cosines(library: Library, asked: NpCosSimAsked) -> NpCosSim:
    """The features of a source whose decoder directions have the largest cosine to a feature's.

    Raises:
        NotFound: no such model, source or feature.
        Conflict: directions of another width.
    """
    with library.home.database.reading() as session:
        sae = find_source(session, asked.modelId, asked.source)
        target = find_source(session, asked.targetModelId, asked.targetSourceId)
        index = feature_index(sae, asked.index)
    if sae.d_model != target.d_model:
        raise Conflict(f"{sae.name} has directions of width {sae.d_model}, {target.name} of width {target.d_model}")
    direction = read_direction(library, sae, index)
    if direction is None:
        raise no_directions(sae)
    own = index if target.id == sae.id else None
    found = nearest(library, target, direction.unit, N_NEAREST, own)
    return NpCosSim(
        feature=_near_id(sae, index),
        topk_decoder_cossim_features=[
            NpNear(feature=_near_id(target, near), cosine_similarity=cosine) for near, cosine in found
        ],
    )


def _near_id(sae: Sae, index: int) -> NpNearId:
    return NpNearId(model=sae.model.name, source=source_id(sae), index=index)


def _newest(session: Session) -> list[SteeringVector]:
    rows = session.scalars(
        select(SteeringVector)
        .where(SteeringVector.deleted_at.is_(None))
        .order_by(SteeringVector.name, SteeringVector.version)
    )
    return list({row.name: row for row in rows}.values())


def _saved(session: Session, model: Model, layer: int, name: str) -> NpVector:
    found = {row.name: row for row in _newest(session) if row.model_id == model.id and layer in row.layers}
    if name not in found:
        raise not_found(f"saved vector of {model.name} at layer {layer}", name, found, "POST /api/vector/list-owned")
    return _as_vector(model, found[name], layer)


def _as_vector(model: Model, row: SteeringVector, layer: int) -> NpVector:
    values = np.frombuffer(row.data, "<f4").reshape(len(row.layers), row.d_model)
    if layer not in row.layers:
        raise NotFound(f"vector {row.name} has no direction at layer {layer}")
    return NpVector(
        modelId=model.name,
        layer=f"{layer}-{SAVED}",
        source=f"{layer}-{SAVED}",
        index=row.name,
        vectorLabel=row.description or row.name,
        hookName=f"blocks.{layer}.hook_resid_post",
        vector=values[row.layers.index(layer)].tolist(),
    )
