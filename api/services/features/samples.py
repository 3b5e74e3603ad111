"""A stored sample and what it fires, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from api.services.evidence import Place, read_details, read_texts
from api.services.features.reading import Shown, find_saes, read_tokens, sae_reading
from api.services.library import Library
from api.services.provenance import provenance
from schema.errors import NotFound
from schema.layout import SAMPLE_BITS, sample_key
from schema.live import Fired
from schema.lookup import Source, Subject, find_sources
from schema.packing import Detail
from schema.store import Store
from schema.wire.reading import SaeReading, SampleAnswer


def stored_sample(
    library: Library,
    dataset: str,
    id_: str,
    saes: Sequence[str],
    top: int = 8,
    overall: int = 20,
    as_of: int | None = None,
) -> SampleAnswer:
    """One sample, as it came and as several SAEs saw it.

    Raises:
        NotFound: an unknown dataset, sample or SAE, or a dataset that was not indexed with it.
    """
    with library.home.database.reading() as session:
        found = find_saes(session, None, saes)
        subjects = [find_sources(session, sae.name, [dataset], as_of) for sae in found]
    source = subjects[0].sources[0]
    places = [Place(subject.sources[0], _ordinal(library.store, subject.sources[0], id_)) for subject in subjects]
    text = read_texts(library.store, places[:1])[places[0].key]
    details = read_details(library.store, places)
    n_tokens, shown = len(text.token_ids), Shown(top, overall)
    return SampleAnswer(
        dataset=source.name,
        version=source.version,
        id=id_,
        record=dict[str, Any](text.record),
        text=text.text,
        tokens=read_tokens(text.token_ids, _pieces(text.text, text.starts, text.ends), text.starts, text.ends, None),
        n_tokens=n_tokens,
        n_counting=_counting(library.store, places[0]),
        saes=[
            _reading(library, subject, details[place.key], n_tokens, shown)
            for subject, place in zip(subjects, places, strict=True)
        ],
    )


def _ordinal(store: Store, source: Source, id_: str) -> int:
    """The place of a sample in its dataset; the first, where rows share an id."""
    first, stop = sample_key(source.dataset_id), sample_key(source.dataset_id + 1)
    quoted = id_.replace("'", "''")
    table = store.table("samples")
    keys = table.to_table(columns=["key"], filter=f"key >= {first} AND key < {stop} AND id = '{quoted}'")
    if not len(keys):
        raise NotFound(f"dataset {source.name} has no sample {id_!r}; samples are named by their id")
    return int(min(keys.column("key").to_pylist())) & ((1 << SAMPLE_BITS) - 1)


def _counting(store: Store, place: Place) -> int:
    return int(store.rows("forward", [place.key], ["n_tokens"]).column("n_tokens")[0].as_py())


def _pieces(text: str, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> list[str]:
    return [text[a:b] for a, b in zip(starts, ends, strict=True)]


def _reading(library: Library, subject: Subject, detail: Detail, n_tokens: int, shown: Shown) -> SaeReading:
    fired = Fired(detail.position, detail.feature, detail.value)
    return sae_reading(library, subject.sae, fired, n_tokens, shown, provenance(subject, "any"))
