"""What a text fires, token by token, in the shape that new texts and stored samples share."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.services.features.neighbours import labels_of
from api.services.library import Library
from schema.errors import InputError
from schema.live import Fired, LiveModel
from schema.lookup import find_feature, find_sae, newest_snapshot
from schema.recipe import Recipe
from schema.tables import Run, RunSae, Sae
from schema.wire.base import Provenance
from schema.wire.reading import InspectAnswer, InspectRequest, ReadFeature, ReadToken, SaeReading, TokenFeature

DEFAULT_MASK = "special,first"


@dataclass(frozen=True)
class Shown:
    """How much of a reading is shown."""

    top: int
    """Features a token."""
    overall: int
    """Features of the whole text."""


def inspect(library: Library, live: LiveModel, request: InspectRequest) -> InspectAnswer:
    """Reads a text through the loaded model.

    Raises:
        NotFound: an unknown SAE or feature.
        Conflict: an SAE of another model.
        InputError: a feature of an SAE that is not asked for, or token ids that the model does not have.
    """
    with library.home.database.reading() as session:
        saes = find_saes(session, request.sae, request.saes)
        wanted = _wanted(session, request.features, saes)
        mask = request.mask or usual_mask(session, saes[0])
        snapshot = newest_snapshot(session)
    given = request.text if request.text is not None else request.token_ids or []
    read = live.read([given], [sae.name for sae in saes], mask=mask, max_tokens=request.max_tokens)[0]
    shown = Shown(request.top, request.overall)
    readings = [
        sae_reading(
            library,
            sae,
            only(read.fired[sae.name], wanted.get(sae.id)),
            len(read.ids),
            shown,
            Provenance(sae=sae.name, sae_sha256=sae.sha256, runs={}, pool="any", mask=mask, snapshot=snapshot),
        )
        for sae in saes
    ]
    return InspectAnswer(
        text=read.text,
        model=live.name,
        tokens=read_tokens(read.ids, read.pieces, read.starts, read.ends, read.counts),
        n_tokens=len(read.ids),
        n_counting=int(read.counts.sum()),
        truncated=read.truncated,
        max_tokens=request.max_tokens,
        saes=readings,
    )


def find_saes(session: Session, sae: str | None, saes: Sequence[str]) -> list[Sae]:
    """The SAEs of a question, each once; the home's only one where none is named."""
    return [find_sae(session, name) for name in dict.fromkeys(saes)] or [find_sae(session, sae)]


def usual_mask(session: Session, sae: Sae) -> str:
    """The mask of the newest run with an SAE, so that new texts are read as the index was."""
    runs = select(Run.recipe).join(RunSae).where(RunSae.sae_id == sae.id, Run.finished.is_not(None))
    recipe = session.scalars(runs.order_by(Run.finished.desc()).limit(1)).first()
    return Recipe(**recipe).mask if recipe else DEFAULT_MASK


def _wanted(session: Session, features: Sequence[str], saes: Sequence[Sae]) -> dict[int, set[int]]:
    """SAE -> the features that are asked for; empty where all are."""
    found: dict[int, set[int]] = {sae.id: set() for sae in saes} if features else {}
    for text in features:
        sae, index = find_feature(session, text)
        if sae.id not in found:
            raise InputError(f"feature {text} is of an SAE that is not asked for; name {sae.name} in saes too")
        found[sae.id].add(index)
    return found


def only(fired: Fired, features: Collection[int] | None) -> Fired:
    """What is fired by some features; by all of them for None."""
    if features is None:
        return fired
    kept = np.isin(fired.feature, list(features))
    return Fired(fired.position[kept], fired.feature[kept], fired.value[kept])


def read_tokens(
    ids: npt.NDArray[np.int64],
    pieces: Sequence[str],
    starts: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    counts: npt.NDArray[np.bool_] | None,
) -> list[ReadToken]:
    known = [None] * len(ids) if counts is None else counts.tolist()
    return [
        ReadToken(position=p, id=int(i), text=piece, start=int(a), end=int(b), counts=c)
        for p, (i, piece, a, b, c) in enumerate(zip(ids, pieces, starts, ends, known, strict=True))
    ]


def sae_reading(
    library: Library, sae: Sae, fired: Fired, n_tokens: int, shown: Shown, provenance: Provenance
) -> SaeReading:
    """The strongest features of each token and of the whole text, with labels."""
    tokens = _by_token(fired, n_tokens, shown.top)
    n_features, strongest = _by_feature(fired, shown.overall)
    indexes = {each.index for token in tokens for each in token} | {index for index, *_ in strongest}
    labels = labels_of(library, sae, sorted(indexes))
    return SaeReading(
        sae=sae.name,
        n_features=n_features,
        n_activations=len(fired.value),
        tokens=tokens,
        features=[
            ReadFeature(
                feature=f"{sae.name}/{index}",
                index=index,
                label=labels.get(index),
                activation=value,
                position=position,
                tokens=count,
            )
            for index, value, position, count in strongest
        ],
        labels=labels,
        provenance=provenance,
    )


def _by_token(fired: Fired, n_tokens: int, top: int) -> list[list[TokenFeature]]:
    """Each token's strongest features, strongest first, ties to the lower index."""
    order = np.lexsort((fired.feature, -fired.value, fired.position))
    begins = np.searchsorted(fired.position[order], np.arange(n_tokens + 1))
    return [
        [
            TokenFeature(index=int(fired.feature[i]), activation=float(fired.value[i]))
            for i in order[a : min(b, a + top)]
        ]
        for a, b in pairwise(begins)
    ]


def _by_feature(fired: Fired, most: int) -> tuple[int, list[tuple[int, float, int, int]]]:
    """How many features fire, and the strongest: (index, largest value, its position, tokens)."""
    order = np.lexsort((fired.position, -fired.value, fired.feature))
    features, first, count = np.unique(fired.feature[order], return_index=True, return_counts=True)
    best = order[first]
    ranked = np.lexsort((features, -fired.value[best]))[:most]
    return len(features), [
        (int(features[i]), float(fired.value[best[i]]), int(fired.position[best[i]]), int(count[i])) for i in ranked
    ]
