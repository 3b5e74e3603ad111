"""What a text of one's own fires, through the loaded model, in Neuronpedia's shapes.

The mask and the cut are those of the index, so that the values agree with it: special tokens and position 0 never fire. A request
that says `ignoreBos: false` gets every token's activations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from api.services.exchange.whole import Totals, Whole, find_whole, totals
from api.services.library import Library
from api.services.neuronpedia.features import labels_of, named_source
from api.services.neuronpedia.names import feature_index, find_source, source_id, source_set
from schema.errors import Conflict, InputError
from schema.live import Fired, LiveModel, LiveText
from schema.recipe import Recipe
from schema.tables import Sae
from schema.wire.neuronpedia_live import (
    NpComputed,
    NpHit,
    NpHits,
    NpHitsList,
    NpSparse,
    NpSparseAnswer,
    NpTopAnswer,
    NpTopFeature,
    NpTopList,
    NpTopToken,
)
from schema.wire.neuronpedia_requests import NpActivationNew, NpActivationSource, NpSearchAll, NpTopK

ONE, MANY = 1_024, 256
"""Tokens of a text, and of each of several."""
MOST_TEXTS = 4


def activation(library: Library, live: LiveModel, asked: NpActivationNew) -> NpComputed | list[NpComputed]:
    """One feature's activations on a text, or on each of several."""
    with library.home.database.reading() as session:
        sae = find_source(session, asked.feature.modelId, named_source(asked.feature))
        index = feature_index(sae, asked.feature.index)
        whole = find_whole(session, sae)
    read = _read(live, asked.customText, [sae], whole, asked.ignoreBos)
    answers = [_computed(sae, index, text, skip=1 if asked.ignoreBos and _opens_special(text) else 0) for text in read]
    return answers[0] if isinstance(asked.customText, str) else answers


def source_activations(library: Library, live: LiveModel, asked: NpActivationSource) -> NpSparseAnswer:
    """Every feature of a source that fires on the texts."""
    with library.home.database.reading() as session:
        sae = find_source(session, asked.modelId, asked.source)
        whole = find_whole(session, sae)
    return NpSparseAnswer(results=[_sparse(text, sae) for text in _read(live, asked.customText, [sae], whole, None)])


def search_all(library: Library, live: LiveModel, asked: NpSearchAll) -> NpHits | NpHitsList:
    """The features of a source set that fire most on a text, at any token or at those named."""
    with library.home.database.reading() as session:
        saes = source_set(session, asked.modelId, asked.sourceSet)
        if asked.selectedLayers:
            chosen = {find_source(session, asked.modelId, layer).id for layer in asked.selectedLayers}
            saes = [sae for sae in saes if sae.id in chosen]
        wholes = [find_whole(session, sae) for sae in saes]
    if not saes:
        raise InputError(f"none of the layers selected is of source set {asked.sourceSet!r}")
    read = _read(live, asked.text, saes, wholes[0], asked.ignoreBos)
    found = [_hits(library, text, wholes, asked) for text in read]
    return found[0] if isinstance(asked.text, str) else NpHitsList(results=found)


def top_by_token(library: Library, live: LiveModel, asked: NpTopK) -> NpTopAnswer | NpTopList:
    """At each token the features that fire most."""
    with library.home.database.reading() as session:
        sae = find_source(session, asked.modelId, asked.source)
        whole = find_whole(session, sae)
    counts = totals(library, whole)
    read = _read(live, asked.text, [sae], whole, asked.ignoreBos)
    found = [_top(library, text, sae, counts, asked) for text in read]
    return found[0] if isinstance(asked.text, str) else NpTopList(results=found)


def _read(
    live: LiveModel, texts: str | Sequence[str], saes: Sequence[Sae], whole: Whole, ignore_bos: bool | None
) -> list[LiveText]:
    """The texts as the loaded model reads them.

    Raises:
        Conflict: another model is loaded.
        InputError: an empty text, or too many.
    """
    wanted = [texts] if isinstance(texts, str) else list(texts)
    if not wanted or any(not text for text in wanted):
        raise InputError("the text is empty; send one with something in it")
    if len(wanted) > MOST_TEXTS:
        raise InputError(f"{len(wanted)} texts in one call; send at most {MOST_TEXTS}")
    if live.name != saes[0].model.name:
        raise Conflict(f"model {live.name} is loaded here, and {saes[0].name} is of {saes[0].model.name}")
    mask = "none" if ignore_bos is False else whole.subject.mask
    longest = min(ONE if len(wanted) == 1 else MANY, _context(whole))
    return live.read(wanted, [sae.name for sae in saes], mask=mask, max_tokens=longest)


def _context(whole: Whole) -> int:
    return max((source.recipe.max_tokens for source in whole.sources), default=Recipe().max_tokens)


def _opens_special(text: LiveText) -> bool:
    """Whether the first token stands for no text: a beginning-of-sequence token."""
    return len(text.ids) > 0 and bool(text.ends[0] <= text.starts[0])


