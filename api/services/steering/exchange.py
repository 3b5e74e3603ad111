"""Vectors out as files, and in from files. A file is bound to a model of the home before anything is stored."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import numpy as np
from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.services.library import Library
from api.services.steering import files
from api.services.steering.combine import combine
from api.services.steering.directions import feature_vector
from api.services.steering.files.lm_eval import BEGIN, read_lm_eval, write_lm_eval
from api.services.steering.files.vector_file import VectorFile, check_size
from api.services.steering.made import Made
from api.services.steering.models import check_layers, find_model
from api.services.steering.stored import find_vector, vectors_of
from api.services.steering.vectors import keep, show_vector
from schema.errors import Conflict, InputError
from schema.lookup import find_feature, find_sae
from schema.steer import SteeringVector
from schema.tables import Model, Sae
from schema.wire.vectors import NAME, Component, FeatureVector, ImportVector, SavedVector, SaveVector, VectorFormat


def export_vector(library: Library, name: str, format: VectorFormat) -> tuple[bytes, str]:
    """A feature's direction, or a saved vector, as a file: its bytes, and what to call it.

    Args:
        name: `<sae>/<index>`, `<name>` or `<name>@<version>`.

    Raises:
        NotFound: there is none.
        InputError: it cannot be said in that format.
    """
    if format == "json":
        shown = feature_vector(library, name) if "/" in name else show_vector(library, name)
        return shown.model_dump_json().encode(), _called(name, format)
    if format == "lm-eval":
        return _lm_eval(library, name), _called(name, format)
    if "/" in name:
        shown = feature_vector(library, name)
        strength = _medium(shown)
        file = _file_of_feature(library, shown)
    else:
        strength = None
        with library.home.database.reading() as session:
            file = _file_of_saved(session, find_vector(session, name))
    return files.write(file, format, strength), _called(name, format)


def import_vector(library: Library, data: bytes, options: ImportVector, author: str) -> SavedVector:
    """Stores a file's vector as the next version under a name.

    Raises:
        InputError, TooLarge: a file that cannot be read, or that does not fit the model.
        NotFound: the home has no such model.
        Conflict: it fits several models, and none was named; or see `keep`.
    """
    check_size(data)
    if data.startswith(BEGIN):
        return _import_features(library, data, options, author)
    file, format = files.read(data)
    shift = options.layer_shift
    with library.home.database.reading() as session:
        own = _model_for(session, file, options.model)
        layers = {layer + shift: vector for layer, vector in file.layers.items()}
        check_layers(own, list(layers), f"the file, its layers shifted by {shift:+}" if shift else "the file")
    provenance: dict[str, Any] = {
        "format": format,
        "file": options.file,
        "file_sha256": hashlib.sha256(data).hexdigest(),
        "said": {"model": file.model, "model_type": file.family, "name": file.name},
        "layer_shift": shift,
        "empty_layers": list(file.empty_layers),
    }
    made = Made(own, layers, "import", provenance)
    name, description = _name(options.name or _plain(file.name)), options.description or file.description
    return keep(library, made, name, description, author, options.based_on)


def _import_features(library: Library, data: bytes, options: ImportVector, author: str) -> SavedVector:
    """A table of features is a combination of this home's decoder columns."""
    rows = read_lm_eval(data)
    name = _name(options.name)
    with library.home.database.reading() as session:
        parts = [
            {"feature": f"{find_sae(session, row.sae).name}/{row.index}", "weight": row.coefficient} for row in rows
        ]
        try:
            body = SaveVector.model_validate({"name": name, "components": parts})
        except ValidationError as error:
            raise InputError(f"the table: {error.errors()[0]['msg']}") from None
        made = combine(library, session, body)
    return keep(library, made, name, options.description, author, options.based_on)


def _name(name: str | None) -> str:
    if name is None or not re.fullmatch(NAME, name):
        raise InputError(
            "the file does not say a name that can be used; give one of letters, digits, '.', '_' and '-', 64 at most"
        )
    return name


def _plain(name: str | None) -> str | None:
    """What a file calls its vector, where that can be a name."""
    return name.partition("@")[0].strip() if name and "/" not in name else None


def _model_for(session: Session, file: VectorFile, wanted: str | None) -> Model:
    if wanted is not None:
        found = find_model(session, wanted)
        if found.d_model != file.d_model:
            raise InputError(
                f"the file's vectors have {file.d_model:,} numbers, and {found.name} has {found.d_model:,}"
            )
        return found
    every = list(session.scalars(select(Model).order_by(Model.name)))
    named = [model for model in every if model.name == file.model]
    fitting = [model for model in named or every if model.d_model == file.d_model]
    if named and not fitting:
        raise InputError(
            f"the file's vectors have {file.d_model:,} numbers, and {named[0].name} has {named[0].d_model:,}"
        )
    if not fitting:
        widths = ", ".join(f"{model.name} ({model.d_model:,})" for model in every) or "no model"
        raise InputError(f"the file's vectors have {file.d_model:,} numbers, and the home has {widths}")
    if len(fitting) > 1 or (file.model is not None and not named):
        names = " or ".join(model.name for model in fitting)
        said = f" and says that it is for {file.model[:80]!r}" if file.model else ""
        raise Conflict(f"the file fits {names}{said}; name the model that it is for")
    return fitting[0]


def _file_of_feature(library: Library, shown: FeatureVector) -> VectorFile:
    with library.home.database.reading() as session:
        family = find_model(session, shown.model).family
    vector = np.array(shown.vector, np.float32)
    if not vector.any():
        raise Conflict(f"the decoder column of {shown.feature} is zero, so it steers nothing; choose another feature")
    return VectorFile({shown.layer: vector}, shown.model, family, shown.feature, shown.label)


def _file_of_saved(session: Session, row: SteeringVector) -> VectorFile:
    model = session.get_one(Model, row.model_id)
    return VectorFile(vectors_of(row), model.name, model.family, f"{row.name}@{row.version}", row.description)


def _medium(shown: FeatureVector) -> float | None:
    """The suggested strength in multiples of the decoder column."""
    return next((s.strength for s in shown.suggested if s.name == "medium" and s.unit == "absolute"), None)


def _lm_eval(library: Library, name: str) -> bytes:
    if "/" in name:
        shown = feature_vector(library, name)
        parts = [Component(feature=shown.feature, weight=_medium(shown) or 1.0)]
    else:
        parts = _components(show_vector(library, name))
    with library.home.database.reading() as session:
        rows: list[tuple[Sae, int, float, str]] = []
        for part in parts:
            assert part.feature is not None
            sae, index = find_feature(session, part.feature)
            rows.append((sae, index, part.weight, part.feature))
    return write_lm_eval(rows)


def _components(saved: SavedVector) -> list[Component]:
    """The features that a vector is the plain weighted sum of.

    Raises:
        InputError: it was made otherwise.
    """
    request = saved.provenance.get("request", {})
    parts = [Component.model_validate(part) for part in request.get("components", ())]
    plain = parts and all(part.feature is not None and part.layer is None for part in parts)
    if not plain or request.get("normalise", "none") != "none":
        raise InputError(
            f"{saved.id} is no plain sum of features, which is all that lm-eval's table holds; take another format"
        )
    return parts


def _called(name: str, format: VectorFormat) -> str:
    plain = "".join(char if char.isalnum() or char in "._-" else "-" for char in name)
    return f"{plain}.{files.SUFFIX[format]}"
