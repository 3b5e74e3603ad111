"""Does a subset of a dataset rank a panel of models as the whole does?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from api.services.evaluations.model_order import LEAST_MODELS, Curve, bootstrap, kendall_tau, means, tau_curve
from api.services.evaluations.results import Panel, read_panel
from api.services.library import Library
from api.services.provenance import provenance
from api.services.suite.subset import Selection, select_subset
from schema.errors import InputError, not_found
from schema.layout import SAMPLE_BITS, sample_key
from schema.wire.evaluations import Estimate, ModelMean, PreservationAnswer, PreservationRequest, RandomTau, TauPoint

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Subset:
    """The subset asked about."""

    places: Ints
    """Among the samples that all models have scores of."""
    how: str
    selection: Selection | None = None


def rank_preservation(library: Library, request: PreservationRequest) -> PreservationAnswer:
    """Kendall's tau of a subset among random subsets of its size, and of random subsets of every size.

    Raises:
        NotFound: an unknown dataset, metric, SAE or sample.
        InputError: fewer than three models, or a subset none of whose samples are scored.
    """
    panel = read_panel(library, request.dataset, request.metric, LEAST_MODELS)
    common = panel.common
    if not len(common):
        raise InputError(f"no sample of {panel.name} has scores of all {len(panel.ids)} models under {panel.metric}")
    scores = panel.scores[:, common]
    key = ("taus", *panel.ids, request.draws, request.seed)
    curve = library.remembered(key, lambda: tau_curve(scores, request.draws, request.seed))
    subset = _subset(library, request, panel, common)
    whole, part = means(scores), means(scores, subset.places) if subset is not None else None
    tau = _tau(whole, part, request.seed) if part is not None else None
    redundancy = curve.redundancy
    return PreservationAnswer(
        dataset=panel.name,
        metric=panel.metric,
        models=_models(panel, whole, part),
        n_samples=len(common),
        n_left_out=panel.scores.shape[1] - len(common),
        subset_n=len(subset.places) if subset is not None else None,
        subset=subset.how if subset is not None else None,
        tau=tau,
        pairs_kept=None if tau is None or tau.value is None else (tau.value + 1) / 2,
        random=_random(scores, subset.places, tau, request) if subset is not None and tau is not None else None,
        curve=_points(curve),
        redundancy=float(redundancy.mean()),
        redundancy_error=float(redundancy.std(ddof=1) / np.sqrt(len(redundancy))),
        draws=request.draws,
        seed=request.seed,
        evaluations=panel.ids,
        provenance=provenance(subset.selection.subject, request.pool) if subset and subset.selection else None,
    )


def _subset(library: Library, request: PreservationRequest, panel: Panel, common: Ints) -> Subset | None:
    asked = [name for name in ("samples", "coverage", "n") if getattr(request, name) is not None]
    if len(asked) > 1:
        raise InputError(f"name one of samples, coverage and n, not {' and '.join(asked)}")
    if not asked:
        return None
    if request.samples is not None:
        ordinals, selection, how = _named(library, panel, request.samples), None, "the samples named"
    else:
        selection = select_subset(
            library, request.sae, panel.name, request.coverage, request.pool, 1, request.weights, request.n
        )
        ordinals = np.array(sorted(selection.found.ordinals))
        kept = float(selection.found.cover.covered[-1] / selection.worth.sum())
        how = f"samples that keep {kept:.1%} of the footprint of {selection.subject.sae.name} under pool {request.pool}"
    places = np.flatnonzero(np.isin(common, ordinals))
    if not len(places):
        raise InputError(f"none of the subset's {len(ordinals):,} samples has scores of all models")
    return Subset(places, how, selection)


def _named(library: Library, panel: Panel, ids: Sequence[str]) -> Ints:
    """Ordinals of the samples of these ids."""
    wanted, found = set(ids), {}
    first, stop = sample_key(panel.dataset.id), sample_key(panel.dataset.id + 1)
    for batch in library.store.span("samples", first, stop, ["key", "id"], settled=True):
        for key, id_ in zip(batch.column("key").to_pylist(), batch.column("id").to_pylist(), strict=True):
            if id_ in wanted:
                found[id_] = key & ((1 << SAMPLE_BITS) - 1)
    if len(found) < len(wanted):
        missing = next(id_ for id_ in ids if id_ not in found)
        raise not_found(f"sample of {panel.name}", missing, [], "scopebase datasets")
    return np.array(sorted(found.values()))


def _tau(whole: Floats, part: Floats, seed: int) -> Estimate:
    value = float(kendall_tau(whole, part))
    interval = bootstrap(len(whole), seed, lambda picks: kendall_tau(whole[picks], part[picks]))
    low, high = interval or (None, None)
    return Estimate(value=value, low=low, high=high, n=len(whole))


def _random(scores: Floats, places: Ints, tau: Estimate, request: PreservationRequest) -> RandomTau:
    """Random subsets of the subset's size, drawn apart from the curve's."""
    drawn = tau_curve(scores, request.draws, request.seed + 1, np.array([len(places)])).taus[:, 0]
    low, middle, high = np.quantile(drawn, [0.025, 0.5, 0.975])
    value = tau.value or 0.0
    below = (drawn < value - 1e-12).mean() + (np.abs(drawn - value) <= 1e-12).mean() / 2
    return RandomTau(
        draws=request.draws,
        seed=request.seed + 1,
        mean=float(drawn.mean()),
        quantiles=(float(low), float(middle), float(high)),
        share_below=float(below),
    )


def _models(panel: Panel, whole: Floats, part: Floats | None) -> list[ModelMean]:
    return [
        ModelMean(
            evaluated=panel.evaluated[i],
            evaluation=panel.ids[i],
            mean=float(whole[i]),
            subset_mean=float(part[i]) if part is not None else None,
        )
        for i in np.argsort(-whole, kind="stable")
    ]


def _points(curve: Curve) -> list[TauPoint]:
    low, high = np.quantile(curve.taus, [0.025, 0.975], axis=0)
    middle = curve.taus.mean(axis=0)
    return [
        TauPoint(n=int(n), tau=float(t), low=float(a), high=float(b))
        for n, t, a, b in zip(curve.sizes, middle, low, high, strict=True)
    ]
