"""What a rule reads: several SAEs of one model over the same samples of some datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import distinct, func, select
from sqlalchemy.orm import Session

from api.services.library import Library
from schema.errors import Conflict, InputError
from schema.lookup import Source, find_sources
from schema.names import parse_dataset
from schema.records import Pool
from schema.tables import Dataset, Run, RunSae, Sae, Segment
from schema.wire.discovery import RuleProvenance


@dataclass(frozen=True)
class Layer:
    """One SAE over the datasets of a question."""

    sae: Sae
    sources: list[Source]
    """In the order of the datasets."""
    segments: Mapping[int, list[Segment]]
    """Pair -> its segments."""


@dataclass(frozen=True)
class Ground:
    """Every layer over the same datasets; `datasets` are those of the first layer."""

    layers: list[Layer]
    names: list[str]
    """What answers call the datasets."""
    snapshot: int
    mask: str

    @property
    def datasets(self) -> list[Source]:
        return self.layers[0].sources

    def layer(self, sae: str) -> Layer:
        return next(layer for layer in self.layers if layer.sae.name == sae)

    def provenance(self, pool: Pool, sae: str | None = None) -> RuleProvenance:
        """Of an answer over all its layers.

        Args:
            sae: the one that speaks for them; the first unless given.
        """
        first = self.layer(sae) if sae else self.layers[0]
        return RuleProvenance(
            sae=first.sae.name,
            sae_sha256=first.sae.sha256,
            saes={layer.sae.name: layer.sae.sha256 for layer in self.layers},
            runs={name: source.run for name, source in zip(self.names, first.sources, strict=True)},
            pool=pool,
            mask=self.mask,
            snapshot=self.snapshot,
        )


def find_ground(session: Session, saes: Sequence[str], datasets: Sequence[str], as_of: int | None = None) -> Ground:
    """The stored activations that a question over these SAEs and datasets reads.

    Raises:
        NotFound, Conflict: see `schema.lookup.find_sources`.
        InputError: SAEs of different models.
        Conflict: the SAEs were run over a dataset in different ways, so that their samples do not match.
    """
    names, wanted = [*dict.fromkeys(saes)], [*dict.fromkeys(datasets)]
    subjects = [find_sources(session, name, wanted, as_of) for name in names]
    models = {subject.sae.model.name: subject.sae.name for subject in subjects}
    if len(models) > 1:
        raise InputError(f"{' and '.join(models.values())} are SAEs of different models; a rule reads one model")
    for subject in subjects:
        _check_alike(subjects[0].sae, subjects[0].sources, subject.sae, subject.sources)
    pairs = [source.pair for subject in subjects for source in subject.sources]
    segments: dict[int, list[Segment]] = {pair: [] for pair in pairs}
    query = select(Segment).where(Segment.run_sae_id.in_(pairs)).order_by(Segment.run_sae_id, Segment.first)
    for segment in session.scalars(query):
        segments[segment.run_sae_id].append(segment)
    layers = [
        Layer(subject.sae, subject.sources, {source.pair: segments[source.pair] for source in subject.sources})
        for subject in subjects
    ]
    return Ground(layers, subjects[0].names, subjects[0].snapshot, subjects[0].mask)


def _check_alike(sae: Sae, sources: Sequence[Source], other: Sae, others: Sequence[Source]) -> None:
    for a, b in zip(sources, others, strict=True):
        if a.dataset_id != b.dataset_id or a.recipe != b.recipe:
            raise Conflict(
                f"{sae.name} and {other.name} were run over {a.name} with different rows or recipes; "
                "index the dataset with both in one command"
            )


def saes_of(library: Library, datasets: Sequence[str]) -> list[str]:
    """The SAEs that all of the datasets were indexed with, by layer.

    Raises:
        InputError: none, or of several sets, so that one must be named.
    """
    names = {parse_dataset(text).name for text in datasets}
    query = (
        select(Sae.name, Sae.model_id, Sae.set_name)
        .join(RunSae, RunSae.sae_id == Sae.id)
        .join(Run, Run.id == RunSae.run_id)
        .join(Dataset, Dataset.id == Run.dataset_id)
        .where(Run.finished.is_not(None), Dataset.name.in_(names))
        .group_by(Sae.id, Sae.name, Sae.model_id, Sae.set_name, Sae.layer)
        .having(func.count(distinct(Dataset.name)) == len(names))
        .order_by(Sae.layer)
    )
    with library.home.database.reading() as session:
        found = session.execute(query).all()
    if not found:
        raise InputError(f"no SAE has all of {', '.join(sorted(names))} ('scopebase runs' lists what was indexed)")
    sets = {(model, set_name): name for name, model, set_name in found}
    if len(sets) > 1:
        raise InputError(
            f"the datasets were indexed with SAEs of several sets; name some with --sae, like {' or '.join(sets.values())}"
        )
    return [name for name, _, _ in found]
