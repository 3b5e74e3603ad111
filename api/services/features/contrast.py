"""Features that tell two sets of texts apart: the difference of mean activations, or of firing rates.

The mean is over a text's tokens that count, then over texts, so that long texts weigh no more. A text fires a feature where any of its
tokens does. Texts are new ones, read by the loaded model, or stored samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy.special import comb, stdtr
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.services.evidence import Place, read_details
from api.services.features.neighbours import labels_of
from api.services.features.reading import find_saes, usual_mask
from api.services.library import Library
from api.services.provenance import provenance
from api.services.slices import select_samples
from api.services.statistics import benjamini_hochberg, fisher_exact, rate_difference_interval
from schema import deadline
from schema.errors import Conflict, InputError, NoModel, not_found
from schema.live import LiveModel
from schema.lookup import Source, Subject, find_sources, newest_snapshot
from schema.tables import Sae
from schema.wire.base import Provenance
from schema.wire.contrast import ContrastAnswer, ContrastItem, ContrastRequest, SaeContrast, Slice

AT_ONCE = 32
"""Texts or samples held at a time."""
FEWEST = 5
"""Texts a side below which a t-test says nothing."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Thing = TypeVar("Thing")


@dataclass
class Side:
    """Sums over the texts of one side, for each feature of an SAE."""

    d_sae: int
    n: int = 0
    total: Floats = field(init=False)
    squares: Floats = field(init=False)
    fires: Ints = field(init=False)

    def __post_init__(self) -> None:
        self.total, self.squares = np.zeros(self.d_sae), np.zeros(self.d_sae)
        self.fires = np.zeros(self.d_sae, np.int64)

    def add(self, feature: Ints, value: npt.NDArray[np.float32], n_tokens: int) -> None:
        """Counts one text: its activations, and how many of its tokens count."""
        self.n += 1
        features, place = np.unique(feature, return_inverse=True)
        means = np.bincount(place, weights=value, minlength=len(features)) / max(1, n_tokens)
        self.total[features] += means
        self.squares[features] += means**2
        self.fires[features] += 1

    @property
    def mean(self) -> Floats:
        return self.total / self.n

    @property
    def variance(self) -> Floats:
        """Of the mean."""
        return np.asarray(np.maximum(self.squares - self.total**2 / self.n, 0) / (self.n - 1) / self.n)


def contrast(library: Library, live: LiveModel | None, request: ContrastRequest) -> ContrastAnswer:
    """The features of each SAE, those first that stand for the positive side.

    Raises:
        NotFound, Conflict: an unknown SAE or dataset, or datasets that cannot be compared.
        NoModel: texts, but no model is loaded.
        InputError: a side without a sample.
    """
    if isinstance(request.positive, Slice):
        found, available = _stored(library, request)
    else:
        if live is None:
            raise NoModel(
                "no model is loaded, so texts cannot be read; compare stored datasets, or start 'scopebase serve --model M'"
            )
        found = _live(library, live, request)
        available = tuple(side.n for side in found[0][1])
    one, two = found[0][1]
    return ContrastAnswer(
        data=[_ranked(library, sae, *sides, request, made) for sae, sides, made in found],
        n=(one.n, two.n),
        n_available=(available[0], available[1]),
        test="welch" if request.sort == "mean_difference" else "fisher",
        sort=request.sort,
        seed=request.seed,
    )


Found = list[tuple[Sae, tuple[Side, Side], Provenance]]


def _saes(session: Session, request: ContrastRequest, model: str | None = None) -> list[Sae]:
    """The SAEs of a question; those of a set by layer."""
    if request.set is None:
        return find_saes(session, request.sae, request.saes)
    query = select(Sae).where(Sae.set_name == request.set).order_by(Sae.layer)
    found = [sae for sae in session.scalars(query) if model is None or sae.model.name == model]
    if not found:
        raise not_found("set of SAEs", request.set, session.scalars(select(Sae.set_name).distinct()), "scopebase saes")
    if len({sae.model_id for sae in found}) > 1:
        raise Conflict(f"several models have SAEs of set {request.set}; name the SAEs of one of them in saes")
    return found


