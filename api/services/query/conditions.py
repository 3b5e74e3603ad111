"""Conditions over features as sets: each is a mask of d_sae booleans, and their algebra is that of the masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from api.services.columns import Column, Columns, check_apart
from api.services.query.comparison import compare, compare_alike, false_discovery_rate
from api.services.query.labelled import features_labelled
from schema import deadline
from schema.errors import InputError
from schema.lookup import Source
from schema.wire.query import (
    AndCondition,
    Bounds,
    CompareCondition,
    Condition,
    DatasetCondition,
    DatasetPart,
    DensityCondition,
    LabelCondition,
    LabelledCondition,
    MaximumCondition,
    NotCondition,
    OrCondition,
)

Mask = npt.NDArray[np.bool_]
MOST_CONDITIONS = 200


def leaves(condition: Condition, wanted: bool = True) -> Iterator[tuple[Condition, bool]]:
    """The conditions at the ends of the tree, each with False where it stands under an odd number of `not`."""
    if isinstance(condition, NotCondition):
        yield from leaves(condition.none_of, not wanted)
    elif isinstance(condition, AndCondition | OrCondition):
        for each in condition.all_of if isinstance(condition, AndCondition) else condition.any_of:
            yield from leaves(each, wanted)
    else:
        yield condition, wanted


def check_size(condition: Condition) -> None:
    """Raises InputError for a tree with too many ends."""
    n = sum(1 for _ in leaves(condition))
    if n > MOST_CONDITIONS:
        raise InputError(f"where: {n} conditions, at most {MOST_CONDITIONS}; ask in several questions")


def parts_of(condition: Condition) -> list[str | DatasetPart]:
    """The datasets and slices that a leaf names."""
    if isinstance(condition, DatasetCondition):
        return [DatasetPart(dataset=condition.dataset, where=condition.where, where_not=condition.where_not)]
    if isinstance(condition, CompareCondition):
        return list(condition.compare)
    if isinstance(condition, DensityCondition | MaximumCondition) and condition.dataset:
        return [condition.dataset]
    return []


def meets(condition: Condition, columns: Columns) -> Mask:
    """(d_sae,) True for the features that meet a condition.

    Raises:
        NotFound, InputError: a slice that cannot be made, or a comparison of samples with themselves.
    """
    deadline.check()
    if isinstance(condition, AndCondition):
        return np.logical_and.reduce([meets(each, columns) for each in condition.all_of])
    if isinstance(condition, OrCondition):
        return np.logical_or.reduce([meets(each, columns) for each in condition.any_of])
    if isinstance(condition, NotCondition):
        return ~meets(condition.none_of, columns)
    if isinstance(condition, DatasetCondition):
        return _fires(condition, columns)
    if isinstance(condition, CompareCondition):
        return _differs(condition, columns)
    if isinstance(condition, DensityCondition):
        return _within(density(columns, _sources(columns, condition.dataset)), condition.density)
    if isinstance(condition, MaximumCondition):
        return _within(largest(columns, _sources(columns, condition.dataset)), condition.max_activation)
    return _labelled(condition, columns)


def density(columns: Columns, sources: Sequence[Source]) -> npt.NDArray[np.float64]:
    """(d_sae,) share of the tokens of these datasets together on which each feature fires; nan where there is none."""
    counts = [columns.library.counts(source.pair) for source in sources]
    n_tokens = sum(c.n_tokens for c in counts)
    tokens = np.stack([c.tokens for c in counts]).sum(axis=0)
    return tokens / n_tokens if n_tokens else np.full(columns.d_sae, np.nan)


def largest(columns: Columns, sources: Sequence[Source]) -> npt.NDArray[np.float32]:
    """(d_sae,) each feature's largest activation in these datasets."""
    return np.max([columns.library.counts(source.pair).largest for source in sources], axis=0)


def _sources(columns: Columns, dataset: str | None) -> list[Source]:
    return columns.subject.sources if dataset is None else [columns.sources[dataset]]


def _fires(condition: DatasetCondition, columns: Columns) -> Mask:
    whole, groups = columns.part(parts_of(condition)[0]), []
    if condition.group_by:
        part = DatasetPart(dataset=condition.dataset, where=condition.where, where_not=condition.where_not)
        groups = columns.groups(part, condition.group_by)
    if condition.in_groups is None:
        return _holds(condition, whole)
    masks = [_holds(condition, group) for group in groups]
    return np.logical_or.reduce(masks) if condition.in_groups == "any" else np.logical_and.reduce(masks)


def _holds(condition: DatasetCondition, column: Column) -> Mask:
    """The bounds of a condition in one column."""
    bounds = (condition.min_rate, condition.max_rate, condition.least, condition.max_count)
    low_rate, high_rate, low, high = bounds
    if all(bound is None for bound in bounds):
        low = 1
    kept = np.ones(len(column.fires), bool)
    for values, least, most in ((column.rates, low_rate, high_rate), (column.fires, low, high)):
        if least is not None:
            kept &= values >= least
        if most is not None:
            kept &= values <= most
    return kept


def _differs(condition: CompareCondition, columns: Columns) -> Mask:
    a, b = (columns.part(part) for part in condition.compare)
    check_apart(a, b)
    plain = compare(columns.library, a, b)
    difference, ratio, q = plain.difference, plain.lift, plain.q
    if condition.length_control:
        alike = compare_alike(columns.library, a, b)
        if alike is None:
            raise InputError(f"{a.name} and {b.name} have no samples of like length; leave out length_control")
        difference, ratio, q = alike.difference, alike.lift, false_discovery_rate(alike.p, plain.tested)
    kept = _within(
        difference, Bounds.model_construct(min=condition.min_rate_difference, max=condition.max_rate_difference)
    )
    kept &= _within(ratio, Bounds.model_construct(min=condition.min_lift, max=condition.max_lift))
    return kept if condition.max_q_value is None else kept & (q <= condition.max_q_value)


def _within(values: npt.NDArray[np.floating], bounds: Bounds) -> Mask:
    """What is unknown is within no bound."""
    kept = np.ones(len(values), bool)
    if bounds.min is not None:
        kept &= values >= bounds.min
    if bounds.max is not None:
        kept &= values <= bounds.max
    return kept


def _labelled(condition: LabelCondition | LabelledCondition, columns: Columns) -> Mask:
    text = condition.label if isinstance(condition, LabelCondition) else None
    with columns.library.home.database.reading() as session:
        found = features_labelled(session, columns.subject.sae.id, text)
    mask = np.zeros(columns.d_sae, bool)
    mask[found] = True
    return mask if text is not None or condition.labelled else ~mask  # type: ignore[union-attr]
