"""How much of one SAE another one has: each feature's nearest decoder direction on the other side, beside what chance gives.

Chance is a random direction: the mean largest cosine, and the share above the threshold, that directions without any meaning reach
among the other side's features. Large SAEs are compared by a random part of their features; the other side is always searched whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from api.services.cursors import read_cursor, write_cursor
from api.services.features.directions import Floats, blocks
from api.services.features.neighbours import labels_of
from api.services.library import Library
from schema.errors import Conflict, InputError
from schema.lookup import find_sae
from schema.tables import Sae
from schema.wire.features import MatchAnswer, MatchPair, MatchSide

N_NULL = 1_000
ROWS = 256
"""Directions that are compared with a block of the other side at a time."""
MOST_WORK = 2e12
"""Multiply-adds of one question: half a minute on two cores."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Best:
    """Some features of one side, each with its nearest on the other."""

    features: Ints
    nearest: Ints
    cosine: Floats
    mutual: npt.NDArray[np.bool_]


def match(
    library: Library,
    a: str,
    b: str,
    threshold: float = 0.7,
    features: int = 2_048,
    sort: Literal["cosine", "-cosine"] = "cosine",
    limit: int = 50,
    cursor: str | None = None,
    seed: int = 0,
) -> MatchAnswer:
    """The report, and one page of a's features with their nearest in b.

    Raises:
        NotFound: an unknown SAE, or one without directions.
        Conflict: SAEs of residuals of different width.
        InputError: the same SAE twice, or more work than one question may take.
    """
    offset, _ = read_cursor(cursor)
    with library.home.database.reading() as session:
        one, two = find_sae(session, a), find_sae(session, b)
    _check(one, two, features)
    key = ("match", one.id, two.id, features, seed)
    forth, back, null_forth, null_back = library.remembered(key, lambda: _compare(library, one, two, features, seed))
    order = np.lexsort((forth.features, -forth.cosine if sort == "cosine" else forth.cosine))
    page = order[offset : offset + limit]
    return MatchAnswer(
        a=_side(one, forth, null_forth, threshold),
        b=_side(two, back, null_back, threshold),
        threshold=threshold,
        data=_pairs(library, one, two, forth, page),
        next_cursor=write_cursor(offset + limit) if offset + limit < len(order) else None,
        total=len(order),
        sort=sort,
        n_null=N_NULL,
        seed=seed,
    )


def _check(one: Sae, two: Sae, features: int) -> None:
    if one.id == two.id:
        raise InputError(f"{one.name} against itself says nothing; name two SAEs")
    if one.d_model != two.d_model:
        raise Conflict(
            f"{one.name} has directions of width {one.d_model}, {two.name} of width {two.d_model}: no cosine between them"
        )
    compared = min(features, one.d_sae) + min(features, two.d_sae)
    work = float(compared) * (one.d_sae + two.d_sae) * one.d_model
    if work > MOST_WORK:
        most = int(compared / 2 * MOST_WORK / work)
        raise InputError(f"features={features}: too much work for one question on these SAEs; at most about {most:,}")


def _compare(library: Library, one: Sae, two: Sae, features: int, seed: int) -> tuple[Best, Best, Floats, Floats]:
    """Both ways, and the largest cosines of random directions among b's features and among a's."""
    rng = np.random.default_rng(seed)
    forth = _best(library, one, two, _drawn(rng, one.d_sae, features))
    back = _best(library, two, one, _drawn(rng, two.d_sae, features))
    random = rng.standard_normal((N_NULL, one.d_model)).astype(np.float32)
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    return forth, back, nearest_of(library, two, random)[1], nearest_of(library, one, random)[1]


def _drawn(rng: np.random.Generator, d_sae: int, most: int) -> Ints:
    return np.sort(rng.choice(d_sae, most, replace=False)) if d_sae > most else np.arange(d_sae)


def _best(library: Library, one: Sae, two: Sae, features: Ints) -> Best:
    nearest, cosine = nearest_of(library, two, _units(library, one, features))
    there, inverse = np.unique(nearest, return_inverse=True)
    returned, _ = nearest_of(library, one, _units(library, two, there))
    return Best(features, nearest, cosine, returned[inverse] == features)


def _units(library: Library, sae: Sae, features: Ints) -> Floats:
    """(n, d_model) unit directions of some features."""
    out = np.zeros((len(features), sae.d_model), np.float32)
    for block in blocks(library, sae):
        kept = np.isin(block.features, features)
        out[np.searchsorted(features, block.features[kept])] = block.unit[kept]
    return out


def nearest_of(library: Library, sae: Sae, units: Floats) -> tuple[Ints, Floats]:
    """For each of (n, d_model) directions the SAE's nearest feature, ties to the lower index, and its cosine."""
    nearest, cosine = np.zeros(len(units), np.int64), np.full(len(units), -np.inf, np.float32)
    for block in blocks(library, sae):
        for begin in range(0, len(units), ROWS):
            part = slice(begin, begin + ROWS)
            products = units[part] @ block.unit.T
            best = products.argmax(axis=1)
            value, feature = products[np.arange(len(best)), best], block.features[best]
            better = (value > cosine[part]) | ((value == cosine[part]) & (feature < nearest[part]))
            nearest[part] = np.where(better, feature, nearest[part])
            cosine[part] = np.where(better, value, cosine[part])
    return nearest, np.clip(cosine, -1, 1)


def _side(sae: Sae, found: Best, null: Floats, threshold: float) -> MatchSide:
    n, mean = len(found.features), float(found.cosine.mean())
    half = 1.96 * float(found.cosine.std(ddof=1)) / n**0.5 if 1 < n < sae.d_sae else 0.0
    matched, mutual = int((found.cosine >= threshold).sum()), int(found.mutual.sum())
    return MatchSide(
        sae=sae.name,
        sae_sha256=sae.sha256,
        d_sae=sae.d_sae,
        n=n,
        mean_max_cosine=mean,
        interval=(mean - half, mean + half),
        matched=matched,
        matched_share=matched / n,
        mutual=mutual,
        mutual_share=mutual / n,
        quantiles=np.quantile(found.cosine, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist(),
        null_mean_max_cosine=float(null.mean()),
        null_quantile_99=float(np.quantile(null, 0.99)),
        null_matched_share=float((null >= threshold).mean()),
    )


def _pairs(library: Library, one: Sae, two: Sae, found: Best, page: Ints) -> list[MatchPair]:
    labels_a = labels_of(library, one, found.features[page].tolist())
    labels_b = labels_of(library, two, found.nearest[page].tolist())
    return [
        MatchPair(
            a=f"{one.name}/{found.features[i]}",
            b=f"{two.name}/{found.nearest[i]}",
            cosine=float(found.cosine[i]),
            mutual=bool(found.mutual[i]),
            label_a=labels_a.get(int(found.features[i])),
            label_b=labels_b.get(int(found.nearest[i])),
        )
        for i in page
    ]
