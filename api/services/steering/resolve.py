"""What a request to steer means in this home: names become directions, layers and expressions of `schema.generation`."""

from __future__ import annotations

import numpy as np
from sqlalchemy.orm import Session

from api.services.features.directions import read_columns
from api.services.library import Library
from api.services.rules.book import find_rule, rule_item
from api.services.rules.expressions import leaves
from api.services.steering.contradictions import NEED_ENCODER, check_spec, check_together
from api.services.steering.models import check_layers, find_model
from api.services.steering.stored import at_layer, find_usable, vectors_of
from schema.errors import Conflict, InputError, NotFound
from schema.generation import Condition, Op
from schema.lookup import check_index, find_all_sources, find_feature, find_sae
from schema.names import parse_versioned
from schema.tables import Model, Sae
from schema.wire.expressions import Expression
from schema.wire.steering import OpSpec, Steering, When


def resolve(library: Library, steering: Steering, model: str) -> tuple[tuple[Op, ...], Condition | None]:
    """The operations, in their order, and the condition. A vector of several layers is one operation a layer.

    Args:
        model: name of the loaded model in the home.

    Raises:
        NotFound: a feature, vector, rule or SAE that is not there, with the nearest names.
        Conflict: one that belongs to another model, that was deleted, or that never fires where its largest activation is asked for.
        InputError: a layer that the model does not have, or operations that contradict themselves.
    """
    for place, spec in enumerate(steering.ops):
        check_spec(place, spec)
    with library.home.database.reading() as session:
        own = find_model(session, model)
        found = [op for place, spec in enumerate(steering.ops) for op in _ops(library, session, own, place, spec)]
        condition = None if steering.when is None else _condition(session, own, steering.when)
    check_together(found)
    return tuple(found), condition


def largest_activation(library: Library, session: Session, sae: Sae, index: int) -> float | None:
    """A feature's largest activation over every dataset that was indexed with its SAE; None where none was."""
    try:
        subject, _ = find_all_sources(session, sae.name)
    except NotFound:
        return None
    return max(float(library.counts(source.pair).largest[index]) for source in subject.sources)


def _ops(library: Library, session: Session, model: Model, place: int, spec: OpSpec) -> list[Op]:
    if spec.layer is not None:
        check_layers(model, [spec.layer], f"steering.ops.{place}")
    return (
        [_of_feature(library, session, model, place, spec)] if spec.feature else _of_vector(session, model, place, spec)
    )


def _of_feature(library: Library, session: Session, model: Model, place: int, spec: OpSpec) -> Op:
    assert spec.feature is not None
    sae, index = find_feature(session, spec.feature)
    name = f"{sae.name}/{index}"
    if sae.model_id != model.id:
        raise Conflict(f"feature {name} belongs to model {sae.model.name}, but {model.name} is loaded")
    layer = sae.layer if spec.layer is None else spec.layer
    if layer != sae.layer and spec.mode in NEED_ENCODER:
        raise InputError(
            f"steering.ops.{place}: mode {spec.mode} reads the activation of {name}, which its SAE gives at layer {sae.layer} only; "
            "leave layer out, or use add or ablate"
        )
    column = read_columns(library, sae, [index])[0]
    if not column.any():
        raise Conflict(f"the decoder column of {name} is zero, so it steers nothing; choose another feature")
    largest = largest_activation(library, session, sae, index) if spec.unit == "feature_max" else None
    if spec.unit == "feature_max" and not largest:
        raise Conflict(
            f"feature {name} never fires in the index, so it has no largest activation to count in; use another unit"
        )
    return Op(place, name, layer, spec.mode, spec.strength, spec.unit, column, sae.name, index, largest, spec.where)


def _of_vector(session: Session, model: Model, place: int, spec: OpSpec) -> list[Op]:
    assert spec.vector is not None
    row = find_usable(session, spec.vector)
    name = f"{row.name}@{row.version}"
    if row.model_id != model.id:
        bound = session.get_one(Model, row.model_id).name
        raise Conflict(f"vector {name} was made for model {bound}, but {model.name} is loaded")
    chosen = vectors_of(row)
    if spec.layer is not None:
        chosen = at_layer(chosen, spec.layer, f"steering.ops.{place}: vector {name}")
    return [
        Op(place, name, layer, spec.mode, spec.strength, spec.unit, np.ascontiguousarray(vector), where=spec.where)
        for layer, vector in chosen.items()
    ]


def _condition(session: Session, model: Model, when: When) -> Condition:
    if when.rule is None:
        assert when.expression is not None
        _check_expression(session, model, when.expression, "the condition")
        return Condition("expression", when.expression, when.scope)
    rule = rule_item(find_rule(session, *parse_versioned("rule", when.rule)))
    for sae in _check_expression(session, model, rule.expression, f"rule {rule.id}"):
        if sae.name in rule.saes and rule.saes[sae.name].sha256 != sae.sha256:
            raise Conflict(
                f"rule {rule.id} was made with other tensors of {sae.name} ('scopebase rule drift' says more)"
            )
    return Condition(rule.id, rule.expression, when.scope)


def _check_expression(session: Session, model: Model, expression: Expression, what: str) -> list[Sae]:
    """The SAEs that it reads."""
    saes: dict[str, Sae] = {}
    for leaf in leaves(expression):
        sae = saes.setdefault(leaf.sae, find_sae(session, leaf.sae))
        if sae.model_id != model.id:
            raise Conflict(f"{what} reads {sae.name}, an SAE of model {sae.model.name}, but {model.name} is loaded")
        check_index(sae, leaf.index)
    return list(saes.values())