def _live(library: Library, live: LiveModel, request: ContrastRequest) -> Found:
    """Reads the texts of both sides."""
    with library.home.database.reading() as session:
        saes = _saes(session, request, live.name)
        mask = request.mask or usual_mask(session, saes[0])
        snapshot = newest_snapshot(session)
    sides = {sae.name: (Side(sae.d_sae), Side(sae.d_sae)) for sae in saes}
    for place, texts in enumerate((request.positive, request.negative)):
        assert isinstance(texts, list)
        for some in _pieces(texts):
            deadline.check()
            for read in live.read(some, list(sides), mask=mask, max_tokens=request.max_tokens):
                for name, fired in read.fired.items():
                    sides[name][place].add(fired.feature, fired.value, int(read.counts.sum()))
    return [
        (
            sae,
            sides[sae.name],
            Provenance(sae=sae.name, sae_sha256=sae.sha256, runs={}, pool="any", mask=mask, snapshot=snapshot),
        )
        for sae in saes
    ]


def _stored(library: Library, request: ContrastRequest) -> tuple[Found, tuple[int, ...]]:
    """Reads stored samples of both sides, the same ones for every SAE."""
    slices = (request.positive, request.negative)
    assert all(isinstance(each, Slice) for each in slices)
    with library.home.database.reading() as session:
        saes = _saes(session, request)
        names = list(dict.fromkeys(each.dataset for each in slices if isinstance(each, Slice)))
        subjects = [find_sources(session, sae.name, names) for sae in saes]
    drawn: list[Ints] = []
    whole: list[Ints] = []
    sources = [_source(subjects[0], names, each) for each in slices if isinstance(each, Slice)]
    for each, source in zip(slices, sources, strict=True):
        assert isinstance(each, Slice)
        ordinals = select_samples(library, source, each.where)
        if each.where_not:
            ordinals = np.setdiff1d(ordinals, select_samples(library, source, each.where_not), assume_unique=True)
        if not len(ordinals):
            raise InputError(f"no sample of {each.dataset} is left by {each.where} and not {each.where_not}")
        whole.append(ordinals)
        if len(ordinals) > request.samples:
            rng = np.random.default_rng(request.seed)
            ordinals = np.sort(rng.choice(ordinals, request.samples, replace=False))
        drawn.append(ordinals)
    shared = len(np.intersect1d(whole[0], whole[1], assume_unique=True)) if sources[0].pair == sources[1].pair else 0
    if shared:
        raise InputError(
            f"both sides have {shared:,} samples of {sources[0].name} in common and cannot be compared; "
            "take the rest of a dataset with where_not"
        )
    found: Found = []
    for sae, subject in zip(saes, subjects, strict=True):
        sides = (Side(sae.d_sae), Side(sae.d_sae))
        for side, each, ordinals in zip(sides, slices, drawn, strict=True):
            assert isinstance(each, Slice)
            _add_stored(library, side, _source(subject, names, each), ordinals)
        found.append((sae, sides, provenance(subject, "any")))
    return found, tuple(len(ordinals) for ordinals in whole)


def _source(subject: Subject, names: Sequence[str], wanted: Slice) -> Source:
    return subject.sources[names.index(wanted.dataset)]


def _add_stored(library: Library, side: Side, source: Source, ordinals: Ints) -> None:
    for some in _pieces([Place(source, int(ordinal)) for ordinal in ordinals]):
        rows = library.store.rows("forward", [place.key for place in some], ["n_tokens"])
        n_tokens = dict(zip(rows.column("key").to_pylist(), rows.column("n_tokens").to_pylist(), strict=True))
        for key, detail in read_details(library.store, some).items():
            side.add(detail.feature, detail.value, n_tokens[key])


