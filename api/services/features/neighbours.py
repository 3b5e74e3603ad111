"""Features near a feature: by direction, by firing together, by avoiding each other; in its own SAE, in other layers, in other SAEs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.services.features.chosen import rank
from api.services.features.coactivation import Coactivation, coactivation, draw
from api.services.features.directions import Direction, nearest, no_directions, read_direction
from api.services.library import Library
from api.services.provenance import provenance
from schema.errors import Conflict, InputError
from schema.labels import best_labels
from schema.lookup import Source, Subject, find_all_sources, find_feature, find_sae, find_sources, segments_by_pair
from schema.records import Pool
from schema.tables import Run, RunSae, Sae
from schema.wire.features import Neighbour, NeighbourKind, NeighboursAnswer, Together

MOST_SAES = 128


@dataclass(frozen=True)
class Question:
    """What is asked of a feature's neighbours."""

    by: NeighbourKind = "cosine"
    saes: Sequence[str] = ()
    """Where to look; in the feature's own SAE unless given."""
    layers: bool = False
    """In the SAEs of all layers of its set."""
    pool: Pool = "any"
    datasets: Sequence[str] = ()
    limit: int = 10
    samples: int = 2_000
    """Samples read at most, for co-activation and rivals."""
    seed: int = 0
    as_of: int | None = None


def neighbours(library: Library, feature: str, question: Question) -> NeighboursAnswer:
    """The nearest features in each SAE asked for.

    Raises:
        NotFound, InputError: an unknown feature, SAE or dataset.
        Conflict: directions of another width, or an SAE without a run over the same datasets.
    """
    with library.home.database.reading() as session:
        sae, index = find_feature(session, feature)
        subject = _subject(session, sae, question)
        targets = _targets(session, sae, question)
    if question.by == "cosine":
        return _by_cosine(library, subject, index, targets, question)
    return _by_firing(library, subject, index, targets, question)


def _subject(session: Session, sae: Sae, question: Question) -> Subject:
    if question.datasets:
        return find_sources(session, sae.name, question.datasets, question.as_of)
    return find_all_sources(session, sae.name, question.as_of)[0]


def _targets(session: Session, sae: Sae, question: Question) -> list[Sae]:
    """The SAEs to look in."""
    if question.layers:
        same = select(Sae).where(Sae.model_id == sae.model_id, Sae.set_name == sae.set_name).order_by(Sae.layer)
        return list(session.scalars(same))
    if len(question.saes) > MOST_SAES:
        raise InputError(f"name at most {MOST_SAES} SAEs")
    return [find_sae(session, name) for name in dict.fromkeys(question.saes)] or [sae]


def _by_cosine(
    library: Library, subject: Subject, index: int, targets: Sequence[Sae], question: Question
) -> NeighboursAnswer:
    sae = subject.sae
    unlike = next((t for t in targets if t.d_model != sae.d_model), None)
    if unlike is not None:
        raise Conflict(
            f"{unlike.name} has directions of width {unlike.d_model}, {sae.name} of width {sae.d_model}: no cosine between them"
        )
    direction = read_direction(library, sae, index)
    if direction is None:
        raise no_directions(sae)
    data: list[Neighbour] = []
    for target in targets:
        own = index if target.id == sae.id else None
        data += labelled(library, target, cosines(library, target, direction, question.limit, own))[0]
    return NeighboursAnswer(
        feature=f"{sae.name}/{index}",
        by="cosine",
        data=data,
        n_fired=None,
        n_read=None,
        n_tested={},
        seed=question.seed,
        provenance=provenance(subject, question.pool),
    )


def _by_firing(
    library: Library, subject: Subject, index: int, targets: Sequence[Sae], question: Question
) -> NeighboursAnswer:
    sae = subject.sae
    with library.home.database.reading() as session:
        segments = segments_by_pair(session, [s.pair for s in subject.sources])
        elsewhere = [_same_texts(session, subject, target) for target in targets]
    ranked = rank(library, subject.sources, segments, index, question.pool)
    drawn = draw(ranked, question.samples, question.seed)
    data, tested = [], {}
    for target, sources in zip(targets, elsewhere, strict=True):
        found = coactivation(library, sources, drawn, target.d_sae, len(ranked), question.pool)
        own = index if target.id == sae.id else None
        near = pairs(target, found, question.limit, rivals=question.by == "rivals", without=own)
        data += labelled(library, target, near)[0]
        tested[target.name] = len(found.features)
    return NeighboursAnswer(
        feature=f"{sae.name}/{index}",
        by=question.by,
        data=data,
        n_fired=len(ranked),
        n_read=sum(len(o) for o in drawn),
        n_tested=tested,
        seed=question.seed,
        provenance=provenance(subject, question.pool),
    )


def _same_texts(session: Session, subject: Subject, target: Sae) -> list[Source]:
    """The runs in which another SAE read the very samples of a subject, under the same recipe."""
    if target.id == subject.sae.id:
        return subject.sources
    found = []
    for source in subject.sources:
        runs = (
            select(RunSae.id, Run)
            .join(Run)
            .where(RunSae.sae_id == target.id, Run.dataset_id == source.dataset_id, Run.finished <= subject.snapshot)
            .order_by(Run.finished.desc())
        )
        alike = [(pair, run) for pair, run in session.execute(runs) if run.recipe == source.recipe.as_dict()]
        if not alike:
            raise Conflict(
                f"{target.name} has not read dataset {source.name} as {subject.sae.name} has; index it so, or choose with dataset="
            )
        pair, run = alike[0]
        found.append(
            Source(pair, run.id, source.name, source.version, source.dataset_id, source.n_samples, source.recipe)
        )
    return found


def pairs(target: Sae, found: Coactivation, limit: int, *, rivals: bool, without: int | None) -> list[Neighbour]:
    """The strongest of a co-activation."""
    chosen = found.strongest(limit, rivals=rivals, without=without)
    return [_neighbour(target, feature, together=together) for feature, together in chosen]


def cosines(library: Library, target: Sae, direction: Direction, limit: int, without: int | None) -> list[Neighbour]:
    """The nearest directions."""
    found = nearest(library, target, direction.unit, limit, without)
    return [_neighbour(target, feature, cosine=cosine) for feature, cosine in found]


def labelled(library: Library, sae: Sae, *lists: list[Neighbour]) -> list[list[Neighbour]]:
    """The same with their best labels, which are read at once."""
    labels = labels_of(library, sae, [each.index for near in lists for each in near])
    return [[each.model_copy(update={"label": labels.get(each.index)}) for each in near] for near in lists]


def labels_of(library: Library, sae: Sae, features: Sequence[int]) -> dict[int, str]:
    """Feature -> its best label's text."""
    with library.home.database.reading() as session:
        return {feature: label.text for feature, label in best_labels(session, sae.id, features).items()}


def _neighbour(sae: Sae, feature: int, cosine: float | None = None, together: Together | None = None) -> Neighbour:
    return Neighbour(
        feature=f"{sae.name}/{feature}", sae=sae.name, index=feature, label=None, cosine=cosine, together=together
    )
