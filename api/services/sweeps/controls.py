"""The controls of a sweep: random features that fire about as often as the target, and random directions, at equal norm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.services.features.directions import read_columns
from api.services.library import Library
from api.services.steering.contradictions import NEED_ENCODER
from api.services.steering.resolve import largest_activation
from schema.errors import InputError, NotFound
from schema.generation import Op
from schema.lookup import find_all_sources, find_feature, find_sae
from schema.tables import Model, Sae

ALIKE = 100
"""Features nearest to the target in how many tokens they fire on, among which controls are drawn."""

Floats = npt.NDArray[np.float32]


def draw_features(library: Library, model: str, ops: Sequence[Op], n: int, seed: int) -> list[list[str]]:
    """For each of n controls one feature an operation, none twice.

    Raises:
        InputError: no SAE at an operation's layer, or too few features that fire.
    """
    rng = np.random.default_rng(seed)
    drawn: list[list[str]] = [[] for _ in range(n)]
    used = {op.target for op in ops}
    for op in ops if n else ():
        with library.home.database.reading() as session:
            sae = _sae_of(session, model, op)
            pool = _alike(library, session, sae, op)
        names = [name for name in (f"{sae.name}/{index}" for index in pool) if name not in used]
        if len(names) < n:
            raise InputError(
                f"{n} random features are asked for and {sae.name} has {len(names)} others that fire; ask for fewer, "
                "or for random directions"
            )
        chosen = [names[i] for i in rng.choice(len(names), n, replace=False)]
        used.update(chosen)
        for control, name in zip(drawn, chosen, strict=True):
            control.append(name)
    return drawn


def check_directions(ops: Sequence[Op], n: int) -> None:
    """Raises InputError where a direction cannot stand for a feature."""
    for op in ops if n else ():
        if op.mode in NEED_ENCODER:
            raise InputError(
                f"controls.random_directions: mode {op.mode} reads a feature's activation, which a direction has none of; "
                "use random_features"
            )


def with_features(library: Library, ops: Sequence[Op], features: Sequence[str]) -> tuple[Op, ...]:
    """The operations with other features in place of their own. Where they add, what is added has the same norm."""
    made = []
    for op, name in zip(ops, features, strict=True):
        with library.home.database.reading() as session:
            sae, index = find_feature(session, name)
            largest = op.largest
            if op.unit == "feature_max" and op.mode != "add":
                largest = largest_activation(library, session, sae, index)
        column = read_columns(library, sae, [index])[0]
        vector = at_norm(column, op.vector) if op.mode == "add" else column
        made.append(replace(op, target=name, vector=vector, sae=sae.name, feature=index, largest=largest))
    return tuple(made)


def with_directions(ops: Sequence[Op], seed: int) -> tuple[Op, ...]:
    """The operations along Gaussian directions of the same norm."""
    rng = np.random.default_rng(seed)
    return tuple(
        replace(
            op,
            target=f"random direction {seed}",
            vector=at_norm(rng.standard_normal(len(op.vector)).astype(np.float32), op.vector),
            sae=None,
            feature=None,
        )
        for op in ops
    )


def at_norm(vector: Floats, like: Floats) -> Floats:
    """A vector at another one's length."""
    length = float(np.linalg.norm(vector.astype(np.float64)))
    return (vector * (float(np.linalg.norm(like.astype(np.float64))) / length)).astype(np.float32)


def _sae_of(session: Session, model: str, op: Op) -> Sae:
    """The operation's own, or for a vector the first at its layer."""
    if op.sae is not None:
        return find_sae(session, op.sae)
    found = session.scalars(
        select(Sae).join(Model).where(Model.name == model, Sae.layer == op.layer).order_by(Sae.name)
    ).first()
    if found is None:
        raise InputError(
            f"controls.random_features: the home has no SAE at layer {op.layer}, where {op.target} is; "
            "ask for random_directions instead"
        )
    return found


def _alike(library: Library, session: Session, sae: Sae, op: Op) -> list[int]:
    """The features that fire on about as many tokens as the operation's own, or all that fire where it has none."""
    try:
        subject, _ = find_all_sources(session, sae.name)
    except NotFound:
        return list(range(sae.d_sae))  # nothing is known of what fires
    tokens = np.sum([library.counts(source.pair).tokens for source in subject.sources], axis=0)
    fires = np.flatnonzero(tokens)
    if op.feature is None:
        return [int(index) for index in fires]
    fires = fires[fires != op.feature]
    distance = np.abs(np.log(tokens[fires]) - np.log(max(1, tokens[op.feature])))
    return [int(index) for index in fires[np.argsort(distance, kind="stable")[:ALIKE]]]
