"""The shard ledger: who works on what, and what is committed. The SQL half of exactly-once (the other is `schema.publish`).

    open -> leased -> staged -> committed

A worker leases a shard with a fencing token that grows with every lease; whatever it later says of the shard is heard only if its token is
still the shard's. Nothing is lost with a worker: its lease lapses (at once, where it died on this host) and the shard is open again.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
from sqlalchemy import ColumnElement, Update, and_, func, or_, select, text, update
from sqlalchemy.orm import Session

from schema.database import Database
from schema.errors import LeaseLost, ScopebaseError
from schema.publish import Staged
from schema.snapshots import newest_snapshot
from schema.tables import Run, RunSae, Segment, Shard, now

LEASE_SECONDS = 60.0
KINDS = ("samples", "directions", "encode", "seal")
"""What a run waits for, in the order in which it is done."""
UNFINISHED = ("open", "leased", "staged")
SEGMENT_POSTINGS = 4_000_000
"""Postings sealed at a time: bounds the memory of sealing to about 100 MB."""


def owner_name() -> str:
    """This process, so that another on the same host can tell whether it still lives."""
    return f"{socket.gethostname()}:{os.getpid()}:{psutil.Process().create_time():.0f}"


def owner_died(owner: str) -> bool:
    """True only where it is certain: the owner ran on this host and its process is gone."""
    host, pid, born = owner.rsplit(":", 2)
    if host != socket.gethostname():
        return False
    try:
        process = psutil.Process(int(pid))
        return process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - float(born)) > 2
    except psutil.NoSuchProcess:
        return True


def clock(session: Session) -> float:
    """Seconds since the epoch by the database's clock, so that workers on several hosts agree."""
    if session.get_bind().dialect.name == "postgresql":
        return float(session.scalar(text("SELECT extract(epoch FROM clock_timestamp())")) or 0)
    return time.time()


@dataclass(frozen=True)
class Tally:
    """How far a run is."""

    open: int
    """Shards that wait for a worker."""
    encoded: int
    """Samples whose shards are committed."""
    finished: bool


