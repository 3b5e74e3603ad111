"""Where an evaluated model fails: its scores on the samples that fire a feature, and on those that do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from api.services import firing
from api.services.cursors import read_cursor, write_cursor
from api.services.evaluations.results import Panel, read_panel
from api.services.library import Library
from api.services.provenance import provenance
from api.services.statistics import Z_95, benjamini_hochberg, fisher_exact, rank_data, rate_difference_interval
from api.services.suite.subset import sample_ids
from schema.errors import InputError, not_found
from schema.labels import best_labels
from schema.lookup import Source, Subject, find_sources, segments_of
from schema.records import Pool
from schema.wire.evaluations import FailureItem, FailuresAnswer

Direction = Literal["lower", "higher", "both"]
Order = Literal["q_value", "difference"]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
MOST_SAMPLES = 10


@dataclass(frozen=True)
class Tested:
    """Every tested feature; arrays have one entry each."""

    features: Ints
    firing: Ints
    """Scored samples that fire it."""
    mean_firing: Floats
    mean_silent: Floats
    low: Floats
    high: Floats
    p: Floats
    q: Floats

    @property
    def difference(self) -> Floats:
        return self.mean_firing - self.mean_silent


def failures(
    library: Library,
    sae: str | None,
    dataset: str,
    evaluated: str | None = None,
    metric: str | None = None,
    pool: Pool = "any",
    min_support: int = 10,
    direction: Direction = "lower",
    sort: Order = "q_value",
    limit: int = 50,
    cursor: str | None = None,
    samples: int = 2,
    as_of: int | None = None,
) -> FailuresAnswer:
    """One page of features, those first whose samples the model scores surely lower (or higher).

    Args:
        evaluated: may be left out where one model was evaluated.
        min_support: scored samples that must fire a feature, and that must not.
        samples: ids shown a feature, at most 10.

    Raises:
        NotFound, Conflict: see `find_sources` and `read_panel`.
        InputError: a number out of range.
    """
    _check(min_support, direction, sort, samples)
    offset, snapshot = read_cursor(cursor)
    with library.home.database.reading() as session:
        subject = find_sources(session, sae, [dataset], as_of or snapshot)
        segments = segments_of(session, subject.sources[0].pair)
    source = subject.sources[0]
    panel, row = _one(read_panel(library, source.dataset_id, metric), evaluated)
    scores = panel.scores[row]
    known = scores[np.isfinite(scores)]
    binary = bool(np.isin(known, (0.0, 1.0)).all())
    key = ("failures", source.pair, panel.ids[row], pool, min_support)
    tested = library.remembered(key, lambda: _test(library, subject, pool, scores, binary, min_support))
    order = _order(tested, direction, sort)
    page = order[offset : offset + limit]
    shown = [int(f) for f in tested.features[page]]
    lowest = _lowest(library, source, firing.postings(library.store, segments, shown, pool), scores, samples)
    with library.home.database.reading() as session:
        labels = {feature: label.text for feature, label in best_labels(session, subject.sae.id, shown).items()}
    return FailuresAnswer(
        data=[_item(subject, tested, int(i), len(known), labels, lowest) for i in page],
        next_cursor=write_cursor(offset + limit, subject.snapshot) if offset + limit < len(order) else None,
        total=len(order),
        n_tested=len(tested.features),
        n_scored=len(known),
        min_support=min_support,
        mean=float(known.mean()),
        test="fisher" if binary else "mann-whitney",
        evaluated=panel.evaluated[row],
        metric=panel.metric,
        evaluation=panel.ids[row],
        direction=direction,
        sort=sort,
        provenance=provenance(subject, pool),
    )


def _check(min_support: int, direction: str, sort: str, samples: int) -> None:
    if min_support < 1:
        raise InputError(f"min_support={min_support}: at least 1")
    for name, value, allowed in (("direction", direction, get_args(Direction)), ("sort", sort, get_args(Order))):
        if value not in allowed:
            raise InputError(f"{name}={value!r}: one of {', '.join(allowed)}")
    if not 0 <= samples <= MOST_SAMPLES:
        raise InputError(f"samples={samples}: from 0 to {MOST_SAMPLES}")


def _one(panel: Panel, evaluated: str | None) -> tuple[Panel, int]:
    """The panel's row of one model."""
    if evaluated is None and len(panel.evaluated) > 1:
        shown = ", ".join(panel.evaluated[:6]) + (", ..." if len(panel.evaluated) > 6 else "")
        raise InputError(f"name the evaluated model: {shown}")
    if evaluated is not None and evaluated not in panel.evaluated:
        raise not_found(f"model evaluated on {panel.name}", evaluated, panel.evaluated, "scopebase evaluation list")
    return panel, 0 if evaluated is None else panel.evaluated.index(evaluated)


