"""The difference of two datasets' mean activations, decoded: what the SAE sees of the difference of their mean residuals.

    d = sum over features f of (sum of f in A / tokens of A  -  sum of f in B / tokens of B) x decoder column of f

The decoder's bias is in both means and cancels out. What the SAE does not reconstruct is left out; `residual` has the whole.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from api.services.features.directions import stream_columns
from api.services.features.profiles import token_counts
from api.services.library import Library
from api.services.provenance import provenance
from api.services.statistics import benjamini_hochberg, fisher_exact
from api.services.steering.made import Doubles, Made, finish
from schema.deadline import check
from schema.errors import Conflict, InputError
from schema.lookup import Source, Subject, find_sae, find_sources
from schema.tables import Sae
from schema.wire.vectors import SaveVector

SHOWN = 20
"""Features named in the provenance."""


def decoded_means(library: Library, session: Session, body: SaveVector) -> Made:
    """One vector a layer.

    Raises:
        NotFound: an unknown SAE or dataset, or directions that the home does not have.
        Conflict: datasets that cannot be compared, one dataset twice, or no feature that differs.
        InputError: SAEs of different models, or two of one layer.
    """
    assert body.decoded_means is not None
    asked = body.decoded_means
    saes = [find_sae(session, name) for name in dict.fromkeys(asked.saes)] or [find_sae(session, None)]
    _check_saes(saes)
    sums: dict[int, Doubles] = {}
    counted: list[dict[str, Any]] = []
    for sae in saes:
        subject = find_sources(session, sae.name, [asked.a, asked.b], asked.as_of)
        a, b = subject.sources
        if a.pair == b.pair:
            raise Conflict(f"{asked.a} and {asked.b} are the same dataset; name two")
        weights = _mean(library, a) - _mean(library, b)
        differing = int(np.count_nonzero(weights))
        weights = _limited(library, a, b, weights, asked.top, asked.max_q)
        if not weights.any():
            raise Conflict(f"no feature of {sae.name} tells {asked.a} from {asked.b} by this measure; ask for less")
        sums[sae.layer] = _decoded(library, sae, weights)
        counted.append(_counted(library, subject, weights, differing))
    made = {"request": body.model_dump(mode="json", exclude_none=True), "layers": counted}
    made["saes"] = {sae.name: sae.sha256 for sae in saes}
    return finish(saes[0].model, sums, body.normalise == "result", "decoded_means", made)


def _check_saes(saes: list[Sae]) -> None:
    names = dict.fromkeys(sae.model.name for sae in saes)
    if len(names) > 1:
        raise InputError(f"SAEs of different models, {' and '.join(names)}; a vector belongs to one model")
    by_layer: dict[int, str] = {}
    for sae in saes:
        if sae.layer in by_layer:
            raise InputError(f"{by_layer[sae.layer]} and {sae.name} are of one layer; name one SAE a layer")
        by_layer[sae.layer] = sae.name


def _mean(library: Library, source: Source) -> npt.NDArray[np.float64]:
    """(d_sae,) mean activation over all tokens that count, those included on which a feature does not fire."""
    n_tokens = library.counts(source.pair).n_tokens
    if not n_tokens:
        raise Conflict(f"no token of {source.name} counts, so it has no mean; index it with another mask")
    return token_counts(library, source.pair).sums / n_tokens


def _limited(library: Library, a: Source, b: Source, weights: Doubles, top: int | None, max_q: float | None) -> Doubles:
    """The weights of the features that are asked for, 0 for the others."""
    kept = np.ones(len(weights), bool)
    if max_q is not None:
        x, y = (library.counts(source.pair).samples_any for source in (a, b))
        tested = np.flatnonzero(x + y)
        q = benjamini_hochberg(fisher_exact(x[tested], a.n_samples, y[tested], b.n_samples))
        kept[:] = False
        kept[tested[q <= max_q]] = True
    limited = np.where(kept, weights, 0.0)
    if top is not None:
        order = np.lexsort((np.arange(len(limited)), -np.abs(limited)))
        limited[order[top:]] = 0.0
    return limited


def _decoded(library: Library, sae: Sae, weights: Doubles) -> Doubles:
    """(d_model,)"""
    total = np.zeros(sae.d_model)
    for features, columns in stream_columns(library, sae):
        check()
        own = weights[features]
        total += own @ columns.astype(np.float64)
    return total


def _counted(library: Library, subject: Subject, weights: Doubles, differing: int) -> dict[str, Any]:
    """What a layer's vector was made from."""
    order = np.lexsort((np.arange(len(weights)), -np.abs(weights)))[:SHOWN]
    return {
        **provenance(subject, "any").model_dump(mode="json"),
        "layer": subject.sae.layer,
        "n_samples": [source.n_samples for source in subject.sources],
        "n_tokens": [library.counts(source.pair).n_tokens for source in subject.sources],
        "n_features": int(np.count_nonzero(weights)),
        "n_differing": differing,
        "strongest": [
            {"feature": f"{subject.sae.name}/{int(f)}", "difference": float(weights[f])} for f in order if weights[f]
        ],
    }
