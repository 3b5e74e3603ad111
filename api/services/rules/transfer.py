"""The transfer matrix: rules discovered on one dataset, or language, measured on all of them (paper, section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from api.services.library import Library
from api.services.rules.expressions import Bools, any_of
from api.services.rules.ground import Ground, find_ground
from api.services.rules.holding import matrix
from api.services.rules.metrics import N_BOOTSTRAP, always, f1_of, mean, measure
from api.services.rules.ranking import Chosen, Ranked, by_top1, first_best, layer_rules, rank_layers
from api.services.rules.split import Split, split
from api.services.slices import group_samples
from schema import deadline
from schema.errors import InputError
from schema.wire.discovery import (
    Candidate,
    Estimate,
    Metrics,
    TransferAnswer,
    TransferBody,
    TransferSource,
)

MOST_GROUPS = 50
TOP_N = 10


@dataclass(frozen=True)
class Group:
    """One row and column: a dataset, or the samples of it that have one value of a field."""

    name: str
    place: int
    """Of its dataset in the question."""
    split: Split
    ranked: list[Ranked]


def transfer(library: Library, body: TransferBody) -> TransferAnswer:
    """Discovers on each and measures on the held-out part of each.

    Raises:
        NotFound, Conflict, InputError: as `api.services.rules.discovery.discover`; also fewer than two groups, or too many.
    """
    with library.home.database.reading() as session:
        ground = find_ground(session, body.saes, body.datasets, body.as_of)
    groups = _groups(library, ground, body)
    every = {
        layer.sae.name: sorted(
            {int(f) for g in groups for each in g.ranked if each.sae == layer.sae.name for f in each.features}
        )
        for layer in ground.layers
    }
    fires = matrix(library, ground, every, body.pool)
    rules = [[rule for each in g.ranked for rule in _rules(each, g, fires, every, body.k)] for g in groups]
    chosen = [_choose(g, own) for g, own in zip(groups, rules, strict=True)]
    cells = [[_measured(rule, h, fires, every, body.seed) if rule else None for h in groups] for rule in chosen]
    trivial = [always(g.split.positive[g.split.held_out], body.seed) for g in groups]
    trivial_f1 = [each.f1.value or 0.0 for each in trivial]
    return TransferAnswer(
        names=[g.name for g in groups],
        discovered=[
            _source(g, rule, row, i, trivial_f1)
            for i, (g, rule, row) in enumerate(zip(groups, chosen, cells, strict=True))
        ],
        f1=_matrix(cells, "f1"),
        accuracy=_matrix(cells, "accuracy"),
        trivial_f1=trivial_f1,
        trivial_accuracy=[each.accuracy.value or 0.0 for each in trivial],
        oracle_f1=[[_oracle(own, h, fires, every) for h in groups] for own in rules],
        top_shared={layer.sae.name: _shared(groups, layer.sae.name) for layer in ground.layers},
        top_n=TOP_N,
        n_bootstrap=N_BOOTSTRAP,
        provenance=ground.provenance(body.pool),
    )


def _groups(library: Library, ground: Ground, body: TransferBody) -> list[Group]:
    if body.group_by is None:
        wanted = [(name, place, None) for place, name in enumerate(ground.names)]
    else:
        if len(ground.datasets) > 1:
            raise InputError("group_by takes one dataset; name one, or leave group_by out")
        values = group_samples(library, ground.datasets[0], body.group_by)
        wanted = [(name, 0, ordinals) for name, ordinals in values.items()]  # type: ignore[misc]
    if not 2 <= len(wanted) <= MOST_GROUPS:
        raise InputError(f"a transfer matrix compares 2 to {MOST_GROUPS} datasets or groups, not {len(wanted)}")
    groups = []
    for name, place, ordinals in wanted:
        deadline.check()
        parts = split(library, ground.datasets[place], body, ordinals)
        most = max(TOP_N, *body.k)
        groups.append(Group(name, place, parts, rank_layers(library, ground, place, parts, body.pool, most)))
    return groups


Fires = list[dict[str, Bools]]
Every = dict[str, list[int]]


def _rules(ranked: Ranked, group: Group, fires: Fires, every: Every, sizes: Sequence[int]) -> list[Chosen]:
    if not len(ranked.features):
        return []
    rows = np.searchsorted(every[ranked.sae], ranked.features)
    own = fires[group.place][ranked.sae][rows]
    return list(layer_rules(ranked, own, group.split.positive, group.split.discovery, sizes))


def _choose(group: Group, rules: Sequence[Chosen]) -> Chosen | None:
    """Of the layer with the largest d_l the k with the best F1 on the discovery part."""
    best = by_top1(group.ranked)
    return first_best([rule for rule in rules if rule.saes == [best[0].sae]]) if best else None


def _predicted(rule: Chosen, group: Group, fires: Fires, every: Every) -> Bools:
    here = fires[group.place]
    return np.logical_or.reduce([here[sae][np.searchsorted(every[sae], f)] for sae, f in rule.features])


def _measured(rule: Chosen, group: Group, fires: Fires, every: Every, seed: int) -> Metrics:
    held_out = group.split.held_out
    return measure(_predicted(rule, group, fires, every)[held_out], group.split.positive[held_out], seed)


def _oracle(rules: Sequence[Chosen], group: Group, fires: Fires, every: Every) -> float | None:
    held_out = group.split.held_out
    positive = group.split.positive[held_out]
    return max((f1_of(_predicted(rule, group, fires, every)[held_out], positive) for rule in rules), default=None)


def _source(
    group: Group, rule: Chosen | None, row: Sequence[Metrics | None], own: int, trivial: Sequence[float]
) -> TransferSource:
    others = [cell.f1.value for j, cell in enumerate(row) if j != own and cell is not None]
    here = row[own]
    return TransferSource(
        name=group.name,
        split=group.split.shape(),
        chosen=Candidate(
            saes=rule.saes,
            k=rule.k,
            m=rule.m,
            features=[f"{sae}/{f}" for sae, f in rule.features],
            expression=any_of(rule.features),
            discovery_f1=rule.discovery_f1,
            metrics=here,
            baselines=[],
        )
        if rule is not None and here is not None
        else None,
        macro_f1=mean(others),
        macro_trivial_f1=mean([value for j, value in enumerate(trivial) if j != own]),
    )


def _matrix(cells: Sequence[Sequence[Metrics | None]], name: str) -> list[list[Estimate | None]]:
    return [[getattr(cell, name) if cell is not None else None for cell in row] for row in cells]


def _shared(groups: Sequence[Group], sae: str) -> list[list[float | None]]:
    """Jaccard indices of the TOP_N lists of an SAE."""
    tops = [
        next({int(f) for f in each.features[:TOP_N]} for each in group.ranked if each.sae == sae) for group in groups
    ]
    return [[len(a & b) / len(a | b) if a | b else None for b in tops] for a in tops]