class Ledger:
    """The ledger as one worker sees it."""

    def __init__(self, database: Database, owner: str | None = None) -> None:
        self.database = database
        self.owner = owner or owner_name()

    def lease(self, run_id: int, kinds: Collection[str] = KINDS) -> Shard | None:
        """The next piece of work that a run needs, or None where all of it is done or in other hands.

        The dataset's rows come first, then the SAEs' directions, then the run's own shards.

        Args:
            kinds: what this worker can do.
        """
        with self.database.writing() as session:
            run = session.get_one(Run, run_id)
            for kind, condition in _needed(run).items():
                shard = self._take(session, condition) if kind in kinds else None
                if shard is not None:
                    return shard
                if kind == "samples" and _unfinished(session, condition):
                    return None  # another worker writes the rows that everything else reads
        return None

    def lease_logits(self, sae_ids: Sequence[int]) -> Shard | None:
        """The logits of one of these SAEs, if they are still to be made and in nobody's hands."""
        with self.database.writing() as session:
            return self._take(session, and_(Shard.kind == "logits", Shard.sae_id.in_(sae_ids)))

    def _take(self, session: Session, condition: ColumnElement[bool]) -> Shard | None:
        moment = clock(session)
        lapsed = and_(Shard.state == "leased", Shard.leased_until < moment)
        for free in (Shard.state == "open", lapsed):  # apart, so that each is found by an index
            first = select(Shard.id).where(condition, free).order_by(Shard.ordinal).limit(1)
            change = (
                update(Shard)
                .where(Shard.id == first.with_for_update(skip_locked=True).scalar_subquery())
                .values(state="leased", token=Shard.token + 1, owner=self.owner, leased_until=moment + LEASE_SECONDS)
                .returning(Shard)
            )
            taken = session.scalars(change).one_or_none()
            if taken is not None:
                return taken
        return None

    def reclaim(self) -> int:
        """Opens the shards of workers that died on this host."""
        with self.database.writing() as session:
            leased = session.execute(select(Shard.id, Shard.owner, Shard.token).where(Shard.state == "leased")).all()
            dead = [(id_, token) for id_, owner, token in leased if owner and owner_died(owner)]
            for id_, token in dead:
                session.execute(
                    update(Shard).where(Shard.id == id_, Shard.token == token).values(state="open", owner=None)
                )
        return len(dead)

    def holders(self, run_id: int) -> list[str]:
        """Who else holds work that the run waits for."""
        with self.database.reading() as session:
            run = session.get_one(Run, run_id)
            held = select(Shard.owner).where(or_(*_needed(run).values()), Shard.state == "leased").distinct()
            return sorted(owner for owner in session.scalars(held) if owner)

    def free(self, owner: str) -> int:
        """Opens what a worker holds that was given up, wherever it ran. Should it be alive, nobody hears it any more."""
        with self.database.writing() as session:
            held = update(Shard).where(Shard.owner == owner, Shard.state == "leased").values(state="open", owner=None)
            return len(session.execute(held.returning(Shard.id)).all())

    def held(self, owners: Collection[str]) -> dict[str, str]:
        """Worker -> the kind of shard that it has in hands."""
        with self.database.reading() as session:
            leased = select(Shard.owner, Shard.kind).where(Shard.state == "leased", Shard.owner.in_(owners))
            return {str(owner): kind for owner, kind in session.execute(leased)}

    def tally(self, run_ids: Collection[int]) -> dict[int, Tally]:
        """How far each of these runs is."""
        counted = (
            select(Shard.run_id, Shard.kind, Shard.state, func.count(), func.sum(Shard.stop - Shard.first))
            .where(Shard.run_id.in_(run_ids))
            .group_by(Shard.run_id, Shard.kind, Shard.state)
        )
        waiting, encoded = dict.fromkeys(run_ids, 0), dict.fromkeys(run_ids, 0)
        with self.database.reading() as session:
            finished = set(session.scalars(select(Run.id).where(Run.id.in_(run_ids), Run.finished.is_not(None))))
            for run, kind, state, n, samples in session.execute(counted):
                assert run is not None
                waiting[run] += n if state == "open" else 0
                encoded[run] += int(samples) if (kind, state) == ("encode", "committed") else 0
        return {run: Tally(waiting[run], encoded[run], run in finished) for run in run_ids}

    @contextmanager
    def holding(self, shard: Shard) -> Iterator[None]:
        """Keeps a lease alive while its work goes on; gives it back if the work fails."""
        stop = threading.Event()
        beat = threading.Thread(target=self._beat, args=(shard.id, shard.token, stop), daemon=True)
        beat.start()
        try:
            yield
        except BaseException:
            stop.set()
            beat.join()
            self._release(shard)
            raise
        finally:
            stop.set()
            beat.join()

    def _beat(self, shard_id: int, token: int, stop: threading.Event) -> None:
        while not stop.wait(LEASE_SECONDS / 4):
            try:
                with self.database.writing() as session:
                    session.execute(_mine(shard_id, token).values(leased_until=clock(session) + LEASE_SECONDS))
            except ScopebaseError:
                continue  # the database may come back before the lease lapses

    def _release(self, shard: Shard) -> None:
        try:
            with self.database.writing() as session:
                session.execute(_mine(shard.id, shard.token).values(state="open", owner=None))
        except ScopebaseError:
            return  # the lease lapses by itself

    def stage(self, shard: Shard, staged: Staged, stats: dict[str, object]) -> None:
        """Hands the shard's fragments over for publication.

        Raises:
            LeaseLost: another worker holds the shard by now; the fragments are not wanted.
        """
        with self.database.writing() as session:
            change = _mine(shard.id, shard.token).values(state="staged", staged=staged, stats=stats)
            if session.execute(change.returning(Shard.id)).first() is None:
                raise LeaseLost(f"shard {shard.id} was taken over by another worker")

    def staged(self) -> list[Shard]:
        """All shards that wait for publication, of any run."""
        with self.database.reading() as session:
            return list(session.scalars(select(Shard).where(Shard.state == "staged").order_by(Shard.id)))

    def idle(self) -> bool:
        """Nothing is leased or staged anywhere, so maintenance may touch files. A lease that has lapsed is nobody's."""
        with self.database.reading() as session:
            held = and_(Shard.state == "leased", Shard.leased_until >= clock(session))
            return not session.scalar(select(func.count()).where(or_(Shard.state == "staged", held)))

    def commit(self, shards: list[Shard]) -> None:
        """Marks published shards, opens what they were waited for, and finishes runs whose every shard is committed."""
        with self.database.writing(alone=True) as session:
            for shard in shards:
                mark = update(Shard).where(Shard.id == shard.id, Shard.token == shard.token, Shard.state == "staged")
                session.execute(mark.values(state="committed", staged=None, owner=None, leased_until=None))
            session.flush()
            for run_id in sorted(_affected(session, shards)):
                _advance(session, run_id)


