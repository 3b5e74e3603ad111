"""Which features meet a condition over datasets, slices, labels and comparisons: ranked, with counts and tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from sqlalchemy.orm import Session

from api.services.columns import Column, Columns
from api.services.cursors import read_cursor, write_cursor
from api.services.evidence import common_tokens
from api.services.library import Library
from api.services.provenance import provenance
from api.services.query.conditions import check_size, leaves, meets, parts_of
from api.services.query.length import METHOD
from api.services.query.ranking import Ranking, check_sort, order_of, rank
from api.services.questions.grounds import Ground, shown_on
from api.services.slices import check_fields
from schema.lab import Label
from schema.labels import best_labels, shown_label
from schema.lookup import Source, find_all_sources, find_sources
from schema.tables import Dataset
from schema.wire.query import (
    Comparison,
    ControlledItem,
    DatasetPart,
    FeatureItem,
    FeatureQuery,
    FeatureQueryAnswer,
    LengthControl,
    QueryColumn,
)
from schema.wire.questions import SampleProof


def query_features(library: Library, question: FeatureQuery) -> FeatureQueryAnswer:
    """One page of the features that meet `question.where`.

    The order of all features at a snapshot does not depend on labels or on `where`, and a cursor is a place in that order. So pages
    neither repeat nor skip a feature while runs are added or labels change.

    Raises:
        NotFound, Conflict: see `schema.lookup.find_sources`.
        InputError: a question that cannot be answered, such as a sort by something that is not computed.
    """
    check_size(question.where)
    offset, snapshot = read_cursor(question.cursor)
    with library.home.database.reading() as session:
        columns = _columns(session, library, question, question.as_of or snapshot)
    mask = meets(question.where, columns)
    ranking = rank(columns, question)
    sort = check_sort(question, ranking)
    order = order_of(ranking, sort, question.reverse)
    kept = np.flatnonzero(mask[order])
    page = kept[np.searchsorted(kept, offset) :][: question.limit]
    features = [int(feature) for feature in order[page]]
    with library.home.database.reading() as session:
        labels = best_labels(session, columns.subject.sae.id, features)
    shown = _proofs(columns, ranking, question, features) if question.include else {}
    never = ~np.any([column.fires > 0 for column in columns], axis=0)
    more = len(page) and page[-1] < kept[-1]
    return FeatureQueryAnswer(
        data=[_item(columns, ranking, f, labels.get(f), shown.get(f, [])) for f in features],
        next_cursor=write_cursor(int(page[-1]) + 1, columns.subject.snapshot) if more else None,
        total=len(kept),
        total_never_fire=int((mask & never).sum()),
        d_sae=columns.d_sae,
        n_never_fire=int(never.sum()),
        columns=[_column(column) for column in columns],
        comparison=_comparison(ranking),
        sort=sort,
        provenance=provenance(columns.subject, question.pool),
    )


def _columns(session: Session, library: Library, question: FeatureQuery, as_of: int | None) -> Columns:
    """The datasets that the question names, or else all; and what is shown of them."""
    parts = [part for leaf, _ in leaves(question.where) for part in parts_of(leaf)]
    parts += [*(question.compare or ()), *question.datasets]
    names = [*dict.fromkeys(part if isinstance(part, str) else part.dataset for part in parts)]
    if names:
        found = find_sources(session, question.sae, names, as_of)
    else:
        found, _ = find_all_sources(session, question.sae, as_of)
        names = [source.name for source in found.sources]
    by_name = dict(zip(names, found.sources, strict=True))
    once = list({source.pair: source for source in found.sources}.values())
    columns = Columns(library, replace(found, sources=once), by_name, question.pool)
    for part in parts or names:
        columns.part(part)
    if question.group_by:
        for source in _with_field(session, once, question.group_by):
            columns.groups(DatasetPart(dataset=next(n for n in names if by_name[n] == source)), question.group_by)
    return columns


def _with_field(session: Session, sources: Sequence[Source], field: str) -> list[Source]:
    """The datasets whose samples have a field.

    Raises:
        NotFound: none of them has it.
    """
    found = [s for s in sources if field in session.get_one(Dataset, s.dataset_id).fields]
    if not found:
        check_fields(session, sources[0], [field])
    return found


def _proofs(
    columns: Columns, ranking: Ranking, question: FeatureQuery, features: Sequence[int]
) -> dict[int, list[SampleProof]]:
    """Each feature's samples, of A where they fire it, else of the column where it fires most often."""
    grounds = [
        Ground(c.source, c.rates[list(features)], preferred=c.key == ranking.a.key, within=c.ordinals) for c in columns
    ]
    return shown_on(columns.library, grounds, features, question.pool, question.samples)


def _item(
    columns: Columns, ranking: Ranking, feature: int, label: Label | None, samples: list[SampleProof]
) -> FeatureItem:
    plain = ranking.plain
    density = float(ranking.density[feature])
    return FeatureItem(
        feature=f"{columns.subject.sae.name}/{feature}",
        index=feature,
        **shown_label(label),
        counts={column.name: int(column.fires[feature]) for column in columns},
        rates={column.name: int(column.fires[feature]) / column.n_samples for column in columns},
        density=None if np.isnan(density) else density,
        max_activation=float(ranking.largest[feature]),
        lift=None if plain is None else float(plain.lift[feature]),
        lift_interval=None if plain is None else (float(plain.lift_low[feature]), float(plain.lift_high[feature])),
        rate_difference=None if plain is None else float(plain.difference[feature]),
        interval=None if plain is None else (float(plain.low[feature]), float(plain.high[feature])),
        p_value=None if plain is None else float(plain.p[feature]),
        q_value=None if plain is None else float(plain.q[feature]),
        weight=float(ranking.weight[feature]),
        controlled=_controlled(ranking, feature),
        firing_tokens=common_tokens(samples),
        samples=samples,
    )


def _controlled(ranking: Ranking, feature: int) -> ControlledItem | None:
    alike = ranking.alike
    if alike is None or ranking.alike_q is None:
        return None
    ratio = float(alike.lift[feature])
    return ControlledItem(
        rate_difference=float(alike.difference[feature]),
        interval=(float(alike.low[feature]), float(alike.high[feature])),
        lift=None if np.isnan(ratio) else ratio,
        p_value=float(alike.p[feature]),
        q_value=float(ranking.alike_q[feature]),
    )


def _comparison(ranking: Ranking) -> Comparison | None:
    if ranking.b is None or ranking.plain is None:
        return None
    alike = ranking.alike
    return Comparison(
        a=ranking.a.name,
        b=ranking.b.name,
        n_tested=int(ranking.plain.tested.sum()),
        length_control=None
        if alike is None
        else LengthControl(method=METHOD, bands=alike.bands, n_a=alike.n_a, n_b=alike.n_b),
    )


def _column(column: Column) -> QueryColumn:
    return QueryColumn(
        name=column.name,
        dataset=column.source.name,
        version=column.source.version,
        where=dict(column.where),
        where_not=dict(column.where_not),
        n_samples=column.n_samples,
        n_features=int((column.fires > 0).sum()),
    )
