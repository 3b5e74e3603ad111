"""Few samples that together fire most of what all of them fire: lazy greedy, and how far from the optimum it can be.

Maximum coverage and set cover are NP-hard; greedy is the best that is known to be fast (Feige 1998). Its order is that of CELF
(Leskovec et al. 2007): a gain can only fall, so an old one is an upper bound, and only the head of the queue is computed again.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from schema import deadline

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

STALE_SHARE = 8
"""Once a step has looked again at one in so many samples, one pass over all is cheaper."""
STATES = 16
"""Steps of the greedy order at which bounds are computed, each a pass over all samples."""


@dataclass(frozen=True)
class Fired:
    """Which features each sample fires, as a sparse matrix of ones."""

    ordinals: Ints
    """(n,) the samples' places in their dataset."""
    matrix: Any
    """(n, d_sae) `scipy.sparse.csr_array` of float64."""

    def features(self, row: int) -> npt.NDArray[np.int32]:
        ends = self.matrix.indptr
        found: npt.NDArray[np.int32] = self.matrix.indices[ends[row] : ends[row + 1]]
        return found


@dataclass(frozen=True)
class Cover:
    """Samples in the order in which greedy took them."""

    rows: list[int]
    gains: Floats
    """What each one added to the weight covered."""
    step: Ints
    """(d_sae,) which of `rows` covered the feature first; their number where none did."""

    @property
    def covered(self) -> Floats:
        """(n + 1,) weight covered by the first 0, 1, 2, ... of them."""
        return np.concatenate([[0.0], np.cumsum(self.gains)])


def greedy(fired: Fired, weights: Floats, target: float, budget: int | None = None) -> Cover:
    """Takes the sample that adds most, again and again; ties go to the earlier one.

    Args:
        weights: (d_sae,) what each feature counts; 0 leaves it out.
        target: the weight to cover. It must not be more than all samples cover.
        budget: stop after so many samples.
    """
    left = weights.astype(np.float64).copy()
    step = np.full(len(weights), -1)
    gains: list[float] = []
    rows: list[int] = []
    covered = 0.0
    queue = _queue(fired, left)
    while queue and covered < target - _slack(target) and (budget is None or len(rows) < budget):
        deadline.check()
        row, gain, queue = _best(fired, left, queue)
        if gain <= 0:
            break
        features = fired.features(row)
        new = features[left[features] > 0]
        step[new] = len(rows)
        left[new] = 0.0
        covered += gain
        rows.append(row)
        gains.append(gain)
    return Cover(rows, np.array(gains), np.where(step < 0, len(rows), step))


def _slack(target: float) -> float:
    """Sums of weights in another order differ by this much."""
    return 1e-9 * target


Queue = list[tuple[float, int, int]]


def _queue(fired: Fired, left: Floats) -> Queue:
    """Every sample with what it adds now, largest first."""
    gains = fired.matrix @ left
    useful = np.flatnonzero(gains > 0)
    queue = list(zip((-gains[useful]).tolist(), fired.ordinals[useful].tolist(), useful.tolist(), strict=True))
    heapq.heapify(queue)
    return queue


def _best(fired: Fired, left: Floats, queue: Queue) -> tuple[int, float, Queue]:
    """The sample that adds most, taken from the queue, and what it adds."""
    patience = len(queue) // STALE_SHARE + 1
    while True:
        if not patience:
            queue = _queue(fired, left)
            if not queue:
                return -1, 0.0, queue
        _, ordinal, row = heapq.heappop(queue)
        gain = float(left[fired.features(row)].sum())
        if not patience or not queue or (-gain, ordinal) <= queue[0][:2]:
            return row, gain, queue
        if gain > 0:
            heapq.heappush(queue, (-gain, ordinal, row))
        patience -= 1


