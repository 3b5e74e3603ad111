"""What features tell of performance: redundancy of datasets, and similarity of pairs of them (Qwen-Scope, sections 4.2 to 4.4)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from api.services.evaluations.model_order import LEAST_MODELS, RESAMPLES, bootstrap, means, tau_curve
from api.services.evaluations.results import Panel, read_panel
from api.services.library import Library
from api.services.provenance import provenance
from api.services.statistics import Z_95, rank_data, redundancy
from schema.errors import InputError
from schema.lookup import Subject, find_dataset, find_sources
from schema.records import Pool
from schema.wire.evaluations import Estimate, PairItem, PerformanceAnswer, PerformanceItem, SimilarityAnswer

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Correlation = Callable[[Floats, Floats], float]


def performance_redundancy(
    library: Library,
    sae: str | None,
    datasets: Sequence[str],
    metric: str | None = None,
    pool: Pool = "any",
    draws: int = 200,
    seed: int = 0,
    as_of: int | None = None,
) -> PerformanceAnswer:
    """R of each dataset beside its feature redundancy, and how they go together over the datasets.

    Raises:
        NotFound, Conflict: see `find_sources` and `read_panel`.
        InputError: fewer than three datasets, or one with fewer than three models.
    """
    subject, panels = _panels(library, sae, datasets, metric, as_of, 3)
    items = [_redundancies(library, subject, i, panel, pool, draws, seed) for i, panel in enumerate(panels)]
    return PerformanceAnswer(
        data=items,
        correlations=_over_datasets(items),
        interval="Fisher's z over the datasets, with variance 1.06 / (n - 3) for Spearman's; one less for a partial correlation",
        metric=panels[0].metric,
        draws=draws,
        seed=seed,
        provenance=provenance(subject, pool),
    )


def _panels(
    library: Library, sae: str | None, datasets: Sequence[str], metric: str | None, as_of: int | None, least: int
) -> tuple[Subject, list[Panel]]:
    wanted = list(dict.fromkeys(datasets))
    with library.home.database.reading() as session:
        subject = find_sources(session, sae, wanted, as_of)
    if len({source.dataset_id for source in subject.sources}) < least or len(wanted) < least:
        raise InputError(f"name at least {least} datasets to compare")
    panels = [read_panel(library, source.dataset_id, metric, LEAST_MODELS) for source in subject.sources]
    if len(metrics := {panel.metric for panel in panels}) > 1:
        raise InputError(
            f"the datasets were evaluated under different metrics ({', '.join(sorted(metrics))}); name one"
        )
    return subject, panels


def _redundancies(
    library: Library, subject: Subject, i: int, panel: Panel, pool: Pool, draws: int, seed: int
) -> PerformanceItem:
    common = panel.common
    if not len(common):
        raise InputError(f"no sample of {panel.name} has scores of all its {len(panel.ids)} models")
    curve = library.remembered(
        ("taus", *panel.ids, draws, seed), lambda: tau_curve(panel.scores[:, common], draws, seed)
    )
    each = curve.redundancy
    counts = library.counts(subject.sources[i].pair)
    size = int((counts.samples(pool) > 0).sum())
    return PerformanceItem(
        dataset=subject.names[i],
        n_samples=counts.n_samples,
        n_models=len(panel.ids),
        n_features=size,
        performance_redundancy=float(each.mean()),
        performance_error=float(each.std(ddof=1) / np.sqrt(len(each))),
        feature_redundancy=redundancy(counts.samples(pool), counts.n_samples),
        baseline_n=counts.n_samples,
        baseline_n_over_f=counts.n_samples / size if size else None,
    )


def _over_datasets(items: Sequence[PerformanceItem]) -> dict[str, Estimate]:
    kept = [item for item in items if item.feature_redundancy]
    r = np.array([item.performance_redundancy for item in kept])
    feature = np.array([item.feature_redundancy for item in kept], float)
    n = np.array([item.baseline_n for item in kept], float)
    over = np.array([item.baseline_n_over_f for item in kept], float)
    ranks = [rank_data(values) for values in (r, feature, n)]
    return {
        "spearman": fisher(spearman(r, feature), len(kept), spread=1.06),
        "pearson_log": fisher(pearson(r, np.log(feature)), len(kept)),
        "spearman_n": fisher(spearman(r, n), len(kept), spread=1.06),
        "spearman_n_over_f": fisher(spearman(r, over), len(kept), spread=1.06),
        "partial_spearman": fisher(partial(*ranks), len(kept), 1, 1.06),
        "partial_pearson": fisher(partial(r, np.log(feature), np.log(n)), len(kept), 1),
    }


def pearson(x: Floats, y: Floats) -> float:
    """NaN where either does not vary, or has fewer than 3 values."""
    if len(x) < 3 or np.ptp(x) < 1e-12 or np.ptp(y) < 1e-12:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def spearman(x: Floats, y: Floats) -> float:
    return pearson(rank_data(x), rank_data(y))


def partial(x: Floats, y: Floats, control: Floats) -> float:
    """Correlation of x and y given a control: (r_xy - r_xc r_yc) / sqrt((1 - r_xc^2)(1 - r_yc^2))."""
    xy, xc, yc = pearson(x, y), pearson(x, control), pearson(y, control)
    left = (1 - xc**2) * (1 - yc**2)
    return (xy - xc * yc) / np.sqrt(left) if left > 1e-12 else float("nan")


def fisher(value: float, n: int, controls: int = 0, spread: float = 1.0) -> Estimate:
    """A correlation with the 95 % interval of Fisher's z, and the two-sided p-value of none."""
    if np.isnan(value):
        return Estimate(value=None, n=n)
    freedom = n - 3 - controls
    if freedom < 1 or abs(value) >= 1 - 1e-12:
        return Estimate(value=value, n=n)
    z, error = np.arctanh(value), np.sqrt(spread / freedom)
    return Estimate(
        value=value,
        low=float(np.tanh(z - Z_95 * error)),
        high=float(np.tanh(z + Z_95 * error)),
        n=n,
        p_value=float(2 * ndtr(-abs(z) / error)),
    )


