"""What an explainer model is shown of a feature: its strongest samples, and for the score others that fire it and some that do not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from api.services.evidence import proofs
from api.services.labels import asking
from api.services.labels.asking import Messages
from api.services.labels.contrast_texts import quiet_texts
from api.services.labels.describer import promoted_by, sources_of
from api.services.library import Library
from schema.lookup import Source, find_sae, segments_of
from schema.tables import Sae, Segment
from schema.wire.questions import SampleProof

BATCH = 16
"""Features whose samples are read at once."""


@dataclass(frozen=True)
class Subject:
    """An SAE and all that was indexed with it."""

    sae: Sae
    sources: list[Source]
    segments: list[list[Segment]]


@dataclass(frozen=True)
class Question:
    """What is asked about one feature; nothing more is read from the stores for it."""

    feature: int
    messages: Messages
    shown: list[SampleProof]
    mixed: list[tuple[str, bool]]
    """Texts of the score, in the order asked, and whether each fires the feature; none for no score."""

    @property
    def n_requests(self) -> int:
        return 2 if self.mixed else 1


def find_subject(library: Library, sae: str | None) -> Subject:
    """Raises NotFound, InputError: see `schema.lookup.find_sae`."""
    with library.home.database.reading() as session:
        found = find_sae(session, sae)
        sources = sources_of(session, found)
        return Subject(found, sources, [segments_of(session, source.pair) for source in sources])


def questions(
    library: Library, subject: Subject, features: Sequence[int], shown: int, scored: int, seed: int
) -> Iterator[Question]:
    """The question about each feature, read as they are asked for.

    Args:
        shown: samples shown to the model.
        scored: held-out samples for the score, and as many that do not fire; 0 for no score.
    """
    for begin in range(0, len(features), BATCH):
        batch = features[begin : begin + BATCH]
        found = _samples(library, subject, batch, shown + scored)
        promoted = promoted_by(library.store, subject.sae, batch)
        for feature in batch:
            held = found[feature][1::2][:scored] if scored else []  # by turns, so that both are as strong
            seen = [sample for sample in found[feature] if sample not in held][:shown]
            mixed = _mixed(library, subject, feature, held, seed) if held else []
            yield Question(feature, asking.explanation(seen, promoted.get(feature, [])), seen, mixed)


def _mixed(
    library: Library, subject: Subject, feature: int, held: list[SampleProof], seed: int
) -> list[tuple[str, bool]]:
    """Held-out texts among as many silent ones of the same datasets; none where no sample is silent."""
    silent = quiet_texts(library, subject.sources, subject.segments, feature, [s.dataset for s in held], seed)
    if not silent:
        return []
    texts = [(asking.plain(sample), True) for sample in held] + [(text, False) for text in silent]
    return [texts[i] for i in np.random.default_rng([seed, feature]).permutation(len(texts))]


def _samples(library: Library, subject: Subject, features: Sequence[int], n: int) -> dict[int, list[SampleProof]]:
    """The strongest samples of each feature over all datasets, strongest first."""
    found: dict[int, list[SampleProof]] = {feature: [] for feature in features}
    for source, segments in zip(subject.sources, subject.segments, strict=True):
        for feature, each in proofs(library, source, segments, list(features), "any", n).items():
            found[feature] += each
    return {f: sorted(each, key=lambda s: (-s.activation, s.dataset, s.id))[:n] for f, each in found.items()}
