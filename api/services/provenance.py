"""What every answer says of its making."""

from __future__ import annotations

from schema.lookup import Source, Subject
from schema.records import Pool
from schema.wire.base import Provenance
from schema.wire.questions import DatasetCount


def provenance(subject: Subject, pool: Pool) -> Provenance:
    return Provenance(
        sae=subject.sae.name,
        sae_sha256=subject.sae.sha256,
        runs={
            source.name if source.name not in _twice(subject) else f"{source.name}@{source.version}": source.run
            for source in subject.sources
        },
        pool=pool,
        mask=subject.mask,
        snapshot=subject.snapshot,
    )


def count_of(source: Source, n_features: int) -> DatasetCount:
    return DatasetCount(name=source.name, version=source.version, n_samples=source.n_samples, n_features=n_features)


def _twice(subject: Subject) -> set[str]:
    """Datasets of which a question names two versions."""
    names = [source.name for source in subject.sources]
    return {name for name in names if names.count(name) > 1}
