"""Saved vectors as stored objects: versions under a name, how each was made, and who made it. Nothing is changed in place."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.orm import Session, defer

from api.services.cursors import read_cursor, write_cursor
from api.services.library import Library
from api.services.steering.combine import combine
from api.services.steering.decoded import decoded_means
from api.services.steering.made import Made
from api.services.steering.models import find_model
from api.services.steering.residual import residual_means
from api.services.steering.stored import find_vector, vectors_of
from api.services.steering.strengths import suggest_for_vector
from api.services.versions import next_version
from schema.audit import audit
from schema.errors import Conflict
from schema.live import LiveModel
from schema.names import parse_versioned
from schema.steer import SteeringVector
from schema.tables import Model, now
from schema.wire.base import Page
from schema.wire.vectors import LayerVector, SavedVector, SaveVector, VectorItem, VectorMade

KEPT_CHARS = 100_000
"""Of the texts of a request; longer ones are kept as their hash."""


@dataclass(frozen=True)
class Which:
    """The vectors that a list is of."""

    name: str | None = None
    """Every version of this one, instead of the newest of each."""
    model: str | None = None
    layer: int | None = None
    author: str | None = None
    made: VectorMade | None = None
    text: str | None = None
    """In the name or the description."""
    deleted: bool = False
    """Deleted ones too."""


def save_vector(library: Library, live: LiveModel | None, body: SaveVector, author: str) -> SavedVector:
    """Makes the next version of a vector.

    Raises:
        NotFound, Conflict, InputError, NoModel: see `combine`, `decoded_means`, `residual_means` and `keep`.
    """
    if body.residual_means is not None:
        made = residual_means(library, live, body)
    else:
        with library.home.database.reading() as session:
            made = (combine if body.components is not None else decoded_means)(library, session, body)
    return keep(library, made, body.name, body.description, author, body.based_on)


def keep(
    library: Library, made: Made, name: str, description: str | None, author: str, based_on: int | None
) -> SavedVector:
    """Stores what was made as the next version under a name.

    Raises:
        Conflict: see `next_version`.
    """
    layers = sorted(made.layers)
    block = np.stack([made.layers[layer] for layer in layers]).astype("<f4")
    norms = [float(norm) for norm in np.linalg.norm(block.astype(np.float64), axis=1)]
    with library.home.database.writing(alone=True) as session:
        row = SteeringVector(
            name=name,
            model_id=made.model.id,
            layers=layers,
            d_model=block.shape[1],
            data=block.tobytes(),
            sha256=hashlib.sha256(block.tobytes()).hexdigest(),
            provenance={"made": made.how, "norms": norms, **_short(made.provenance)},
            description=description,
            author=author,
        )
        row.version = next_version(session, row, "vector", based_on)
        session.add(row)
        session.flush()
        audit(session, author, "vector.create", f"{name}@{row.version}", {"made": made.how, "sha256": row.sha256})
        return _saved(session, row)


def list_vectors(library: Library, which: Which, limit: int = 50, cursor: str | None = None) -> Page[VectorItem]:
    """The newest version of each vector by name; with a name, every version of that one."""
    offset, _ = read_cursor(cursor)
    query = select(SteeringVector).options(defer(SteeringVector.data, raiseload=True))
    if not which.deleted:
        query = query.where(SteeringVector.deleted_at.is_(None))
    if which.name is not None:
        query = query.where(SteeringVector.name == which.name)
    else:
        newest = select(func.max(SteeringVector.id)).group_by(SteeringVector.name)
        if not which.deleted:
            newest = newest.where(SteeringVector.deleted_at.is_(None))
        query = query.where(SteeringVector.id.in_(newest))
    if which.author is not None:
        query = query.where(SteeringVector.author == which.author)
    if which.text is not None:
        query = query.where(
            SteeringVector.name.icontains(which.text, autoescape=True)
            | SteeringVector.description.icontains(which.text, autoescape=True)
        )
    with library.home.database.reading() as session:
        if which.model is not None:
            query = query.where(SteeringVector.model_id == find_model(session, which.model).id)
        rows = [
            row
            for row in session.scalars(query.order_by(SteeringVector.name, SteeringVector.version))
            if _fits(row, which)
        ]
        items = [_item(session, row) for row in rows[offset : offset + limit]]
    return Page(data=items, next_cursor=write_cursor(offset + limit) if offset + limit < len(rows) else None)


def _fits(row: SteeringVector, which: Which) -> bool:
    """What is asked of JSON columns, which the two dialects ask for in different words."""
    return (which.layer is None or which.layer in row.layers) and (
        which.made is None or row.provenance["made"] == which.made
    )


def show_vector(library: Library, name: str) -> SavedVector:
    """`<name>` or `<name>@<version>`, with its numbers.

    Raises:
        NotFound: see `find_vector`.
    """
    with library.home.database.reading() as session:
        return _saved(session, find_vector(session, name))


def delete_vector(library: Library, name: str, author: str) -> Page[VectorItem]:
    """Takes a version, or every version of a name, out of use. What was made with it still names it, and can read it.

    Raises:
        NotFound: see `find_vector`.
        Conflict: it was deleted before.
    """
    bare, version = parse_versioned("vector", name)
    with library.home.database.writing(alone=True) as session:
        found = find_vector(session, name)
        if found.deleted_at is not None:
            raise Conflict(f"vector {found.name}@{found.version} was deleted on {found.deleted_at:%Y-%m-%d} already")
        rows = [found]
        if version is None:
            mine = (SteeringVector.name == bare, SteeringVector.deleted_at.is_(None))
            rows = list(session.scalars(select(SteeringVector).where(*mine).order_by(SteeringVector.version)))
        for row in rows:
            row.deleted_at = now()
            audit(session, author, "vector.delete", f"{row.name}@{row.version}")
        session.flush()
        return Page(data=[_item(session, row) for row in rows], next_cursor=None)


def _item(session: Session, row: SteeringVector) -> VectorItem:
    return VectorItem(**_fields(session, row))


def _saved(session: Session, row: SteeringVector) -> SavedVector:
    fields = _fields(session, row)
    vectors = [
        LayerVector(layer=layer, norm=norm, vector=vector.tolist())
        for (layer, vector), norm in zip(vectors_of(row).items(), fields["norms"], strict=True)
    ]
    suggested = suggest_for_vector(row.provenance["made"])
    return SavedVector(**fields, vectors=vectors, suggested=suggested, provenance=row.provenance)


def _fields(session: Session, row: SteeringVector) -> dict[str, Any]:
    same = ("name", "version", "layers", "d_model", "sha256", "description", "author", "created_at", "deleted_at")
    return {
        **{name: getattr(row, name) for name in same},
        "id": f"{row.name}@{row.version}",
        "model": session.get_one(Model, row.model_id).name,
        "norms": row.provenance["norms"],
        "made": row.provenance["made"],
    }


def _short(provenance: Any) -> dict[str, Any]:
    """Provenance whose texts are kept only where they are short: the hash of the others."""
    kept = json.loads(json.dumps(dict(provenance)))
    means = kept.get("request", {}).get("residual_means", {})
    for side in ("a", "b"):
        texts = means.get(side)
        if isinstance(texts, list) and sum(map(len, texts)) > KEPT_CHARS:
            digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
            means[side] = {"n": len(texts), "sha256": digest}
    return kept
