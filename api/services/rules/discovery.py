"""Discovering a rule: the features whose firing rates differ most between two classes, layer by layer (paper, section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from api.services.library import Library
from api.services.rules.baselines import baselines_over, trained_heads, whole_layer
from api.services.rules.efficiency import efficiency_curve
from api.services.rules.expressions import Bools, any_of
from api.services.rules.ground import Ground, find_ground
from api.services.rules.holding import matrix, values
from api.services.rules.length import length_control
from api.services.rules.metrics import N_BOOTSTRAP, always, measure
from api.services.rules.ranking import (
    Chosen,
    Ranked,
    best_layer,
    layer_rules,
    multi_layer_rules,
    rank_layers,
    rate_difference,
)
from api.services.rules.split import DISCOVERY_NEGATIVE, DISCOVERY_POSITIVE, Split, split
from api.services.statistics import benjamini_hochberg, fisher_exact, rate_difference_interval
from schema.labels import best_labels
from schema.wire.discovery import (
    BaselineResult,
    Candidate,
    DiscoverAnswer,
    DiscoverBody,
    DiscoveredFeature,
    LayerDiscovery,
    Oracle,
)


@dataclass(frozen=True)
class Found:
    """Everything that a discovery's answer is made of."""

    ground: Ground
    split: Split
    ranked: list[Ranked]
    fires: dict[str, Bools]
    """SAE -> (n_features, n_samples) of its ranked features."""


def discover(library: Library, body: DiscoverBody) -> DiscoverAnswer:
    """Rules for each layer and k, the layer chosen by top1-diff, several layers, and the baselines.

    Raises:
        NotFound, Conflict: see `api.services.rules.ground.find_ground`.
        InputError: labels that cannot be split, scikit-learn missing, or nothing that tells the classes apart.
    """
    with trained_heads(body.baselines):
        with library.home.database.reading() as session:
            ground = find_ground(session, body.saes, [body.dataset], body.as_of)
        found = _find(library, ground, body)
        best = best_layer(found.ranked, body.dataset, body.pool)
        return _answer(
            library, found, best.sae, [_layer(library, found, ranked, body) for ranked in found.ranked], body
        )


def _answer(
    library: Library, found: Found, best: str, layers: list[LayerDiscovery], body: DiscoverBody
) -> DiscoverAnswer:
    source, parts = found.ground.datasets[0], found.split
    multi = multi_layer_rules(found.ranked, found.fires, parts.positive, parts.discovery, body.m)
    return DiscoverAnswer(
        dataset=f"{source.name}@{source.version}",
        label_field=body.label_field,
        positive=body.positive,
        split=parts.shape(),
        layers=layers,
        top1_diff=best,
        chosen=_chosen(next(layer for layer in layers if layer.sae == best)),
        multi_layer=[_measured(found, rule, body.seed) for rule in multi],
        trivial=always(parts.positive[parts.held_out], body.seed),
        length=length_control(library, source, parts, body.seed),
        oracle=_oracle(layers),
        efficiency=efficiency_curve(library, found.ground, parts, body) if body.efficiency else [],
        n_bootstrap=N_BOOTSTRAP,
        provenance=found.ground.provenance(body.pool, best),
    )


def _find(library: Library, ground: Ground, body: DiscoverBody) -> Found:
    parts = split(library, ground.datasets[0], body)
    ranked = rank_layers(library, ground, 0, parts, body.pool, max(body.k))
    features = {each.sae: [int(f) for f in each.features] for each in ranked}
    return Found(ground, parts, ranked, matrix(library, ground, features, body.pool)[0])