def _pieces(things: list[Thing]) -> Iterator[list[Thing]]:
    return (things[begin : begin + AT_ONCE] for begin in range(0, len(things), AT_ONCE))


def _ranked(
    library: Library, sae: Sae, one: Side, two: Side, request: ContrastRequest, made: Provenance
) -> SaeContrast:
    tested = np.flatnonzero(one.fires + two.fires)
    means = one.mean[tested] - two.mean[tested]
    rates = one.fires[tested] / one.n - two.fires[tested] / two.n
    p = _p_values(one, two, tested, request)
    q = benjamini_hochberg(p) if p is not None else None
    rate_q = benjamini_hochberg(fisher_exact(one.fires[tested], one.n, two.fires[tested], two.n))
    sizes = _effect_sizes(one, two, tested)
    low, high = rate_difference_interval(one.fires[tested], one.n, two.fires[tested], two.n)
    first, second = (means, rates) if request.sort == "mean_difference" else (rates, means)
    order = np.lexsort((tested, -second, -first))[: request.limit]
    labels = labels_of(library, sae, tested[order].tolist())
    data = []
    for i in order:
        index = int(tested[i])
        data.append(
            ContrastItem(
                feature=f"{sae.name}/{index}",
                index=index,
                label=labels.get(index),
                means=(float(one.mean[index]), float(two.mean[index])),
                mean_difference=float(means[i]),
                effect_size=None if np.isnan(sizes[i]) else float(sizes[i]),
                counts=(int(one.fires[index]), int(two.fires[index])),
                rates=(float(one.fires[index] / one.n), float(two.fires[index] / two.n)),
                rate_difference=float(rates[i]),
                rate_interval=(float(low[i]), float(high[i])),
                p_value=None if p is None else float(p[i]),
                q_value=None if q is None else float(q[i]),
                rate_q_value=float(rate_q[i]),
            )
        )
    return SaeContrast(sae=sae.name, data=data, n_tested=len(tested), provenance=made)


def _p_values(one: Side, two: Side, tested: Ints, request: ContrastRequest) -> Floats | None:
    """Of what is sorted by; None where there are too few texts for a t-test.

    A p-value is never below the smallest that a permutation test of as many texts can give.
    """
    if request.sort == "rate_difference":
        return fisher_exact(one.fires[tested], one.n, two.fires[tested], two.n)
    if min(one.n, two.n) < FEWEST:
        return None
    a, b = one.variance[tested], two.variance[tested]
    difference, spread = one.mean[tested] - two.mean[tested], a + b
    constant = spread <= 1e-12 * (one.mean[tested] + two.mean[tested]) ** 2  # the same in all texts of either side
    safe = np.where(constant, 1.0, spread)
    freedom = safe**2 / np.maximum(a**2 / (one.n - 1) + b**2 / (two.n - 1), np.finfo(float).tiny)
    p = 2 * stdtr(np.where(constant, 1.0, freedom), -np.abs(difference) / np.sqrt(safe))
    p = np.where(constant, difference == 0, p)
    return np.asarray(np.maximum(p, min(1.0, 2 / comb(one.n + two.n, one.n))))


def _effect_sizes(one: Side, two: Side, tested: Ints) -> Floats:
    """Cohen's d of each feature; NaN where the texts of either side are all alike."""
    freedom = one.n + two.n - 2
    if freedom < 1:
        return np.full(len(tested), np.nan)
    squares = sum((side.squares - side.total**2 / side.n)[tested] for side in (one, two))
    spread = np.sqrt(np.maximum(squares, 0) / freedom)
    means = one.mean[tested] + two.mean[tested]
    alike = spread <= 1e-6 * means
    return np.divide(one.mean[tested] - two.mean[tested], spread, out=np.full(len(tested), np.nan), where=~alike)