def _needed(run: Run) -> dict[str, ColumnElement[bool]]:
    """What a run waits for, by kind, in the order in which it is done."""
    saes = [pair.sae_id for pair in run.pairs]
    return {
        "samples": and_(Shard.kind == "samples", Shard.dataset_id == run.dataset_id),
        "directions": and_(Shard.kind == "directions", Shard.sae_id.in_(saes)),
        "encode": and_(Shard.kind == "encode", Shard.run_id == run.id),
        "seal": and_(Shard.kind == "seal", Shard.run_id == run.id),
    }


def _unfinished(session: Session, condition: ColumnElement[bool]) -> bool:
    """Whether anything is left; the states are named, so that an index finds it."""
    return bool(session.scalar(select(select(Shard.id).where(condition, Shard.state.in_(UNFINISHED)).exists())))


def _mine(shard_id: int, token: int) -> Update:
    """An update that only the shard's present holder can make."""
    return update(Shard).where(Shard.id == shard_id, Shard.token == token, Shard.state == "leased")


def _affected(session: Session, shards: list[Shard]) -> set[int]:
    """Unfinished runs that waited for any of these shards."""
    own = {shard.run_id for shard in shards if shard.run_id is not None}
    datasets = {shard.dataset_id for shard in shards if shard.dataset_id is not None}
    saes = {shard.sae_id for shard in shards if shard.sae_id is not None}
    others = select(Run.id).outerjoin(RunSae).where(or_(Run.dataset_id.in_(datasets), RunSae.sae_id.in_(saes)))
    waiting = own | set(session.scalars(others))
    return set(session.scalars(select(Run.id).where(Run.id.in_(waiting), Run.finished.is_(None))))


def _advance(session: Session, run_id: int) -> None:
    """Makes the seal shards once everything is encoded; finishes the run once everything is sealed."""
    run = session.scalars(select(Run).where(Run.id == run_id).with_for_update(of=Run)).one()
    waiting = {kind: _unfinished(session, condition) for kind, condition in _needed(run).items()}
    if waiting["samples"] or waiting["encode"]:
        return
    sealing = session.scalar(select(func.count()).where(Shard.run_id == run_id, Shard.kind == "seal"))
    if not sealing:
        _open_seals(session, run)
    elif not any(waiting.values()) and run.finished is None:
        run.finished = newest_snapshot(session) + 1
        run.finished_at = now()
        run.counts = _totals(session, run)


def _open_seals(session: Session, run: Run) -> None:
    shards = session.execute(
        select(Shard.first, Shard.stop, Shard.stats)
        .where(Shard.run_id == run.id, Shard.kind == "encode")
        .order_by(Shard.ordinal)
    ).all()
    for ordinal, pair in enumerate(run.pairs):
        session.add(Shard(kind="seal", run_id=run.id, run_sae_id=pair.id, ordinal=ordinal))
        first, postings = shards[0].first, 0
        for shard in shards:
            postings += shard.stats["postings"][str(pair.id)]
            if postings >= SEGMENT_POSTINGS or shard is shards[-1]:
                session.add(Segment(run_sae_id=pair.id, first=first, stop=shard.stop))
                first, postings = shard.stop, 0


def _totals(session: Session, run: Run) -> dict[str, object]:
    """Sums of what the run's shards reported."""
    totals: dict[str, int] = {}
    for stats in session.scalars(select(Shard.stats).where(Shard.run_id == run.id)):
        for name, value in (stats or {}).items():
            if isinstance(value, int):
                totals[name] = totals.get(name, 0) + value
    return dict(totals)