def _layer(library: Library, found: Found, ranked: Ranked, body: DiscoverBody) -> LayerDiscovery:
    layer, parts = found.ground.layer(ranked.sae), found.split
    X = values(library, found.ground, ranked.sae, [int(f) for f in ranked.features], body.pool)
    rules = []
    if len(ranked.features):
        for rule in layer_rules(ranked, found.fires[ranked.sae], parts.positive, parts.discovery, body.k):
            heads = baselines_over(X[:, : rule.k], parts, body.baselines, "chosen", body.seed)
            rules.append(_measured(found, rule, body.seed, heads))
    whole: list[BaselineResult] = []
    if body.probe_all and body.baselines:
        all_features, rows = whole_layer(library, layer.sources[0], parts, ranked.difference, body.pool)
        whole = baselines_over(all_features, parts, body.baselines, "all", body.seed, rows)
    features, n_tested = _features(library, found, ranked)
    return LayerDiscovery(
        sae=ranked.sae,
        sae_sha256=layer.sae.sha256,
        layer=layer.sae.layer,
        top1_difference=ranked.top1,
        n_tested=n_tested,
        features=features,
        rules=rules,
        all_features=whole,
    )


def _features(library: Library, found: Found, ranked: Ranked) -> tuple[list[DiscoveredFeature], int]:
    """The ranked features with their rates and tests, and how many were tested."""
    sae, parts = found.ground.layer(ranked.sae).sae, found.split
    n_positive, n_negative = int(parts.sizes[DISCOVERY_POSITIVE]), int(parts.sizes[DISCOVERY_NEGATIVE])
    x, y = (ranked.counts[part].astype(np.int64) for part in (DISCOVERY_POSITIVE, DISCOVERY_NEGATIVE))
    tested = np.flatnonzero(x + y)
    p = np.ones(len(x))
    q = np.ones(len(x))
    p[tested] = fisher_exact(x[tested], n_positive, y[tested], n_negative)
    q[tested] = benjamini_hochberg(p[tested])
    low, high = rate_difference_interval(x, n_positive, y, n_negative)
    held_out = rate_difference(ranked.counts, parts, held_out=True)
    with library.home.database.reading() as session:
        labels = best_labels(session, sae.id, [int(f) for f in ranked.features])
    return [
        DiscoveredFeature(
            feature=f"{sae.name}/{f}",
            index=f,
            label=labels[f].text if f in labels else None,
            counts={"positive": int(x[f]), "negative": int(y[f])},
            rates={"positive": int(x[f]) / n_positive, "negative": int(y[f]) / n_negative},
            difference=float(ranked.difference[f]),
            interval=(float(low[f]), float(high[f])),
            p_value=float(p[f]),
            q_value=float(q[f]),
            held_out_difference=float(held_out[f]),
        )
        for f in (int(f) for f in ranked.features)
    ], len(tested)


def _measured(found: Found, rule: Chosen, seed: int, heads: Sequence[BaselineResult] = ()) -> Candidate:
    place = {(each.sae, int(f)): i for each in found.ranked for i, f in enumerate(each.features)}
    predicted = np.logical_or.reduce([found.fires[sae][place[sae, f]] for sae, f in rule.features])
    held_out = found.split.held_out
    return Candidate(
        saes=rule.saes,
        k=rule.k,
        m=rule.m,
        features=[f"{sae}/{f}" for sae, f in rule.features],
        expression=any_of(rule.features),
        discovery_f1=rule.discovery_f1,
        metrics=measure(predicted[held_out], found.split.positive[held_out], seed),
        baselines=list(heads),
    )


def _chosen(layer: LayerDiscovery) -> Candidate:
    """The k with the best F1 on the discovery part; ties to the smaller one."""
    return max(layer.rules, key=lambda rule: (rule.discovery_f1, -(rule.k or 0)))


def _oracle(layers: Sequence[LayerDiscovery]) -> Oracle:
    rules = [rule for layer in layers for rule in layer.rules]
    best = max(rules, key=lambda rule: rule.metrics.f1.value or 0.0)
    return Oracle(sae=best.saes[0], k=best.k or 0, f1=best.metrics.f1.value or 0.0)