def pruned(fired: Fired, weights: Floats, cover: Cover, target: float) -> Cover:
    """The same without samples that others made needless: those are left out that the target does not miss, smallest loss first."""
    times = np.zeros(len(weights), np.int64)
    for row in cover.rows:
        times[fired.features(row)] += 1
    spare = float(weights[times > 0].sum()) - target + _slack(target)

    def loss(row: int) -> float:
        features = fired.features(row)
        return float(weights[features[times[features] == 1]].sum())

    needless: set[int] = set()
    for row in sorted(reversed(cover.rows), key=loss):
        deadline.check()
        if (lost := loss(row)) <= spare and len(needless) < len(cover.rows) - 1:
            spare -= lost
            times[fired.features(row)] -= 1
            needless.add(row)
    return _in_order(fired, weights, [row for row in cover.rows if row not in needless]) if needless else cover


def _in_order(fired: Fired, weights: Floats, rows: list[int]) -> Cover:
    """What samples add, taken in this order."""
    left, step, gains = weights.astype(np.float64).copy(), np.full(len(weights), len(rows)), []
    for place, row in enumerate(rows):
        features = fired.features(row)
        new = features[left[features] > 0]
        gains.append(float(left[new].sum()))
        step[new], left[new] = place, 0.0
    return Cover(rows, np.array(gains), step)


def fewest(fired: Fired, weights: Floats, cover: Cover, target: float) -> int:
    """A number of samples below which no set, however chosen, covers the target: the better of two bounds.

    From the gains at a step of greedy: with S taken, n more add at most the n largest gains. By duality: prices y of the features
    such that no sample costs more than 1 prove sum(y) samples necessary.
    """
    goal = target - _slack(target)
    bounds = [1]
    for done, gains in _states(fired, weights, cover):
        reach = done + np.cumsum(gains)
        bounds.append(int(np.searchsorted(reach, goal)) + 1 if done < goal else 1)
    return max(*bounds, int(np.ceil(_dual_fewest(fired, weights, cover, target) * (1 - 1e-9))))


def most(fired: Fired, weights: Floats, cover: Cover, n: int) -> float:
    """A weight above which no n samples cover, by the same two bounds."""
    bounds = [done + float(gains[:n].sum()) for done, gains in _states(fired, weights, cover)]
    return min(float(weights.sum()), *bounds, _dual_most(fired, weights, cover, n))


def _states(fired: Fired, weights: Floats, cover: Cover) -> list[tuple[float, Floats]]:
    """At some steps of the order: the weight covered so far, and what each sample would add, falling."""
    states = []
    for step in np.unique(np.linspace(0, len(cover.rows), STATES).astype(int)):
        deadline.check()
        gains = np.sort(fired.matrix @ np.where(cover.step >= step, weights, 0.0))[::-1]
        states.append((float(cover.covered[step]), gains))
    return states


def _prices(fired: Fired, weights: Floats, cover: Cover) -> tuple[Floats, Floats]:
    """(weight, price) of the features that count, priced so that no sample costs more than 1; dearest per weight last."""
    rate = 1.0 / np.append(cover.gains, cover.gains[-1])
    price = weights * rate[cover.step]
    price /= (fired.matrix @ price).max()
    counts = np.flatnonzero(weights > 0)
    order = counts[np.argsort(price[counts] / weights[counts], kind="stable")]
    return weights[order], price[order]


def _dual_fewest(fired: Fired, weights: Floats, cover: Cover, target: float) -> float:
    """max over l of T l - sum of max(0, w l - y): the features that a partial cover may leave out are the dear ones."""
    w, y = _prices(fired, weights, cover)
    within = int(np.searchsorted(np.cumsum(w), target - _slack(target)))
    rate = float(y[within] / w[within])
    return target * rate - float(np.maximum(w * rate - y, 0.0).sum())


def _dual_most(fired: Fired, weights: Floats, cover: Cover, n: int) -> float:
    """min over t of n t + sum of max(0, w - t y)."""
    w, y = _prices(fired, weights, cover)
    within = min(int(np.searchsorted(np.cumsum(y), n)), len(y) - 1)
    scale = float(w[within] / y[within])
    return n * scale + float(np.maximum(w - scale * y, 0.0).sum())
