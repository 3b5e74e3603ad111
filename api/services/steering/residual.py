"""The difference of the mean residuals of two sets of texts, through the loaded model.

Each side is read in two halves, every other text: `agreement` is the cosine of the two halves' differences, near 0 where the
difference is chance.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.services.features.reading import DEFAULT_MASK
from api.services.library import Library
from api.services.rules.split import ranks
from api.services.slices import select_samples
from api.services.steering.made import Doubles, Made, finish
from api.services.steering.models import check_layers, find_model
from schema.deadline import check
from schema.errors import Conflict, InputError, NoModel, NotFound
from schema.layout import sample_key
from schema.live import LiveModel
from schema.lookup import Source, find_dataset, newest_snapshot
from schema.recipe import Recipe
from schema.tables import Model, Run, RunSae
from schema.wire.vectors import ResidualMeans, Sample, SaveVector

AT_ONCE = 32
"""Texts read in one turn, so that others who ask the model wait no longer."""


@dataclass
class Half:
    """Sums over some texts of one side."""

    n_texts: int = 0
    n_tokens: int = 0
    totals: dict[int, Doubles] = field(default_factory=dict)


@dataclass(frozen=True)
class Side:
    """The texts of one side: given, or stored samples in the order in which they were drawn."""

    texts: Sequence[str]
    source: Source | None = None
    drawn: npt.NDArray[np.int64] | None = None
    n_available: int | None = None


def residual_means(library: Library, live: LiveModel | None, body: SaveVector) -> Made:
    """One vector a layer.

    Raises:
        NoModel: none is loaded.
        NotFound: a dataset that is not there, or was not read by this model.
        InputError: a layer that the model does not have, sides that share samples, or a side without a token that counts.
    """
    assert body.residual_means is not None
    asked = body.residual_means
    if live is None:
        raise NoModel(
            "no model is loaded, so residuals cannot be read; take decoded_means from the index, or start "
            "'scopebase serve --model M'"
        )
    with library.home.database.reading() as session:
        model = find_model(session, live.name)
        check_layers(model, asked.layers, "residual_means")
        mask = asked.mask or _usual_mask(session, model)
        sides = [_side(library, session, model, each, asked.seed) for each in (asked.a, asked.b)]
        snapshot = newest_snapshot(session)
    _check_apart(*sides)
    halves = [_read(library, live, side, asked, mask) for side in sides]
    for name, (one, two) in zip("ab", halves, strict=True):
        if not one.n_tokens + two.n_tokens:
            raise InputError(f"residual_means.{name}: none of its tokens counts under mask {mask}; give longer texts")
    whole = [_mean_of(pair, asked.layers) for pair in halves]
    sums = {layer: whole[0][layer] - whole[1][layer] for layer in asked.layers}
    made = {
        "request": body.model_dump(mode="json", exclude_none=True),
        "model": {"name": model.name, "revision": model.revision},
        "mask": mask,
        "seed": asked.seed,
        "snapshot": snapshot,
        "sides": [_told(side, *pair) for side, pair in zip(sides, halves, strict=True)],
        "agreement": _agreement(halves, asked.layers),
        "mean_norms": {str(layer): [float(np.linalg.norm(each[layer])) for each in whole] for layer in asked.layers},
    }
    return finish(model, sums, body.normalise == "result", "residual_means", made)


def model_of(library: Library, dataset: str | None) -> Model:
    """The model that read a dataset; the home's only one without.

    Raises:
        NotFound: an unknown dataset.
        InputError: there are several.
    """
    with library.home.database.reading() as session:
        models = select(Model).order_by(Model.name)
        if dataset is not None:
            read = select(Run.model_id).where(Run.dataset_id == find_dataset(session, dataset).id)
            models = models.where(Model.id.in_(read))
        found = list(session.scalars(models))
    if len(found) != 1:
        names = ", ".join(model.source for model in found)
        raise InputError(f"name a model with --model: {names}" if names else "the home has no model yet")
    return found[0]


def _usual_mask(session: Session, model: Model) -> str:
    """Of the model's newest run."""
    runs = select(Run.recipe).where(Run.model_id == model.id, Run.finished.is_not(None))
    recipe = session.scalars(runs.order_by(Run.finished.desc()).limit(1)).first()
    return Recipe(**recipe).mask if recipe else DEFAULT_MASK