def _test(library: Library, subject: Subject, pool: Pool, scores: Floats, binary: bool, min_support: int) -> Tested:
    """One pass over the samples: per feature how many fire it, their scores, squared scores and ranks."""
    d_sae = subject.sae.d_sae
    known = np.isfinite(scores)
    ranks = np.zeros(len(scores))
    ranks[known] = rank_data(scores[known])
    filled = np.where(known, scores, 0.0)
    values = np.stack([known.astype(np.float64), filled, filled**2, ranks])
    sums = np.zeros((len(values), d_sae))
    for block in firing.scan(library.store, subject.sources[0].pair, pool):
        sample = np.repeat(block.ordinals, np.diff(block.offsets))
        for total, value in zip(sums, values, strict=True):
            total += np.bincount(block.features, value[sample], minlength=d_sae)
    n = int(known.sum())
    fires = sums[0].round().astype(np.int64)
    features = np.flatnonzero((fires >= min_support) & (n - fires >= min_support))
    whole = values.sum(axis=1)
    of_firing, m = sums[:, features], fires[features]
    one, two = of_firing[1] / m, (whole[1] - of_firing[1]) / (n - m)
    if binary:
        p, low, high = _binary(of_firing[1].round().astype(np.int64), m, int(whole[1].round()), n)
    else:
        p = _mann_whitney(of_firing[3], m, n, scores[known])
        low, high = _welch(of_firing, whole, m, n)
    return Tested(features, m, one, two, low, high, p, benjamini_hochberg(p))


def _binary(right: Ints, fires: Ints, n_right: int, n: int) -> tuple[Floats, Floats, Floats]:
    """Fisher's exact test reads the same table by column: right and wrong samples, firing or not."""
    p = fisher_exact(right, n_right, fires - right, n - n_right)
    return p, *rate_difference_interval(right, fires, n_right - right, n - fires)


def _mann_whitney(rank_sums: Floats, fires: Ints, n: int, scores: Floats) -> Floats:
    """Two-sided p-values by the normal approximation, with the corrections for ties and continuity (as scipy's `asymptotic`)."""
    ties = np.unique(scores, return_counts=True)[1].astype(np.float64)
    u = rank_sums - fires * (fires + 1) / 2
    spread = fires * (n - fires) / 12.0 * (n + 1 - (ties**3 - ties).sum() / (n * (n - 1)))
    away = np.maximum(np.abs(u - fires * (n - fires) / 2.0) - 0.5, 0.0)
    z = np.divide(away, np.sqrt(spread), out=np.zeros(len(u)), where=spread > 0)
    return np.asarray(np.minimum(2.0 * ndtr(-z), 1.0))


def _welch(of_firing: Floats, whole: Floats, fires: Ints, n: int) -> tuple[Floats, Floats]:
    """95 % interval of the difference of means, unequal variances, by the normal quantile."""
    one, two = of_firing[1] / fires, (whole[1] - of_firing[1]) / (n - fires)
    var_one = np.maximum(of_firing[2] / fires - one**2, 0.0) / np.maximum(fires - 1, 1)
    var_two = np.maximum((whole[2] - of_firing[2]) / (n - fires) - two**2, 0.0) / np.maximum(n - fires - 1, 1)
    half = Z_95 * np.sqrt(var_one + var_two)
    return one - two - half, one - two + half


def _order(tested: Tested, direction: Direction, sort: Order) -> Ints:
    """Places of the tested features that go in the direction, best first."""
    difference = tested.difference
    kept = {"lower": difference < 0, "higher": difference > 0, "both": np.ones(len(difference), bool)}[direction]
    away = -difference if direction == "lower" else np.abs(difference)
    keys: dict[str, Any] = {
        "q_value": (tested.features, -away, tested.p),
        "difference": (tested.features, tested.p, -away),
    }
    order = np.lexsort(keys[sort])
    return order[kept[order]]


def _lowest(
    library: Library, source: Source, found: dict[int, firing.Posting], scores: Floats, n: int
) -> dict[int, list[str]]:
    """Feature -> ids of the lowest-scored samples that fire it, the strongest first among equals."""
    chosen: dict[int, list[int]] = {}
    for feature, posting in found.items():
        known = np.isfinite(scores[posting.ordinals])
        ordinals, codes = posting.ordinals[known], posting.codes[known].astype(np.int64)
        best = np.lexsort((ordinals, -codes, scores[ordinals]))[:n]
        chosen[feature] = [int(ordinal) for ordinal in ordinals[best]]
    every = sorted({ordinal for ordinals in chosen.values() for ordinal in ordinals})
    ids = dict(zip(every, sample_ids(library, source, every), strict=True))
    return {feature: [ids[ordinal] for ordinal in ordinals] for feature, ordinals in chosen.items()}


def _item(
    subject: Subject, tested: Tested, i: int, n: int, labels: dict[int, str], lowest: dict[int, list[str]]
) -> FailureItem:
    feature = int(tested.features[i])
    return FailureItem(
        feature=f"{subject.sae.name}/{feature}",
        index=feature,
        label=labels.get(feature),
        n_firing=int(tested.firing[i]),
        n_silent=n - int(tested.firing[i]),
        mean_firing=float(tested.mean_firing[i]),
        mean_silent=float(tested.mean_silent[i]),
        difference=float(tested.difference[i]),
        interval=(float(tested.low[i]), float(tested.high[i])),
        p_value=float(tested.p[i]),
        q_value=float(tested.q[i]),
        samples=lowest.get(feature, []),
    )
