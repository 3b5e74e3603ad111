"""A feature's direction as something to steer with: its decoder column, how large it usually is, and what strengths that suggests."""

from __future__ import annotations

import hashlib
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from api.services.features.directions import nearest, no_directions, read_columns, read_direction
from api.services.features.neighbours import labels_of
from api.services.library import Library
from api.services.provenance import provenance
from api.services.steering.strengths import suggest_for_feature, typical_activation
from schema.errors import NotFound
from schema.labels import every_label
from schema.lookup import Subject, check_snapshot, find_all_sources, find_feature
from schema.tables import Sae
from schema.wire.features import Neighbour
from schema.wire.vectors import FeatureVector

MOST_NEIGHBOURS = 50


def feature_vector(library: Library, feature: str, neighbours: int = 0, as_of: int | None = None) -> FeatureVector:
    """Everything that steering with a feature needs to know.

    Args:
        neighbours: nearest decoder directions to name; the first question reads every direction of the SAE.

    Raises:
        NotFound, InputError: an unknown feature or snapshot, or an SAE whose directions the home does not have.
    """
    subject: Subject | None = None
    left_out: list[str] = []
    with library.home.database.reading() as session:
        sae, index = find_feature(session, feature)
        check_snapshot(session, as_of)
        with suppress(NotFound):  # where nothing was indexed with it yet
            subject, left_out = find_all_sources(session, sae.name, as_of)
        labels = [label.text for label in every_label(session, sae.id, index)]
    direction = read_direction(library, sae, index)
    if direction is None:
        raise no_directions(sae)
    column = read_columns(library, sae, [index])[0]
    typical = typical_activation(library, subject.sources, index) if subject is not None else None
    return FeatureVector(
        feature=f"{sae.name}/{index}",
        sae=sae.name,
        sae_sha256=sae.sha256,
        index=index,
        model=sae.model.name,
        layer=sae.layer,
        d_model=sae.d_model,
        label=labels[0] if labels else None,
        labels=labels,
        norm=direction.norm,
        vector=column.tolist(),
        precision="float16",
        sha256=sha256_of(column),
        typical=typical,
        suggested=suggest_for_feature(typical),
        neighbours=_neighbours(library, sae, index, direction.unit, neighbours),
        left_out=left_out,
        provenance=provenance(subject, "any") if subject is not None else None,
    )


def sha256_of(vectors: npt.NDArray[np.float32]) -> str:
    """Of float32 bytes, little-endian."""
    return hashlib.sha256(np.ascontiguousarray(vectors, "<f4").tobytes()).hexdigest()


def _neighbours(library: Library, sae: Sae, index: int, unit: npt.NDArray[np.float32], n: int) -> list[Neighbour]:
    if not n:
        return []
    near = nearest(library, sae, unit, n, without=index)
    labels = labels_of(library, sae, [feature for feature, _ in near])
    return [
        Neighbour(
            feature=f"{sae.name}/{feature}", sae=sae.name, index=feature, label=labels.get(feature), cosine=cosine
        )
        for feature, cosine in near
    ]
