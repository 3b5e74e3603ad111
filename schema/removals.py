"""Removing a run, a dataset or an SAE with everything of it.

SQL first: what it does not list does not exist. The removal itself is a row there, with the ranges of keys that nobody owns any more,
and takes a snapshot number of its own; so whoever dies before the store is trimmed, the next command trims it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import delete, func, or_, select
from sqlalchemy.orm import Session

from schema.audit import audit
from schema.errors import Conflict
from schema.home import Home
from schema.lab import Evaluation, Label, LabelComment, LabelEvent, LabelVote
from schema.layout import directions_table, feature_key, sample_key
from schema.ledger import LEASE_SECONDS, clock
from schema.snapshots import newest_snapshot
from schema.tables import Base, Dataset, Ranges, Removal, Run, RunSae, Sae, Segment, Setting, Shard, now
from schema.upkeep import maintain, remove_rows


@dataclass
class Doomed:
    """Everything that goes with what is to be removed."""

    kind: Literal["run", "dataset", "sae"]
    name: str
    runs: list[Run]
    pairs: list[RunSae]
    """Of those runs, and of an SAE in runs that stay."""
    datasets: list[Dataset] = field(default_factory=list)
    saes: list[Sae] = field(default_factory=list)
    evaluations: list[int] = field(default_factory=list)
    n_labels: int = 0

    smaller: dict[int, Counter[str]] = field(default_factory=dict)
    """Run that stays -> what its pairs take from its counts."""

    @property
    def n_bytes(self) -> int:
        """Of the runs, as they counted them, and of what goes from those that stay."""
        whole = sum(int(run.counts.get("bytes", 0)) for run in self.runs)
        return whole + sum(less["bytes"] for less in self.smaller.values())


def doomed_run(session: Session, run: Run) -> Doomed:
    return Doomed("run", str(run.id), [run], list(run.pairs))


def doomed_dataset(session: Session, name: str, versions: Sequence[Dataset]) -> Doomed:
    """These versions of a dataset, with their runs and the results of evaluations on them."""
    ids = [dataset.id for dataset in versions]
    runs = list(session.scalars(select(Run).where(Run.dataset_id.in_(ids)).order_by(Run.id)))
    results = list(session.scalars(select(Evaluation.id).where(Evaluation.dataset_id.in_(ids))))
    pairs = [pair for run in runs for pair in run.pairs]
    return Doomed("dataset", name, runs, pairs, datasets=list(versions), evaluations=results)


def doomed_sae(session: Session, sae: Sae) -> Doomed:
    """An SAE in every run; a run that has no other one goes, and one that is not finished too, to be made anew without it."""
    pairs = list(session.scalars(select(RunSae).where(RunSae.sae_id == sae.id).order_by(RunSae.id)))
    runs = [pair.run for pair in pairs if len(pair.run.pairs) == 1 or pair.run.finished is None]
    whole = {run.id for run in runs}
    pairs = [p for p in pairs if p.run_id not in whole] + [p for run in runs for p in run.pairs]
    smaller = {pair.run_id: _share(session, pair) for pair in pairs if pair.run_id not in whole}
    labels = select(func.count()).where(Label.sae_id == sae.id, Label.deleted_at.is_(None))
    n_labels = session.scalar(labels) or 0
    return Doomed("sae", sae.name, runs, pairs, saes=[sae], n_labels=n_labels, smaller=smaller)


def _share(session: Session, pair: RunSae) -> Counter[str]:
    """What of a finished run's counts is one pair's: its part of what each shard wrote, and all that was sealed for it.

    Runs of earlier versions did not count it by pairs; there the pairs divide activations evenly, and bytes by their postings.
    """
    found: Counter[str] = Counter()
    shards = select(Shard.kind, Shard.run_sae_id, Shard.stats).where(Shard.run_id == pair.run_id)
    for kind, sealed, stats in session.execute(shards):
        if kind == "encode" and stats:
            sizes = stats.get("held") or stats["postings"]
            whole = sum(sizes.values())
            found["bytes"] += round(stats["bytes"] * sizes.get(str(pair.id), 0) / whole) if whole else 0
            even = stats["activations"] // len(stats["postings"])
            found["activations"] += stats["fired"].get(str(pair.id), 0) if "fired" in stats else even
        elif sealed == pair.id and stats:
            found["bytes"] += stats["bytes"]
    return found


def remove(session: Session, doomed: Doomed, actor: str) -> Removal:
    """Takes it out of the database; `trim` does the rest. Inside `writing(alone=True)`.

    Raises:
        Conflict: it is being indexed right now.
    """
    _refuse_busy(session, doomed)
    run_ids = [run.id for run in doomed.runs]
    was_there = [[p.run.dataset.name, p.sae_id, p.run.finished] for p in doomed.pairs if p.run.finished is not None]
    made = Removal(
        kind=doomed.kind,
        name=doomed.name,
        snapshot=newest_snapshot(session) + 1 if was_there else None,
        pairs=was_there,
        rows=_ranges(session, doomed),
    )
    for run_id, less in doomed.smaller.items():
        run = session.get_one(Run, run_id)
        run.counts = {**run.counts, **{name: int(run.counts.get(name, 0)) - n for name, n in less.items()}}
    pair_ids = [pair.id for pair in doomed.pairs]
    _forget(session, Segment, Segment.run_sae_id, pair_ids)
    _forget(session, Shard, Shard.run_sae_id, pair_ids)
    _forget(session, Shard, Shard.run_id, run_ids)
    _forget(session, RunSae, RunSae.id, pair_ids)
    _forget(session, Run, Run.id, run_ids)
    _forget(session, Evaluation, Evaluation.id, doomed.evaluations)
    for sae in doomed.saes:
        _forget_sae(session, sae)
    for dataset in doomed.datasets:
        _forget(session, Shard, Shard.dataset_id, [dataset.id])
        _forget(session, Dataset, Dataset.id, [dataset.id])
    session.add(made)
    audit(session, actor, f"{doomed.kind}.remove", doomed.name, {"runs": run_ids, "labels": doomed.n_labels})
    return made


def trim(home: Home) -> int:
    """Removes from the store what removals have left there, of this call or of one that died.

    Returns:
        Removals that are still on the watch: who published rows while they were removed may have been late, so a range counts as
        trimmed once it was found empty longer than a lease after its removal.
    """
    with home.database.reading() as session:
        waiting = list(session.scalars(select(Removal).where(Removal.trimmed_at.is_(None)).order_by(Removal.id)))
        moment = clock(session)
    touched: set[str] = set()
    left = 0
    for removal in waiting:
        dirty = [table for table, ranges in removal.rows.items() if _trimmed(home, table, ranges)]
        touched.update(dirty)
        if dirty or moment - removal.created_at.timestamp() < LEASE_SECONDS:
            left += 1
            continue
        with home.database.writing() as session:
            session.get_one(Removal, removal.id).trimmed_at = now()
    for table in sorted(touched):
        maintain(home.store, table, home.ledger.idle)
    if touched:
        home.store.refresh()
    return left


def _trimmed(home: Home, table: str, ranges: Sequence[Sequence[int]]) -> bool:
    """Whether there was something to remove."""
    if not home.store.has(table):
        return False
    dirty = False
    for first, stop in ranges:
        if home.store.latest(table).count_rows(f"key >= {int(first)} AND key < {int(stop)}"):
            remove_rows(home.store, table, first, stop)
            dirty = True
    return dirty


def _refuse_busy(session: Session, doomed: Doomed) -> None:
    """A lease that has not lapsed is somebody's work."""
    owned = or_(
        Shard.run_id.in_([run.id for run in doomed.runs]),
        Shard.run_sae_id.in_([pair.id for pair in doomed.pairs]),
        Shard.dataset_id.in_([dataset.id for dataset in doomed.datasets]),
        Shard.sae_id.in_([sae.id for sae in doomed.saes]),
    )
    for shard in session.scalars(select(Shard).where(owned, Shard.state == "leased").with_for_update()):
        if (shard.leased_until or 0) >= clock(session):
            raise Conflict(
                f"{doomed.kind} {doomed.name} is being indexed by {shard.owner}; end that, or wait, and ask again"
            )


