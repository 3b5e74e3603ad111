"""Neuronpedia's names for what we hold: SAE `m/12-set` is model `m`, source `12-set`, source set `set`, with an index as text."""

from __future__ import annotations

import hashlib

from sqlalchemy import select
from sqlalchemy.orm import Session

from schema.aliases import by_alias, saelens_release
from schema.errors import InputError, NotFound, not_found
from schema.lookup import find_sae
from schema.names import model_slug
from schema.tables import Model, Sae

CREATOR = "scopebase"
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
MOST_DIGITS = 12
"""Of a feature's index."""


def cuid(*parts: object) -> str:
    """An id of their form, 25 letters and digits, that the same content always gets."""
    number = int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest())
    letters = []
    for _ in range(24):
        number, digit = divmod(number, 36)
        letters.append(_DIGITS[digit])
    return "c" + "".join(letters)


def source_id(sae: Sae) -> str:
    return f"{sae.layer}-{sae.set_name}"


def hook_name(sae: Sae) -> str:
    """The hook point as TransformerLens calls it."""
    return f"blocks.{sae.layer}.hook_resid_post"


def hub_repository(name: str) -> str | None:
    """`Qwen/SAE-Res-...` where that is what a source or release is; None for a directory."""
    parts = name.split("/")
    return name if len(parts) == 2 and all(parts) and not name.startswith((".", "~")) else None


def saelens_id(sae: Sae) -> tuple[str | None, str | None]:
    """(release, id) in SAELens's registry; (None, None) where it is not a Qwen-Scope release."""
    release = saelens_release(sae.release)
    return (release, f"layer{sae.layer}") if release else (None, None)


def find_model(session: Session, name: str) -> Model:
    """The model of this id, or of this name on the hub.

    Raises:
        NotFound: there is none.
    """
    models = {model.name: model for model in session.scalars(select(Model).order_by(Model.id))}
    by_source = {model.source.lower(): model for model in models.values()}
    found = models.get(name) or by_source.get(name.lower()) or models.get(_slug(name))
    if found is None:
        raise not_found("model", name, models, "scopebase models")
    return found


def find_source(session: Session, model: str, source: str) -> Sae:
    """The SAE that a model's id and a source's id name, each of them by any of its names.

    Raises:
        NotFound: there is none.
    """
    saes = list(session.scalars(select(Sae).order_by(Sae.layer)))
    alias = by_alias(saes, source)
    if alias is not None and find_model(session, model).id == alias.model_id:
        return alias
    try:
        return find_sae(session, f"{find_model(session, model).name}/{source}")
    except InputError as error:
        raise NotFound(str(error)) from None


def source_set(session: Session, model: str, name: str) -> list[Sae]:
    """The SAEs of a source set, by layer.

    Raises:
        NotFound: the model has no such set.
    """
    found = find_model(session, model)
    saes = session.scalars(select(Sae).where(Sae.model_id == found.id).order_by(Sae.layer, Sae.set_name))
    sets: dict[str, list[Sae]] = {}
    for sae in saes:
        sets.setdefault(sae.set_name, []).append(sae)
    if name not in sets:
        raise not_found(f"source set of {found.name}", name, sets, "scopebase saes")
    return sets[name]


def feature_index(sae: Sae, index: str | int) -> int:
    """A feature's index, which they write as text.

    Raises:
        NotFound: the SAE has no such feature.
    """
    text = str(index)
    if not (text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS and int(text) < sae.d_sae):
        raise NotFound(f"{sae.name} has no feature {text[:40]!r}; its features are 0 to {sae.d_sae - 1:,}")
    return int(text)


def _slug(name: str) -> str:
    try:
        return model_slug(name)
    except InputError:
        return ""