def _computed(sae: Sae, index: int, text: LiveText, skip: int) -> NpComputed:
    fired = text.fired[sae.name]
    values = np.zeros(len(text.ids))
    here = fired.feature == index
    values[fired.position[here]] = fired.value[here]
    shown = values[skip:]
    return NpComputed(
        tokens=text.pieces[skip:],
        values=shown.tolist(),
        maxValue=float(shown.max(initial=0)),
        minValue=float(shown.min()) if len(shown) else 0.0,
        maxValueTokenIndex=int(shown.argmax()) if len(shown) else 0,
        modelId=sae.model.name,
        layer=source_id(sae),
        source=source_id(sae),
        index=str(index),
    )


def _sparse(text: LiveText, sae: Sae) -> NpSparse:
    fired = text.fired[sae.name]
    active: dict[str, list[tuple[int, float]]] = {}
    for i in np.lexsort((fired.position, fired.feature)):
        active.setdefault(str(int(fired.feature[i])), []).append((int(fired.position[i]), float(fired.value[i])))
    return NpSparse(tokens=text.pieces, activeFeatures=active)


def _hits(library: Library, text: LiveText, wholes: Sequence[Whole], asked: NpSearchAll) -> NpHits:
    """The strongest features of all layers; by the sum over `sortIndexes` where tokens are named."""
    beyond = [i for i in asked.sortIndexes if not 0 <= i < len(text.ids)]
    if beyond:
        raise InputError(f"sortIndexes: the text has no token {beyond[0]}; it has {len(text.ids)}")
    found: list[tuple[float, NpHit]] = []
    for whole in wholes:
        counts, sae = totals(library, whole), whole.sae
        found += _layer_hits(text.fired[sae.name], sae, counts, len(text.ids), asked)
    found.sort(key=lambda hit: (-hit[0], hit[1].layer, int(hit[1].index)))
    return NpHits(
        tokens=text.pieces,
        result=[hit for _, hit in found[: asked.numResults]],
        sortIndexes=asked.sortIndexes,
    )


def _layer_hits(fired: Fired, sae: Sae, counts: Totals, n_tokens: int, asked: NpSearchAll) -> list[tuple[float, NpHit]]:
    """A layer's strongest features, with what each is ranked by."""
    features, where = np.unique(fired.feature, return_inverse=True)
    asked_for = np.isin(fired.position, asked.sortIndexes) if asked.sortIndexes else np.ones(len(where), bool)
    rank = np.zeros(len(features))
    if asked.sortIndexes:
        np.add.at(rank, where[asked_for], fired.value[asked_for])
    else:
        np.maximum.at(rank, where, fired.value)
    allowed = rank > 0
    if asked.densityThreshold >= 0:
        allowed &= counts.tokens[features] <= asked.densityThreshold * max(counts.n_tokens, 1)
    order = np.flatnonzero(allowed)
    order = order[np.argsort(-rank[order], kind="stable")][: asked.numResults]
    hits = []
    for i in order:
        values = np.zeros(n_tokens)
        values[fired.position[where == i]] = fired.value[where == i]
        hits.append((float(rank[i]), _hit(sae, int(features[i]), values, counts)))
    return hits


def _hit(sae: Sae, feature: int, values: np.ndarray, counts: Totals) -> NpHit:
    return NpHit(
        modelId=sae.model.name,
        layer=source_id(sae),
        source=source_id(sae),
        index=str(feature),
        values=values.tolist(),
        maxValue=float(values.max()),
        maxValueIndex=int(values.argmax()),
        neuron=_brief(sae, feature, counts),
    )


def _brief(sae: Sae, feature: int, counts: Totals) -> dict[str, str | float]:
    return {
        "modelId": sae.model.name,
        "layer": source_id(sae),
        "index": str(feature),
        "frac_nonzero": counts.density(feature),
        "maxActApprox": float(counts.largest[feature]),
    }


def _top(library: Library, text: LiveText, sae: Sae, counts: Totals, asked: NpTopK) -> NpTopAnswer:
    fired = text.fired[sae.name]
    kept = np.ones(len(fired.feature), bool)
    if asked.densityThreshold > 0:  # as there: 0 is no threshold
        kept = counts.tokens[fired.feature] <= asked.densityThreshold * max(counts.n_tokens, 1)
    at: dict[int, list[tuple[float, int]]] = {}
    for position, feature, value in zip(fired.position[kept], fired.feature[kept], fired.value[kept], strict=True):
        at.setdefault(int(position), []).append((-float(value), int(feature)))
    strongest = {position: sorted(found)[: asked.numResults] for position, found in at.items()}
    named = _described(library, sae, sorted({feature for found in strongest.values() for _, feature in found}))
    special = text.ends <= text.starts
    return NpTopAnswer(
        source=source_id(sae),
        results=[
            NpTopToken(
                position=position,
                token=piece,
                isSpecial=bool(special[position]),
                topFeatures=[
                    NpTopFeature(
                        activationValue=-value,
                        featureIndex=feature,
                        feature=_brief(sae, feature, counts) | named.get(feature, {}),
                    )
                    for value, feature in strongest.get(position, [])
                ],
            )
            for position, piece in enumerate(text.pieces)
            if not (special[position] and asked.ignoreBos is not False)
        ],
    )


def _described(library: Library, sae: Sae, features: Sequence[int]) -> dict[int, dict[str, str | float]]:
    with library.home.database.reading() as session:
        labels = labels_of(session, sae, features)
    return {feature: {"description": found[0].text} for feature, found in labels.items() if found}
