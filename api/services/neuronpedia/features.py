"""Features with everything that is known of them, in Neuronpedia's shape."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.services.exchange.examples import Choice, find_examples
from api.services.exchange.logits import read_logits
from api.services.exchange.whole import Whole, find_whole, totals
from api.services.features.directions import fits, nearest, read_direction
from api.services.library import Library
from api.services.neuronpedia.names import CREATOR, feature_index, find_source
from api.services.neuronpedia.rows import (
    activation_rows,
    explanation_row,
    feature_row,
    model_row,
    source_row,
    source_set_row,
)
from api.services.provenance import provenance
from schema.errors import InputError, NotFound
from schema.lab import Label
from schema.labels import CHUNK
from schema.tables import Sae
from schema.wire.neuronpedia import NpActivation, NpExplanation, NpFeature
from schema.wire.neuronpedia_requests import NpFeatureId, NpOffset

MOST_FEATURES = 100
"""Features asked for in one call."""
OFFSET_PAGE = 25
N_NEAREST = 10


def feature(library: Library, model: str, source: str, index: str) -> NpFeature:
    """One feature.

    Raises:
        NotFound: no such model, source or feature.
    """
    with library.home.database.reading() as session:
        sae = find_source(session, model, source)
        answer = _answers(library, session, sae, [feature_index(sae, index)])[0]
    near = _nearest(library, sae, int(answer.index))
    return answer.model_copy(
        update={"topkCosSimIndices": [i for i, _ in near], "topkCosSimValues": [cosine for _, cosine in near]}
    )


def _nearest(library: Library, sae: Sae, index: int) -> list[tuple[int, float]]:
    """The features with the most similar decoder directions, where the home has them and they fit in memory."""
    direction = read_direction(library, sae, index) if fits(sae) else None
    return nearest(library, sae, direction.unit, N_NEAREST, without=index) if direction else []


def features(library: Library, wanted: Sequence[NpFeatureId]) -> list[NpFeature]:
    """Several features, in the order asked for; those that are not there are left out.

    Raises:
        InputError: too many of them.
    """
    if len(wanted) > MOST_FEATURES:
        raise InputError(f"{len(wanted)} features in one call; ask for at most {MOST_FEATURES}")
    answers: dict[tuple[int, int], NpFeature] = {}
    order: list[tuple[int, int, int | None]] = []
    with library.home.database.reading() as session:
        by_sae: dict[int, tuple[Sae, list[int]]] = {}
        for each in wanted:
            try:
                sae = find_source(session, each.modelId, named_source(each))
                index = feature_index(sae, each.index)
            except NotFound:
                continue
            by_sae.setdefault(sae.id, (sae, []))[1].append(index)
            order.append((sae.id, index, each.maxActsToReturn))
        for sae, indices in by_sae.values():
            found = _answers(library, session, sae, [*dict.fromkeys(indices)])
            answers |= {(sae.id, int(answer.index)): answer for answer in found}
    return [_shortened(answers[sae_id, index], most) for sae_id, index, most in order]


def features_from(library: Library, wanted: NpOffset) -> list[NpFeature]:
    """The next page of an SAE's features, from an index on."""
    with library.home.database.reading() as session:
        sae = find_source(session, wanted.modelId, named_source(wanted))
        page = range(wanted.offset, min(wanted.offset + OFFSET_PAGE, sae.d_sae))
        return _answers(library, session, sae, list(page))


def activations(library: Library, wanted: NpFeatureId) -> list[NpActivation]:
    """All examples of a feature."""
    return feature(library, wanted.modelId, named_source(wanted), wanted.index).activations


def named_source(body: NpFeatureId | NpOffset) -> str:
    """`source`, or `layer`, its older name.

    Raises:
        InputError: neither is given.
    """
    name = body.source or body.layer
    if not name:
        raise InputError("name the source, as `source` or `layer`")
    return name


def labels_of(session: Session, sae: Sae, features: Sequence[int]) -> dict[int, list[Label]]:
    """For each feature its labels, the best voted first."""
    found: dict[int, list[Label]] = {feature: [] for feature in features}
    for begin in range(0, len(features), CHUNK):
        wanted = features[begin : begin + CHUNK]
        where = (Label.sae_id == sae.id, Label.feature.in_(wanted), Label.deleted_at.is_(None))
        for label in session.scalars(select(Label).where(*where).order_by(Label.votes.desc(), Label.id)):
            found[label.feature].append(label)
    return found


def _answers(library: Library, session: Session, sae: Sae, indices: Sequence[int]) -> list[NpFeature]:
    """Features of one SAE, with one read of each table for all of them."""
    whole = find_whole(session, sae)
    counts = totals(library, whole)
    logits = read_logits(library.store, sae, indices)
    examples = find_examples(library.store, whole, indices, Choice())
    labels = labels_of(session, sae, indices)
    answers = []
    for index in indices:
        shown = sorted(activation_rows(sae, index, examples[index]), key=lambda row: -row.maxValue)
        explained = [explanation_row(sae, label) for label in labels[index]]
        answers.append(_answer(sae, whole, feature_row(sae, counts, index, logits[index]), shown, explained))
    return answers


def _answer(
    sae: Sae, whole: Whole, row: object, shown: list[NpActivation], explained: list[NpExplanation]
) -> NpFeature:
    return NpFeature(
        **dict(row),  # type: ignore[call-overload]
        model=model_row(sae.model, [sae]),
        source=source_row(sae, whole),
        sourceSet=source_set_row(sae),
        creator={"name": CREATOR},
        activations=shown,
        explanations=explained,
        scopebase=provenance(whole.subject, "any") if whole.sources else None,
    )


def _shortened(answer: NpFeature, most: int | None) -> NpFeature:
    return answer if most is None else answer.model_copy(update={"activations": answer.activations[:most]})