def performance_similarity(
    library: Library,
    sae: str | None,
    datasets: Sequence[str],
    metric: str | None = None,
    control: str | None = None,
    pool: Pool = "any",
    min_samples: int = 1,
    seed: int = 0,
    as_of: int | None = None,
) -> SimilarityAnswer:
    """For each pair of datasets the shared features and the correlation of the models' means; and how the two go together.

    Args:
        control: a dataset whose means are held fixed, such as a general one.

    Raises:
        NotFound, Conflict: see `find_sources` and `read_panel`.
        InputError: fewer than three datasets, or fewer than four models that all of them have.
    """
    fixed = read_panel(library, control, metric, LEAST_MODELS) if control is not None else None
    with library.home.database.reading() as session:
        others = [name for name in datasets if fixed is None or find_dataset(session, name).id != fixed.dataset.id]
    subject, panels = _panels(library, sae, others, fixed.metric if fixed is not None else metric, as_of, 3)
    models, table = _table(panels if fixed is None else [*panels, fixed])
    given = table[-1] if fixed is not None else None
    table = table[: len(panels)]
    library.expect(source.pair for source in subject.sources)
    prints = np.stack([library.counts(s.pair).footprint(pool, min_samples) for s in subject.sources]).astype(np.float64)
    sizes = prints.sum(axis=1)
    smaller = np.minimum(sizes[:, None], sizes[None, :])
    shared = np.divide(prints @ prints.T, smaller, out=np.full(smaller.shape, np.nan), where=smaller > 0)
    pairs = list(itertools.combinations(range(len(panels)), 2))
    return SimilarityAnswer(
        data=[_pair(subject.names, i, j, shared, table, given) for i, j in pairs],
        correlations=_over_pairs(shared, table, given, seed),
        interval="percentile bootstrap over the models; the datasets are taken as given",
        models=models,
        control=fixed.name if fixed is not None else None,
        metric=panels[0].metric,
        seed=seed,
        resamples=RESAMPLES,
        provenance=provenance(subject, pool),
    )


def _table(panels: Sequence[Panel]) -> tuple[list[str], Floats]:
    """The models that all panels have, and (n_datasets, n_models) their means."""
    shared = sorted(set.intersection(*(set(panel.evaluated) for panel in panels)))
    if len(shared) < 4:
        raise InputError(f"only {len(shared)} models are evaluated on all of these datasets; this needs at least 4")
    rows = []
    for panel in panels:
        scores = panel.scores[[panel.evaluated.index(name) for name in shared]]
        kept = np.flatnonzero(np.isfinite(scores).all(axis=0))
        if not len(kept):
            raise InputError(f"no sample of {panel.name} has scores of all {len(shared)} models")
        rows.append(means(scores, kept))
    return shared, np.stack(rows)


def _pair(names: list[str], i: int, j: int, shared: Floats, table: Floats, given: Floats | None) -> PairItem:
    n = table.shape[1]
    return PairItem(
        datasets=(names[i], names[j]),
        overlap_min=None if np.isnan(shared[i, j]) else float(shared[i, j]),
        similarity=fisher(pearson(table[i], table[j]), n),
        partial=None if given is None else fisher(partial(table[i], table[j], given), n, 1),
    )


def _similarities(table: Floats, given: Floats | None) -> Floats:
    """(n_datasets, n_datasets) correlation of means, given the control if there is one; NaN where it is not defined."""
    with np.errstate(invalid="ignore", divide="ignore"):
        if given is None:
            return np.asarray(np.corrcoef(table))
        whole = np.corrcoef(np.vstack([table, given]))
        r, c = whole[:-1, :-1], whole[:-1, -1]
        return np.asarray((r - np.outer(c, c)) / np.sqrt(np.outer(1 - c**2, 1 - c**2)))


def _over_pairs(shared: Floats, table: Floats, given: Floats | None, seed: int) -> dict[str, Estimate]:
    kinds: list[tuple[str, Floats | None]] = [("", None)]
    if given is not None:
        kinds.append(("partial_", given))
    ways: list[tuple[str, Correlation]] = [("pearson", pearson), ("spearman", spearman)]
    return {
        prefix + name: _over_pairs_one(shared, table, fixed, way, seed) for prefix, fixed in kinds for name, way in ways
    }


def _over_pairs_one(shared: Floats, table: Floats, given: Floats | None, way: Correlation, seed: int) -> Estimate:
    upper = np.triu_indices(len(table), 1)
    known = np.isfinite(shared[upper])

    def correlation(similar: Floats) -> float:
        x, y = shared[upper][known], similar[upper][known]
        return way(x, y) if np.isfinite(y).all() else float("nan")

    similar = _similarities(table, given)
    value = correlation(similar)
    if np.isnan(value):
        return Estimate(value=None, n=int(known.sum()))

    def resampled(picks: Ints) -> Floats:
        return np.array([correlation(_similarities(table[:, p], None if given is None else given[p])) for p in picks])

    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(table)) for _ in range(RESAMPLES)]
    null = np.array([correlation(similar[np.ix_(order, order)]) for order in orders])
    p = (1 + int((np.abs(null) >= abs(value) - 1e-12).sum())) / (1 + len(orders))
    low, high = bootstrap(table.shape[1], seed, resampled) or (None, None)
    return Estimate(value=value, low=low, high=high, n=int(known.sum()), p_value=p)
