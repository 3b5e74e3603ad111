"""What every answer says of its making."""

from __future__ import annotations

from api.services.columns import Column
from schema.lookup import Source, Subject
from schema.records import Pool
from schema.wire.base import Provenance
from schema.wire.questions import DatasetCount


def provenance(subject: Subject, pool: Pool) -> Provenance:
    return Provenance(
        sae=subject.sae.name,
        sae_sha256=subject.sae.sha256,
        runs={name: source.run for name, source in zip(subject.names, subject.sources, strict=True)},
        pool=pool,
        mask=subject.mask,
        snapshot=subject.snapshot,
    )


def count_of(source: Source, n_features: int) -> DatasetCount:
    return DatasetCount(name=source.name, version=source.version, n_samples=source.n_samples, n_features=n_features)


def count_in(column: Column, n_features: int) -> DatasetCount:
    """The same of a dataset or a slice of one."""
    return DatasetCount(
        name=column.dataset,
        version=column.source.version,
        n_samples=column.n_samples,
        n_features=n_features,
        where=dict(column.where),
        where_not=dict(column.where_not),
    )