def _ranges(session: Session, doomed: Doomed) -> Ranges:
    """Every key that loses its owner."""
    pairs, runs = [pair.id for pair in doomed.pairs], [run.id for run in doomed.runs]
    segments = session.scalars(select(Segment.id).where(Segment.run_sae_id.in_(pairs))).all()
    ranges: Ranges = {
        "forward": _spans(sample_key, pairs),
        "parts": _spans(sample_key, pairs),
        "profiles": _spans(sample_key, pairs),
        "postings": _spans(feature_key, segments),
        "tokens": _spans(sample_key, runs),
        "samples": _spans(sample_key, [dataset.id for dataset in doomed.datasets]),
        "scores": [[key, key + 1] for key in doomed.evaluations],
        "logits": _spans(feature_key, [sae.id for sae in doomed.saes]),
    }
    for sae in doomed.saes:
        ranges.setdefault(directions_table(sae.d_model), []).extend(_spans(feature_key, [sae.id]))
    return {table: spans for table, spans in ranges.items() if spans}


def _spans(key: Any, owners: Iterable[int]) -> list[list[int]]:
    """[first, stop) of the keys of these owners, those of neighbours joined."""
    spans: list[list[int]] = []
    for owner in sorted(owners):
        first, stop = key(owner), key(owner + 1)
        if spans and spans[-1][1] == first:
            spans[-1][1] = stop
        else:
            spans.append([first, stop])
    return spans


def _forget_sae(session: Session, sae: Sae) -> None:
    labels = list(session.scalars(select(Label.id).where(Label.sae_id == sae.id)))
    for table, column in (
        (LabelEvent, LabelEvent.label_id),
        (LabelVote, LabelVote.label_id),
        (LabelComment, LabelComment.label_id),
        (Label, Label.id),
    ):
        _forget(session, table, column, labels)
    if labels:  # what is searched is made anew from the history that is left
        session.execute(delete(Setting).where(or_(Setting.name == "label_texts", Setting.name.like("label_vectors_%"))))
    _forget(session, Shard, Shard.sae_id, [sae.id])
    _forget(session, Sae, Sae.id, [sae.id])


def _forget(session: Session, table: type[Base], column: Any, ids: Sequence[int]) -> None:
    for begin in range(0, len(ids), 500):
        session.execute(delete(table).where(column.in_(ids[begin : begin + 500])))
