"""Rules as stored objects: versions under a name, how each was made, and who stands for it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.services.cursors import read_cursor, write_cursor
from api.services.library import Library
from api.services.rules.discovery import discover
from api.services.rules.expressions import leaves
from api.services.rules.ground import find_ground
from api.services.versions import next_version
from schema.audit import audit
from schema.errors import Conflict, InputError, NotFound, not_found
from schema.lab import Rule
from schema.lookup import find_sae
from schema.recipe import MASKS
from schema.tables import Dataset, now
from schema.wire.base import Page
from schema.wire.discovery import Candidate, DiscoverAnswer
from schema.wire.rules import BoundSae, Choice, RuleBody, RuleItem


def find_rule(session: Session, name: str, version: int | None = None) -> Rule:
    """A version of a rule, the newest unless one is asked for.

    Raises:
        NotFound: there is no such rule, or no such version of it.
    """
    query = select(Rule).where(Rule.name == name).order_by(Rule.version.desc())
    if version is not None:
        query = query.where(Rule.version == version)
    rule = session.scalars(query.limit(1)).one_or_none()
    if rule is None:
        newest = session.scalar(select(func.max(Rule.version)).where(Rule.name == name))
        if newest is not None:
            raise NotFound(f"rule {name!r} has no version {version}; its newest is {newest}")
        raise not_found("rule", name, session.scalars(select(Rule.name).distinct()), "scopebase rule list")
    return rule


def list_rules(library: Library, name: str | None = None, limit: int = 50, cursor: str | None = None) -> Page[RuleItem]:
    """The newest version of each rule by name; with a name, every version of that one."""
    offset, _ = read_cursor(cursor)
    newest = select(func.max(Rule.id)).group_by(Rule.name)
    query = select(Rule).where(Rule.id.in_(newest)) if name is None else select(Rule).where(Rule.name == name)
    with library.home.database.reading() as session:
        rows = session.scalars(query.order_by(Rule.name, Rule.version).offset(offset).limit(limit + 1)).all()
        items = [rule_item(rule) for rule in rows[:limit]]
    return Page(data=items, next_cursor=write_cursor(offset + limit) if len(rows) > limit else None)


def show_rule(library: Library, name: str, version: int | None = None) -> RuleItem:
    """One version.

    Raises:
        NotFound: see `find_rule`.
    """
    with library.home.database.reading() as session:
        return rule_item(find_rule(session, name, version))


def make_rule(library: Library, body: RuleBody, author: str) -> RuleItem:
    """Stores the next version of a rule.

    Raises:
        NotFound, InputError, Conflict: a feature that is not there, SAEs of different models, a discovery that cannot be made, or
            see `next_version`.
    """
    if body.mask not in MASKS:
        raise InputError(f"mask {body.mask!r}: one of {', '.join(MASKS)}")
    if body.discovery is not None:
        answer = discover(library, body.discovery)
        candidate = _choose(answer, body.choice)
        expression, pool = candidate.expression, body.discovery.pool
        made = _made_by_discovery(library, body, answer, candidate)
    else:
        assert body.expression is not None
        expression, pool = body.expression, body.pool
        made = {"made": "by hand", "mask": body.mask, "max_tokens": body.max_tokens}
    found = leaves(expression)
    with library.home.database.writing(alone=True) as session:
        bound = bind(session, [leaf.sae for leaf in found])
        for leaf in found:
            _check_index(session, leaf.sae, leaf.index)
        rule = Rule(
            name=body.name,
            expression=expression.model_dump(),
            pool=pool,
            saes={name: each.model_dump() for name, each in bound.items()},
            provenance=made,
            description=body.description,
            author=author,
        )
        rule.version = next_version(session, rule, "rule", body.based_on)
        session.add(rule)
        session.flush()
        audit(session, author, "rule.create", f"{rule.name}@{rule.version}", {"made": made["made"]})
        return rule_item(rule)


def sign_rule(library: Library, name: str, version: int | None, signer: str) -> RuleItem:
    """Says that somebody stands for a version.

    Raises:
        NotFound: see `find_rule`.
        Conflict: somebody does already.
    """
    with library.home.database.writing(alone=True) as session:
        rule = find_rule(session, name, version)
        if rule.signed_by is not None:
            raise Conflict(
                f"rule {name}@{rule.version} was signed by {rule.signed_by}; a changed rule is a new version"
            )
        rule.signed_by, rule.signed_at = signer, now()
        audit(session, signer, "rule.sign", f"{name}@{rule.version}")
        session.flush()
        return rule_item(rule)


def bind(session: Session, saes: list[str]) -> dict[str, BoundSae]:
    """What these SAEs are now.

    Raises:
        NotFound: one of them is not there.
        InputError: they are of different models.
    """
    bound = {}
    for name in dict.fromkeys(saes):
        sae = find_sae(session, name)
        bound[name] = BoundSae(
            sha256=sae.sha256,
            model=sae.model.name,
            revision=sae.model.revision,
            tokenizer_sha256=sae.model.tokenizer_sha256,
        )
    if len({each.model for each in bound.values()}) > 1:
        raise InputError(f"{' and '.join(bound)} are SAEs of different models; a rule reads one model")
    return bound


def rule_item(rule: Rule) -> RuleItem:
    item = RuleItem.model_validate(
        {
            "id": f"{rule.name}@{rule.version}",
            "n_features": 0,
            **{name: getattr(rule, name) for name in RuleItem.model_fields if name not in ("id", "n_features")},
        }
    )
    return item.model_copy(update={"n_features": len(leaves(item.expression))})


def _check_index(session: Session, sae: str, index: int) -> None:
    d_sae = find_sae(session, sae).d_sae
    if index >= d_sae:
        raise InputError(f"{sae} has no feature {index:,}; its features are 0 to {d_sae - 1:,}")


def _choose(answer: DiscoverAnswer, choice: Choice | None) -> Candidate:
    if choice is None:
        return answer.chosen
    candidates = [*answer.multi_layer, *(rule for layer in answer.layers for rule in layer.rules)]
    for candidate in candidates:
        if choice.m is not None and candidate.m == choice.m:
            return candidate
        if choice.k is not None and candidate.k == choice.k and candidate.saes == [choice.sae]:
            return candidate
    raise InputError(
        f"choice {choice.model_dump(exclude_none=True)}: the discovery made no such rule; ask it for that k or m"
    )


def _made_by_discovery(
    library: Library, body: RuleBody, answer: DiscoverAnswer, candidate: Candidate
) -> dict[str, Any]:
    """All that is needed to make the rule again and to hold out what it was discovered on."""
    assert body.discovery is not None
    request = body.discovery.model_copy(update={"dataset": answer.dataset, "as_of": answer.provenance.snapshot})
    with library.home.database.reading() as session:
        source = find_ground(session, request.saes, [request.dataset], request.as_of).datasets[0]
        sha256 = session.get_one(Dataset, source.dataset_id).sha256
    return {
        "made": "discovery",
        "request": request.model_dump(mode="json"),
        "choice": {"sae": candidate.saes[0], "k": candidate.k} if candidate.k is not None else {"m": candidate.m},
        "dataset_sha256": sha256,
        "split": answer.split.model_dump(mode="json"),
        "features": candidate.features,
        "discovery_f1": candidate.discovery_f1,
        "held_out": candidate.metrics.model_dump(mode="json"),
        "trivial": answer.trivial.model_dump(mode="json"),
        "provenance": answer.provenance.model_dump(mode="json"),
        "mask": answer.provenance.mask,
        "max_tokens": source.recipe.max_tokens,
    }