def _side(library: Library, session: Session, model: Model, asked: list[str] | Sample, seed: int) -> Side:
    if not isinstance(asked, Sample):
        return Side(asked)
    source = _source(session, model, asked.dataset)
    found = select_samples(library, source, asked.where)
    if not len(found):
        raise InputError(f"no sample of {asked.dataset} meets {json.dumps(asked.where)}")
    order = np.argsort(ranks(library, source, seed)[found], kind="stable")
    return Side([], source, found[order][: asked.n], len(found))


def _source(session: Session, model: Model, name: str) -> Source:
    """The newest run of this model over a dataset, whatever SAEs it had."""
    dataset = find_dataset(session, name)
    runs = (
        select(RunSae.id, Run.id, Run.recipe)
        .join(Run, RunSae.run_id == Run.id)
        .where(Run.dataset_id == dataset.id, Run.model_id == model.id, Run.finished.is_not(None))
        .order_by(Run.finished.desc())
    )
    found = session.execute(runs.limit(1)).first()
    if found is None:
        raise NotFound(f"dataset {name!r} was not read by {model.name} ('scopebase runs' lists what was)")
    pair, run, recipe = found
    return Source(pair, run, dataset.name, dataset.version, dataset.id, dataset.n_samples, Recipe(**recipe))


def _check_apart(a: Side, b: Side) -> None:
    if a.source is None or b.source is None or a.source.dataset_id != b.source.dataset_id:
        return
    assert a.drawn is not None
    assert b.drawn is not None
    shared = len(np.intersect1d(a.drawn, b.drawn))
    if shared:
        raise Conflict(
            f"both sides have {shared:,} samples of {a.source.name} in common and cannot be compared; give each a where of its own"
        )


def _read(library: Library, live: LiveModel, side: Side, asked: ResidualMeans, mask: str) -> tuple[Half, Half]:
    halves = (Half(), Half())
    for place, texts in _pieces(library, side):
        check()
        means = live.means(texts, asked.layers, mask=mask, max_tokens=asked.max_tokens, last=asked.tokens == "last")
        half = halves[place]
        half.n_texts += means.n_texts
        half.n_tokens += means.n_tokens
        for layer, mean in means.mean.items():
            half.totals[layer] = half.totals.get(layer, 0.0) + mean * means.n_tokens
    return halves


def _pieces(library: Library, side: Side) -> Iterator[tuple[int, list[str]]]:
    """Texts a few at a time, each with its half: every other text."""
    n = len(side.texts) if side.drawn is None else len(side.drawn)
    for half in (0, 1):
        own = range(half, n, 2)
        for begin in range(0, len(own), AT_ONCE):
            yield half, _texts(library, side, own[begin : begin + AT_ONCE])


def _texts(library: Library, side: Side, places: Sequence[int]) -> list[str]:
    if side.source is None or side.drawn is None:
        return [side.texts[place] for place in places]
    keys = [sample_key(side.source.dataset_id, int(side.drawn[place])) for place in places]
    rows = library.store.rows("samples", keys, ["record"])
    return [side.source.recipe.render(json.loads(record)) for record in rows.column("record").to_pylist()]


def _mean_of(pair: Sequence[Half], layers: Sequence[int]) -> dict[int, Doubles]:
    n = sum(half.n_tokens for half in pair)
    return {layer: np.sum([half.totals[layer] for half in pair if half.totals], axis=0) / n for layer in layers}


def _agreement(halves: Sequence[tuple[Half, Half]], layers: Sequence[int]) -> dict[str, float] | None:
    """Layer -> cosine of the two halves' differences; None where a half has no token."""
    if any(not half.n_tokens for pair in halves for half in pair):
        return None
    found = {}
    for layer in layers:
        one, two = (
            halves[0][i].totals[layer] / halves[0][i].n_tokens - halves[1][i].totals[layer] / halves[1][i].n_tokens
            for i in (0, 1)
        )
        length = float(np.linalg.norm(one) * np.linalg.norm(two))
        found[str(layer)] = float(one @ two / length) if length else 0.0
    return found


def _told(side: Side, one: Half, two: Half) -> dict[str, Any]:
    told: dict[str, Any] = {"n_texts": one.n_texts + two.n_texts, "n_tokens": one.n_tokens + two.n_tokens}
    if side.source is not None and side.drawn is not None:
        told |= {
            "dataset": f"{side.source.name}@{side.source.version}",
            "run": side.source.run,
            "n_drawn": len(side.drawn),
            "n_available": side.n_available,
        }
    return told
