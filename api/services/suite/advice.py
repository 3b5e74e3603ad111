"""Which datasets of a suite the others cover, and in what order to drop them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from api.services.library import Library
from api.services.provenance import count_of, provenance
from api.services.statistics import inclusion
from schema.errors import InputError
from schema.lookup import Source, find_sources
from schema.wire.suite import SuiteAnswer, SuiteDrop, SuiteItem, SuiteRequest

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


def advise(library: Library, request: SuiteRequest) -> SuiteAnswer:
    """What each dataset adds to the others, and the order in which dropping them loses least.

    Raises:
        NotFound, Conflict: see `schema.lookup.find_sources`.
        InputError: fewer than two datasets, or none of them fires anything.
    """
    wanted = list(dict.fromkeys(request.datasets))
    if len(wanted) < 2:
        raise InputError("name at least two datasets of the suite")
    with library.home.database.reading() as session:
        subject = find_sources(session, request.sae, wanted, request.as_of)
    if len({source.pair for source in subject.sources}) < len(wanted):
        raise InputError("the suite names the same run of a dataset twice; name each once")
    pool, least = request.pool, request.min_samples
    counts = [library.counts(source.pair) for source in subject.sources]
    footprints = np.stack([c.footprint(pool, least) for c in counts])
    union = int(footprints.any(axis=0).sum())
    if not union:
        raise InputError(f"no feature fires in {least} samples of any of these datasets")
    n = min(c.n_samples for c in counts)
    chances = np.stack([inclusion(c.samples(pool), c.n_samples, n, least) for c in counts])
    names = subject.names
    some_other = _some_other(chances)
    order, keep = _drops(footprints, subject.sources)
    return SuiteAnswer(
        data=[
            _item(i, subject.sources, names, footprints, chances, some_other[i], request.low)
            for i in range(len(counts))
        ],
        drops=_steps(order, footprints, subject.sources, names),
        keep=names[keep],
        n_features=union,
        n_samples=sum(c.n_samples for c in counts),
        rarefied_n=n,
        low=request.low,
        min_samples=least,
        provenance=provenance(subject, pool),
    )


def _item(
    i: int,
    sources: list[Source],
    names: list[str],
    footprints: Bools,
    chances: Floats,
    some_other: Floats,
    low: float,
) -> SuiteItem:
    """Directed: shares of dataset i's footprint."""
    others = np.arange(len(sources)) != i
    size = int(footprints[i].sum())
    shared = int((footprints[i] & footprints[others].any(axis=0)).sum())
    drawn = float(chances[i].sum())
    single = np.where(others, chances @ chances[i], -1.0)
    nearest = int(single.argmax())
    share = float(single[nearest]) / drawn if drawn else None
    return SuiteItem(
        dataset=count_of(sources[i], size),
        covered=shared / size if size else None,
        n_unique=size - shared,
        covered_rarefied=float(chances[i] @ some_other) / drawn if drawn else None,
        self_rarefied=float(chances[i] @ chances[i]) / drawn if drawn else None,
        nearest=names[nearest] if share else None,
        nearest_rarefied=share,
        apart=share is not None and share < low,
    )


def _some_other(chances: Floats) -> Floats:
    """(n_datasets, d_sae) chance that a draw of any other dataset fires a feature: 1 - the product of 1 - p_j over the others."""
    none = np.ones((len(chances) + 1, chances.shape[1]))
    before, after = none.copy(), none.copy()
    np.cumprod(1.0 - chances, axis=0, out=before[1:])
    np.cumprod((1.0 - chances)[::-1], axis=0, out=after[1:])
    return np.asarray(1.0 - before[:-1] * after[::-1][1:])


def _drops(footprints: Bools, sources: list[Source]) -> tuple[list[tuple[int, int]], int]:
    """(dataset, features that go with it) in the order of least loss, and the dataset that remains.

    Of equal losses the dataset with more samples goes first: that saves most.
    """
    left = list(range(len(sources)))
    holders = footprints.sum(axis=0)
    order = []
    while len(left) > 1:
        lost = {i: int((footprints[i] & (holders == 1)).sum()) for i in left}
        goes = min(left, key=lambda i: (lost[i], -sources[i].n_samples, i))
        holders = holders - footprints[goes]
        order.append((goes, lost[goes]))
        left.remove(goes)
    return order, left[0]


def _steps(order: list[tuple[int, int]], footprints: Bools, sources: list[Source], names: list[str]) -> list[SuiteDrop]:
    holders = footprints.sum(axis=0)
    held = holders[holders > 0]
    union, remaining, n_samples = len(held), len(held), sum(source.n_samples for source in sources)
    steps = []
    for gone, (i, lost) in enumerate(order, start=1):
        remaining -= lost
        n_samples -= sources[i].n_samples
        by_chance = float(inclusion(held, len(sources), len(sources) - gone).mean())
        steps.append(
            SuiteDrop(
                dataset=names[i], lost=lost, coverage=remaining / union, random_coverage=by_chance, n_samples=n_samples
            )
        )
    return steps
