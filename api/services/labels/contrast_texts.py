"""Texts in which a feature does not fire, for a label to be told from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

import numpy as np

from api.services.firing import postings
from api.services.labels.asking import AROUND, one_line
from api.services.library import Library
from schema.layout import sample_key
from schema.lookup import Source
from schema.tables import Segment


def quiet_texts(
    library: Library,
    sources: Sequence[Source],
    segments: Sequence[Sequence[Segment]],
    feature: int,
    datasets: Sequence[str],
    seed: int,
) -> list[str]:
    """A stretch of a random sample that does not fire the feature, for each of the datasets named; fewer where nearly all do."""
    rng = np.random.default_rng([seed, feature, 1])
    texts = []
    for source, own in zip(sources, segments, strict=True):
        wanted = Counter(datasets)[source.name]
        if not wanted:
            continue
        firing = postings(library.store, own, [feature], "any")[feature].ordinals
        silent = np.setdiff1d(np.arange(source.n_samples), firing, assume_unique=True)
        silent = rng.choice(silent, min(wanted, len(silent)), replace=False).tolist()
        rows = library.store.rows("samples", [sample_key(source.dataset_id, o) for o in silent], ["record"])
        for record in rows.column("record").to_pylist():
            text = source.recipe.render(json.loads(record))
            begin = int(rng.integers(max(1, len(text) - 2 * AROUND)))
            texts.append(one_line(text[begin : begin + 2 * AROUND]))
    return texts
