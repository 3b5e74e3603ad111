"""Which datasets of a suite the others cover, and in what order to drop them."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from api.services.columns import Column, Columns, check_apart, columns_of
from api.services.library import Library
from api.services.provenance import count_in, provenance
from api.services.statistics import inclusion
from schema import deadline
from schema.errors import InputError
from schema.wire.suite import SuiteAnswer, SuiteDrop, SuiteItem, SuiteRequest

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


def advise(library: Library, request: SuiteRequest) -> SuiteAnswer:
    """What each dataset adds to the others, and the order in which dropping them loses least.

    Raises:
        NotFound, Conflict: see `schema.lookup.find_sources`.
        InputError: fewer than two datasets, or none of them fires anything.
    """
    pool, least = request.pool, request.min_samples
    columns, members = _members(library, request)
    footprints = np.stack([member.fires >= least for member in members])
    union = int(footprints.any(axis=0).sum())
    if not union:
        raise InputError(f"no feature fires in {least} samples of any of these datasets")
    n = min(member.n_samples for member in members)
    chances = np.stack([inclusion(member.fires, member.n_samples, n, least) for member in members])
    some_other = _some_other(chances)
    order, keep = _drops(footprints, members)
    return SuiteAnswer(
        data=[_item(i, members, footprints, chances, some_other[i], request.low) for i in range(len(members))],
        drops=_steps(order, footprints, members),
        keep=members[keep].name,
        n_features=union,
        n_samples=sum(member.n_samples for member in members),
        rarefied_n=n,
        low=request.low,
        min_samples=least,
        provenance=provenance(columns.subject, pool),
    )


def _members(library: Library, request: SuiteRequest) -> tuple[Columns, list[Column]]:
    """The datasets and slices of the suite. No two share samples: each would cover the other by being it."""
    wanted = list({repr(part): part for part in request.datasets}.values())
    if len(wanted) < 2:
        raise InputError("name at least two datasets of the suite")
    columns, members = columns_of(library, request.sae, wanted, request.pool, request.as_of)
    if len({member.key for member in members}) < len(members):
        raise InputError("the suite names the same run of a dataset twice; name each once")
    for a, b in itertools.combinations(members, 2):
        check_apart(a, b)
    return columns, members


def _item(
    i: int, members: list[Column], footprints: Bools, chances: Floats, some_other: Floats, low: float
) -> SuiteItem:
    """Directed: shares of dataset i's footprint."""
    others = np.arange(len(members)) != i
    size = int(footprints[i].sum())
    shared = int((footprints[i] & footprints[others].any(axis=0)).sum())
    drawn = float(chances[i].sum())
    single = np.where(others, chances @ chances[i], -1.0)
    nearest = int(single.argmax())
    share = float(single[nearest]) / drawn if drawn else None
    return SuiteItem(
        dataset=count_in(members[i], size),
        covered=shared / size if size else None,
        n_unique=size - shared,
        covered_rarefied=float(chances[i] @ some_other) / drawn if drawn else None,
        self_rarefied=float(chances[i] @ chances[i]) / drawn if drawn else None,
        nearest=members[nearest].name if share else None,
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


def _drops(footprints: Bools, members: list[Column]) -> tuple[list[tuple[int, int]], int]:
    """(dataset, features that go with it) in the order of least loss, and the dataset that remains.

    Of equal losses the dataset with more samples goes first: that saves most.
    """
    left = list(range(len(members)))
    holders = footprints.sum(axis=0)
    order = []
    while len(left) > 1:
        deadline.check()
        lost = {i: int((footprints[i] & (holders == 1)).sum()) for i in left}
        goes = min(left, key=lambda i: (lost[i], -members[i].n_samples, i))
        holders = holders - footprints[goes]
        order.append((goes, lost[goes]))
        left.remove(goes)
    return order, left[0]


def _steps(order: list[tuple[int, int]], footprints: Bools, members: list[Column]) -> list[SuiteDrop]:
    holders = footprints.sum(axis=0)
    held = holders[holders > 0]
    union, remaining, n_samples = len(held), len(held), sum(member.n_samples for member in members)
    steps = []
    for gone, (i, lost) in enumerate(order, start=1):
        remaining -= lost
        n_samples -= members[i].n_samples
        by_chance = float(inclusion(held, len(members), len(members) - gone).mean())
        steps.append(
            SuiteDrop(
                dataset=members[i].name,
                lost=lost,
                coverage=remaining / union,
                random_coverage=by_chance,
                n_samples=n_samples,
            )
        )
    return steps
