"""What a coverage gap is held against: the features of a dataset, a list, a label search or a rule, each with a weight."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.services.columns import Column
from api.services.library import Library
from api.services.query.labelled import matching
from schema.errors import InputError, NotFound, not_found
from schema.lab import Rule
from schema.tables import Sae
from schema.wire.gaps import CoverageGapQuestion, DatasetTarget, FeaturesTarget, LabelsTarget, RuleTarget

Weights = npt.NDArray[np.float64]


def kind_of(question: CoverageGapQuestion) -> tuple[Any, str]:
    """The target's kind and how an answer calls it."""
    target = question.target
    if isinstance(target, FeaturesTarget):
        return "features", f"{len(target.features):,} features"
    if isinstance(target, LabelsTarget):
        return "labels", target.labels
    return ("rule", target.rule) if isinstance(target, RuleTarget) else ("dataset", target.dataset)


def sae_of(session: Session, question: CoverageGapQuestion) -> str | None:
    """The SAE asked for; else the one that the target's features name, if it is one."""
    if question.sae:
        return question.sae
    if isinstance(question.target, FeaturesTarget):
        named = {f.rpartition("/")[0] for f in question.target.features if isinstance(f, str) and "/" in f}
    elif isinstance(question.target, RuleTarget):
        named = {f.rpartition("/")[0] for f in features_in(find_rule(session, question.target.rule).expression)}
    else:
        named = set()
    return next(iter(named)) if len(named) == 1 else None


def weigh(library: Library, question: CoverageGapQuestion, sae: Sae, column: Column | None) -> Weights:
    """(d_sae,) each target feature's weight, nan for those that are none.

    Args:
        column: the target dataset's counts, where the target is one.

    Raises:
        NotFound: no such rule or feature, or no label that says this.
        InputError: features of another SAE.
    """
    weights = np.full(sae.d_sae, np.nan)
    target = question.target
    if isinstance(target, DatasetTarget):
        assert column is not None
        return np.where(column.fires >= question.min_samples, column.rates, np.nan)
    if isinstance(target, LabelsTarget):
        hits = matching(library, sae.id, target.labels, target.limit, target.how)
        if not hits:
            raise NotFound(f"no label of {sae.name} says {target.labels!r}; 'scopebase label list' shows the labels")
        for feature, score in hits:
            weights[feature] = score
        return weights
    if isinstance(target, RuleTarget):
        with library.home.database.reading() as session:
            names = list(features_in(find_rule(session, target.rule).expression))
        mine = [name for name in names if not isinstance(name, str) or name.startswith(f"{sae.name}/")]
        if not mine:
            raise InputError(f"rule {target.rule!r} speaks of no feature of {sae.name}, but of {', '.join(names[:3])}")
        weights[[_index(sae, name) for name in mine]] = 1.0
        return weights
    weights[[_index(sae, feature) for feature in target.features]] = target.weights or 1.0
    return weights


def find_rule(session: Session, text: str) -> Rule:
    """A rule's newest version, or the one that `name@version` asks for."""
    name, _, version = text.partition("@")
    query = select(Rule).where(Rule.name == name).order_by(Rule.version.desc())
    rules = list(session.scalars(query))
    if not rules:
        raise not_found("rule", name, session.scalars(select(Rule.name).distinct()), "scopebase rule list")
    found = next((rule for rule in rules if not version or str(rule.version) == version), None)
    if found is None:
        raise NotFound(f"rule {name!r} has versions {', '.join(str(rule.version) for rule in rules)}, not {version!r}")
    return found


def features_in(expression: Any) -> Iterator[str]:
    """The features that an expression names, wherever they stand."""
    if isinstance(expression, list):
        for each in expression:
            yield from features_in(each)
    elif isinstance(expression, dict):
        if "feature" in expression:
            yield str(expression["feature"])
        for key in ("any", "all", "not"):
            yield from features_in(expression.get(key))


def _index(sae: Sae, feature: int | str) -> int:
    """The index of one of the SAE's features."""
    owner, _, last = str(feature).rpartition("/")
    if owner and owner != sae.name:
        raise InputError(f"feature {feature} is not one of {sae.name}; name features of one SAE")
    if not last.isascii() or not last.isdigit() or int(last) >= sae.d_sae:
        raise NotFound(f"{sae.name} has no feature {last!r}; its features are 0 to {sae.d_sae - 1}")
    return int(last)
