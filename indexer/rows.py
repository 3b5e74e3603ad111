"""Reading stored rows back as the texts that a recipe makes of them."""

from __future__ import annotations

import json
from dataclasses import dataclass

from schema.layout import sample_key
from schema.recipe import Recipe
from schema.store import Store


@dataclass(frozen=True)
class SampleText:
    """One sample as text."""

    ordinal: int
    id: str
    text: str


def sample_texts(store: Store, dataset: int, first: int, stop: int, recipe: Recipe) -> list[SampleText]:
    """The texts of samples [first, stop), in order."""
    found = []
    for batch in store.span("samples", sample_key(dataset, first), sample_key(dataset, stop)):
        for key, id_, record in zip(*(batch.column(name).to_pylist() for name in ("key", "id", "record")), strict=True):
            found.append(SampleText(key - sample_key(dataset), id_, recipe.render(json.loads(record))))
    return sorted(found, key=lambda sample: sample.ordinal)
