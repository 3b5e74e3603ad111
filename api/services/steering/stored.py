"""Saved vectors as they lie in SQL: found by name and version, and read back as arrays."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from schema.errors import Conflict, InputError, NotFound, WorkFailed, not_found
from schema.names import parse_versioned
from schema.steer import SteeringVector

Floats = npt.NDArray[np.float32]
LISTER = "scopebase vector list"


def find_vector(session: Session, text: str) -> SteeringVector:
    """`<name>` is the newest version that is not deleted; `<name>@<version>` that one, even if it was deleted since.

    Raises:
        NotFound: there is none.
    """
    name, version = parse_versioned("vector", text)
    asked = SteeringVector.deleted_at.is_(None) if version is None else SteeringVector.version == version
    query = select(SteeringVector).where(SteeringVector.name == name, asked).order_by(SteeringVector.version.desc())
    found = session.scalars(query.limit(1)).one_or_none()
    if found is not None:
        return found
    newest = session.scalar(select(func.max(SteeringVector.version)).where(SteeringVector.name == name))
    if newest is not None and version is not None:
        raise NotFound(f"vector {name!r} has no version {version}; its newest is {newest}")
    if newest is not None:
        raise NotFound(f"vector {name!r} was deleted; its versions 1 to {newest} can still be read as {name}@{newest}")
    names = session.scalars(select(SteeringVector.name).where(SteeringVector.deleted_at.is_(None)).distinct())
    raise not_found("vector", name, names, LISTER)


def find_usable(session: Session, text: str) -> SteeringVector:
    """The same, refused where it was deleted.

    Raises:
        NotFound: there is none.
        Conflict: it was deleted.
    """
    found = find_vector(session, text)
    if found.deleted_at is not None:
        raise Conflict(
            f"vector {found.name}@{found.version} was deleted on {found.deleted_at:%Y-%m-%d}; save it again to use it"
        )
    return found


def vectors_of(row: SteeringVector) -> dict[int, Floats]:
    """Layer -> (d_model,).

    Raises:
        WorkFailed: the database does not hold the bytes that were saved.
    """
    if hashlib.sha256(row.data).hexdigest() != row.sha256 or len(row.data) != 4 * len(row.layers) * row.d_model:
        raise WorkFailed(
            f"vector {row.name}@{row.version} is not what was saved: its bytes have another hash; restore a backup"
        )
    block = np.frombuffer(row.data, "<f4").reshape(len(row.layers), row.d_model).astype(np.float32)
    return dict(zip(row.layers, block, strict=True))


def at_layer(found: dict[int, Floats], layer: int, what: str) -> dict[int, Floats]:
    """The one of several layers that is wanted; the only one, wherever it is put.

    Raises:
        InputError: there are several, and not that one.
    """
    if layer not in found and len(found) > 1:
        raise InputError(f"{what} has layers {', '.join(map(str, found))}, and none {layer}")
    return {layer: found[layer] if layer in found else next(iter(found.values()))}
