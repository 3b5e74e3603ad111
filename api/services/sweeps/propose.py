"""Features proposed for a behaviour: a contrast over several layers, its best features ready for a sweep or a vector."""

from __future__ import annotations

from collections.abc import Mapping

from api.services.features.contrast import contrast
from api.services.library import Library
from api.services.steering.strengths import suggest_for_feature, typical_activation
from schema.errors import NotFound
from schema.live import LiveModel
from schema.lookup import find_all_sources, find_sae
from schema.names import parse_sae
from schema.wire.contrast import ContrastItem, ContrastRequest, Proposal, ProposeAnswer, ProposeRequest
from schema.wire.steering import OpSpec

CANDIDATES = 50
"""Features of each SAE that are looked at."""


def propose(library: Library, live: LiveModel | None, request: ProposeRequest) -> ProposeAnswer:
    """The features that stand for the positive side, over all layers, the clearest first.

    Means are ranked by effect size and rates by their difference: activations of one layer are not on the scale of another's.

    Raises:
        ScopebaseError: see `contrast`.
    """
    shared = {name: getattr(request, name) for name in ContrastRequest.model_fields}
    limit = max(CANDIDATES, request.propose)
    answer = contrast(library, live, ContrastRequest(**{**shared, "limit": limit}))
    tested = [(each.sae, item) for each in answer.data for item in each.data]
    untested = any(item.q_value is None for _, item in tested)
    found = [
        (sae, item)
        for sae, item in tested
        if item.mean_difference > 0 and item.rate_difference >= 0 and _q(item) <= request.most_q
    ]
    found.sort(key=lambda pair: (-_rank(pair[1], request), pair[1].feature))
    chosen = found[: request.propose]
    return ProposeAnswer(
        data=[_proposal(library, sae, item, request) for sae, item in chosen],
        n=answer.n,
        n_available=answer.n_available,
        n_tested={each.sae: each.n_tested for each in answer.data},
        sort=request.sort,
        most_q=request.most_q,
        reason=None if len(chosen) == request.propose else _reason(len(chosen), request, untested),
        seed=request.seed,
        provenance=[each.provenance for each in answer.data],
    )


def _q(item: ContrastItem) -> float:
    """Of what is sorted by; of the rates where there are too few texts for a test of means."""
    return item.rate_q_value if item.q_value is None else item.q_value


def _rank(item: ContrastItem, request: ProposeRequest) -> float:
    if request.sort == "rate_difference":
        return item.rate_difference
    return float("inf") if item.effect_size is None else item.effect_size


def _reason(n: int, request: ProposeRequest, untested: bool) -> str:
    few = "; with fewer than 5 texts a side only rates can be tested, and hardly: give more texts" if untested else ""
    return f"{n} of {request.propose}: no other feature stands for the positive side at q <= {request.most_q:g}{few}"


def _proposal(library: Library, sae: str, item: ContrastItem, request: ProposeRequest) -> Proposal:
    strengths = _strengths(library, sae, item.index, request.unit)
    shared: Mapping[str, object] = {
        name: getattr(item, name) for name in Proposal.model_fields if name in ContrastItem.model_fields
    }
    return Proposal.model_validate(
        {
            **shared,
            "sae": sae,
            "layer": parse_sae(sae).layer,
            "strengths": strengths or [],
            "unit": request.unit,
            "op": OpSpec(feature=item.feature, vector=None, layer=None, strength=1.0, unit=request.unit),
        }
    )


def _strengths(library: Library, sae: str, index: int, unit: str) -> list[float]:
    """As the feature's steering vector suggests them."""
    with library.home.database.reading() as session:
        try:
            sources = find_all_sources(session, find_sae(session, sae).name)[0].sources
        except NotFound:
            sources = []
    typical = typical_activation(library, sources, index) if sources else None
    return [each.strength for each in suggest_for_feature(typical) if each.unit == unit]
