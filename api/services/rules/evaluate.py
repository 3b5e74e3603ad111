"""Measuring a stored rule on datasets, slices and languages; what it was discovered on is left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sqlalchemy import select

from api.services.cursors import read_cursor, write_cursor
from api.services.library import Library
from api.services.rules.book import find_rule, rule_item
from api.services.rules.drift import check_drift, mask_warnings, tokenizer_warnings
from api.services.rules.expressions import decide, leaves
from api.services.rules.ground import Ground, find_ground
from api.services.rules.holding import holding
from api.services.rules.metrics import N_BOOTSTRAP, always, mean, measure
from api.services.rules.split import label_samples, split
from api.services.slices import group_samples
from schema.audit import audit
from schema.errors import InputError
from schema.lab import Rule, RuleEvaluation
from schema.lookup import Source
from schema.tables import Dataset, now
from schema.wire.base import Page
from schema.wire.discovery import DiscoverBody, LabelValue
from schema.wire.rules import EvaluateAnswer, EvaluateBody, EvaluationRow, Macro, RuleItem

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """Which field holds the class, and its positive value."""

    field: str
    positive: LabelValue


def evaluate(library: Library, name: str, body: EvaluateBody, actor: str) -> EvaluateAnswer:
    """Measures a rule and stores the result.

    Raises:
        NotFound, Conflict, InputError: no such rule, dataset or field; runs that cannot be compared; no positive samples.
    """
    with library.home.database.reading() as session:
        rule = find_rule(session, name, body.version)
        item, drifted = rule_item(rule), check_drift(session, rule)
        ground = find_ground(session, [*item.saes], body.datasets, body.as_of)
    task = _task(item, body)
    rows = list(_rows(library, ground, item, body, task))
    if not rows:
        raise InputError("no labelled sample is left to measure on; widen 'where', or name other datasets")
    tokenizers = {source.name: source.recipe.tokenizer_sha256 for source in ground.datasets}
    answer = EvaluateAnswer(
        id=0,
        rule=item.name,
        version=item.version,
        data=rows,
        macro=macro(rows),
        label_field=task.field,
        positive=task.positive,
        seed=body.seed,
        n_bootstrap=N_BOOTSTRAP,
        warnings=[
            *(each.sentence for each in drifted),
            *tokenizer_warnings(item, tokenizers),
            *mask_warnings(item, ground.mask),
            *_other_versions(library, item, ground),
        ],
        provenance=ground.provenance(item.pool),
        created_at=now(),
    )
    return _store(library, rule, answer, actor)


def evaluations(library: Library, name: str, limit: int = 50, cursor: str | None = None) -> Page[EvaluateAnswer]:
    """What a rule was measured to do, in all its versions, the newest first.

    Raises:
        NotFound: see `api.services.rules.book.find_rule`.
    """
    offset, _ = read_cursor(cursor)
    with library.home.database.reading() as session:
        find_rule(session, name)
        query = select(RuleEvaluation).join(Rule).where(Rule.name == name).order_by(RuleEvaluation.id.desc())
        rows = session.scalars(query.offset(offset).limit(limit + 1)).all()
        data = [EvaluateAnswer.model_validate({**row.result, "id": row.id}) for row in rows[:limit]]
    return Page(data=data, next_cursor=write_cursor(offset + limit) if len(rows) > limit else None)


def macro(rows: list[EvaluationRow]) -> Macro:
    """Means over the rows that have both classes."""
    both = [row for row in rows if 0 < row.metrics.n_positive < row.metrics.n]
    return Macro(
        n_rows=len(both),
        f1=mean([row.metrics.f1.value for row in both]),
        precision=mean([row.metrics.precision.value for row in both]),
        recall=mean([row.metrics.recall.value for row in both]),
        accuracy=mean([row.metrics.accuracy.value for row in both]),
        trivial_f1=mean([row.trivial.f1.value for row in both]),
        trivial_accuracy=mean([row.trivial.accuracy.value for row in both]),
    )


def _task(item: RuleItem, body: EvaluateBody) -> Task:
    made = item.provenance.get("request", {})
    field = body.label_field if body.label_field is not None else made.get("label_field", "label")
    positive = body.positive if body.positive is not None else made.get("positive", 1)
    return Task(field, positive)


def _rows(library: Library, ground: Ground, item: RuleItem, body: EvaluateBody, task: Task) -> Iterator[EvaluationRow]:
    held = holding(library, ground, [*leaves(item.expression)], item.pool)
    for name, source, holds in zip(ground.names, ground.datasets, held, strict=True):
        predicted = decide(item.expression, holds)
        seen = discovered_on(library, item, source)
        for group, ordinals in _groups(library, source, body.group_by):
            labelled = label_samples(library, source, task.field, task.positive, body.where, ordinals)
            kept = np.ones(len(labelled.ordinals), np.bool_)
            part = "all"
            if seen is not None:
                part = "all_with_discovery" if body.include_discovery else "held_out"
                kept = kept if body.include_discovery else ~np.isin(labelled.ordinals, seen, assume_unique=True)
            chosen, positive = labelled.ordinals[kept], labelled.positive[kept]
            if not len(chosen):
                continue
            yield EvaluationRow(
                dataset=name,
                group=group,
                part=part,  # type: ignore[arg-type]
                n_unlabelled=labelled.n_unlabelled,
                metrics=measure(predicted[chosen], positive, body.seed),
                trivial=always(positive, body.seed),
            )


def discovered_on(library: Library, item: RuleItem, source: Source) -> Ints | None:
    """Ordinals of a dataset's samples that the rule was discovered on; None where it was discovered elsewhere."""
    if "request" not in item.provenance:
        return None
    with library.home.database.reading() as session:
        sha256 = session.get_one(Dataset, source.dataset_id).sha256
    if sha256 != item.provenance["dataset_sha256"]:
        return None
    return np.flatnonzero(split(library, source, DiscoverBody.model_validate(item.provenance["request"])).discovery)


def _other_versions(library: Library, item: RuleItem, ground: Ground) -> list[str]:
    """A sentence where the rule was discovered on other rows of the same dataset."""
    made = str(item.provenance.get("request", {}).get("dataset", "")).partition("@")[0]
    return [
        f"{s.name}@{s.version} is another version of the dataset that the rule was discovered on; some samples may be in both"
        for s in ground.datasets
        if s.name == made and discovered_on(library, item, s) is None
    ]


def _groups(library: Library, source: Source, field: str | None) -> list[tuple[str | None, Ints | None]]:
    if field is None:
        return [(None, None)]
    return [*group_samples(library, source, field).items()]


def _store(library: Library, rule: Rule, answer: EvaluateAnswer, actor: str) -> EvaluateAnswer:
    with library.home.database.writing() as session:
        row = RuleEvaluation(rule_id=rule.id, result=answer.model_dump(mode="json"), created_at=answer.created_at)
        session.add(row)
        session.flush()
        detail = {"evaluation": row.id, "datasets": [*dict.fromkeys(each.dataset for each in answer.data)]}
        audit(session, actor, "rule.evaluate", f"{rule.name}@{rule.version}", detail)
        return answer.model_copy(update={"id": row.id})
