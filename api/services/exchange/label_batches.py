"""Labels as Neuronpedia's v1 export lays its explanations out: `explanations/batch-<n>.jsonl.gz`, each of 1,024 features."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from api.services.exchange.files import lines
from api.services.labels.book import Filter
from api.services.labels.explanations import FEATURES_A_BATCH, write
from api.services.labels.export import check_export, pages
from api.services.library import Library
from schema.errors import Conflict
from schema.lab import Label
from schema.tables import Sae


def write_batches(library: Library, which: Filter, folder: Path) -> tuple[int, int]:
    """Writes the labels of one SAE; batch n has those of the features from 1,024 n on, and none is written that would be empty.

    Returns:
        How many labels, in how many files.

    Raises:
        NotFound, InputError: no such SAE, or none is named.
        Conflict: batches are there already.
    """
    check_export(library, which, "neuronpedia", None)
    place = folder / "explanations"
    if place.exists() and any(place.iterdir()):
        raise Conflict(f"{place} holds files already, which would be mixed with these; choose an empty place")
    n_labels = n_files = 0
    for batch, each in groupby(_labels(library, which), lambda pair: pair[0].feature // FEATURES_A_BATCH):
        with lines(place / f"batch-{batch}.jsonl.gz") as file:
            for label, sae in each:
                file.write(json.dumps(write(label, sae), ensure_ascii=False) + "\n")
                n_labels += 1
        n_files += 1
    return n_labels, n_files


def _labels(library: Library, which: Filter) -> Iterator[tuple[Label, Sae]]:
    for page in pages(library, which, None, by_feature=True):
        yield from page
