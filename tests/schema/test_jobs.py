"""The queue of jobs, on both kinds of database: whatever is done with it, in whatever order, it does what a plain model says."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete, select

from schema import jobs as asked
from schema import queue as taken
from schema.database import Database, upgrade
from schema.errors import Conflict, InputError, LeaseLost, NotFound
from schema.queue import BACKOFF_SECONDS, MOST_ATTEMPTS, Queue
from schema.tables import Job, JobEvent
from tests.lengths import lengths

LEASE = 60.0
BODY = {"kind": "index", "model": "a/b"}


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    made = Database(database_url)
    upgrade(made)
    yield made
    made.close()


class Clock:
    """The database's, set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000_000.0
        for module in (asked, taken):
            monkeypatch.setattr(module, "clock", lambda _session: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def submit(database: Database, author: str = "ann", key: str | None = None, body: dict[str, Any] = BODY) -> int:
    with database.writing(alone=True) as session:
        return asked.submit(session, "index", body, author, key).id


def show(database: Database, job_id: int) -> Job:
    with database.reading() as session:
        return asked.find_job(session, job_id)


def happened(database: Database, job_id: int, after: int = 0) -> list[asked.Happened]:
    with database.reading() as session:
        return asked.events_after(session, asked.find_job(session, job_id), after)


class Machine(RuleBasedStateMachine):
    """Submitters, three workers that may stall at any moment, and a clock that only goes on."""

    database: Database
    clock: Clock

    @initialize()
    def begin(self) -> None:
        with self.database.writing() as session:
            session.execute(delete(JobEvent))
            session.execute(delete(Job))
        self.queues = [Queue(self.database, f"elsewhere:{n}:0") for n in range(3)]
        self.model: dict[int, dict[str, Any]] = {}
        self.held: list[tuple[Queue, Job, int]] = []
        self.finished: list[int] = []

    @rule(key=st.sampled_from([None, None, "k1", "k2"]), body=st.sampled_from([BODY, {**BODY, "layers": "3"}]))
    def submit(self, key: str | None, body: dict[str, Any]) -> None:
        same = [n for n, job in self.model.items() if key is not None and job["key"] == key]
        if same and self.model[same[0]]["body"] != body:
            with pytest.raises(InputError, match="take a new key"):
                submit(self.database, key=key, body=body)
            return
        number = submit(self.database, key=key, body=body)
        if same:
            assert number == same[0]
            return
        assert number > max(self.model, default=0)
        self.model[number] = {"key": key, "body": body, "state": "queued", "due": self.clock.now, "token": 0}
        self.model[number] |= {"attempts": 0, "cancel": False, "until": None}

    @rule(seconds=st.sampled_from([1.0, BACKOFF_SECONDS, 2 * BACKOFF_SECONDS, LEASE - 1, LEASE + 1]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(worker=st.integers(0, 2))
    def take(self, worker: int) -> None:
        expected = None
        for number, job in sorted(self.model.items()):
            if job["state"] == "queued" and job["due"] <= self.clock.now:
                expected = number
            elif job["state"] == "running" and job["until"] < self.clock.now:
                if job["cancel"] or job["attempts"] >= MOST_ATTEMPTS:
                    job["state"] = "cancelled" if job["cancel"] else "failed"
                    continue
                expected = number
            if expected is not None:
                break
        got = self.queues[worker].take()
        assert (got and got.id) == expected
        if got is not None:
            job = self.model[got.id]
            job |= {"state": "running", "token": job["token"] + 1, "attempts": job["attempts"] + 1}
            job["until"] = self.clock.now + LEASE
            self.held.append((self.queues[worker], got, job["token"]))

    def _holds(self, which: int) -> tuple[Queue, Job, dict[str, Any] | None]:
        """One of those who took something at some time, and the model's job where it is still its holder."""
        queue, job, token = self.held[-1 - which % len(self.held)]
        mine = self.model.get(job.id)
        return queue, job, mine if mine and mine["state"] == "running" and mine["token"] == token else None

    @precondition(lambda self: self.held)
    @rule(which=st.sampled_from([0, 0, 0, 1, 2]), telling=st.booleans())
    def beat(self, which: int, telling: bool) -> None:
        queue, job, mine = self._holds(which)
        progress = {"title": "t", "done": 1} if telling else None
        if mine is None:
            with pytest.raises(LeaseLost):
                queue.beat(job, progress)
            return
        assert queue.beat(job, progress) == mine["cancel"]
        mine["until"] = self.clock.now + LEASE

    @precondition(lambda self: self.held)
    @rule(which=st.sampled_from([0, 0, 0, 1, 2]), how=st.sampled_from(["finish", "give back", "fail", "fail for now"]))
    def end(self, which: int, how: str) -> None:
        queue, job, mine = self._holds(which)
        do = {
            "finish": lambda: queue.finish(job, [{"id": 1}]),
            "give back": lambda: queue.give_back(job),
            "fail": lambda: queue.fail(job, "so it is", again=False),
            "fail for now": lambda: queue.fail(job, "so it is", again=True),
        }[how]
        if mine is None:
            with pytest.raises(LeaseLost):
                do()
            return
        do()
        if how == "finish":
            mine["state"] = "finished"
            self.finished.append(job.id)
        elif mine["cancel"]:
            mine["state"] = "cancelled"
        elif how == "give back":
            mine |= {"state": "queued", "due": self.clock.now, "attempts": mine["attempts"] - 1}
        elif how == "fail for now" and mine["attempts"] < MOST_ATTEMPTS:
            mine |= {"state": "queued", "due": self.clock.now + BACKOFF_SECONDS * 2 ** (mine["attempts"] - 1)}
        else:
            mine["state"] = "failed"

    @precondition(lambda self: self.model)
    @rule(which=st.integers(0, 3), what=st.sampled_from(["cancel", "cancel", "retry", "remove"]))
    def ask(self, which: int, what: str) -> None:
        number = sorted(self.model)[which % len(self.model)]
        job = self.model[number]
        allowed = {
            "cancel": job["state"] not in ("finished", "failed"),
            "retry": job["state"] in ("failed", "cancelled"),
            "remove": job["state"] in asked.ENDED,
        }[what]
        with self.database.writing() as session:
            row = asked.find_job(session, number, hold=True)
            act = {"cancel": asked.cancel, "retry": asked.retry, "remove": asked.remove}[what]
            if not allowed:
                with pytest.raises(Conflict):
                    act(session, row, "bob")
                return
            act(session, row, "bob")
        if what == "remove":
            del self.model[number]
        elif what == "retry":
            job |= {"state": "queued", "due": self.clock.now, "attempts": 0, "cancel": False}
        elif job["state"] == "queued":
            job |= {"state": "cancelled", "cancel": True}
        elif job["state"] == "running":
            job["cancel"] = True

    @invariant()
    def is_as_the_model_says(self) -> None:
        if not hasattr(self, "model"):
            return
        with self.database.reading() as session:
            rows = session.scalars(select(Job).order_by(Job.id)).all()
            found = {r.id: (r.state, r.token, r.attempts) for r in rows}
            told = {r.id: asked.events_after(session, r, 0) for r in rows}
        assert found == {n: (j["state"], j["token"], j["attempts"]) for n, j in sorted(self.model.items())}
        assert len(set(self.finished)) == len(self.finished)  # nobody finishes what another one finished
        for row in rows:
            numbers = [event.number for event in told[row.id]]
            assert numbers == sorted(set(numbers))
            assert numbers[-1] == row.n_events or row.progress_number == row.n_events
            assert [event.state for event in told[row.id] if event.kind == "state"][-1] == row.state


def test_it_does_what_a_plain_model_says(database: Database, clock: Clock) -> None:
    short = 6 if database.url.startswith("sqlite") else 3  # a server's commits take longer
    machine = type("OnThis", (Machine,), {"database": database, "clock": clock})
    run_state_machine_as_test(machine, settings=lengths(short, 60, steps=(25, 25)))


def test_who_is_heard_keeps_the_job_and_who_gives_it_back_has_not_tried(database: Database, clock: Clock) -> None:
    number, other = submit(database), Queue(database, "other:1:0")
    queue = Queue(database, "far:1:0")
    for _ in range(MOST_ATTEMPTS + 1):
        job = queue.take()
        assert job is not None
        assert job.attempts == 1
        for _ in range(3):
            clock.now += LEASE - 1
            assert queue.beat(job) is False
            assert other.take() is None
        queue.give_back(job)
    assert show(database, number).state == "queued"


def test_who_fell_silent_is_not_heard_once_another_has_its_job(database: Database, clock: Clock) -> None:
    number, first, second = submit(database), Queue(database, "far:1:0"), Queue(database, "far:2:0")
    old = first.take()
    clock.now += LEASE + 1
    new = second.take()
    assert old is not None
    assert new is not None
    with pytest.raises(LeaseLost):
        first.beat(old)
    with pytest.raises(LeaseLost):
        first.fail(old, "so it is", again=False)
    with pytest.raises(LeaseLost):
        first.finish(old, [])
    second.finish(new, [])
    assert show(database, number).state == "finished"


def test_what_is_cancelled_is_not_begun_again_when_its_worker_is_gone(database: Database, clock: Clock) -> None:
    number = submit(database)
    assert Queue(database, "far:1:0").take() is not None
    with database.writing() as session:
        asked.cancel(session, asked.find_job(session, number, hold=True), "bob")
    clock.now += LEASE + 1
    assert Queue(database, "other:1:0").take() is None
    assert show(database, number).state == "cancelled"
    assert happened(database, number)[-1].text == "cancelled by bob; its worker far:1:0 is gone"


def test_workers_at_the_same_moment_take_each_job_once(database: Database) -> None:
    numbers = [submit(database) for _ in range(12)]
    barrier = threading.Barrier(6)

    def work(n: int) -> list[int]:
        queue, mine = Queue(database, f"elsewhere:{n}:0"), []
        barrier.wait()
        while (job := queue.take()) is not None:
            queue.finish(job, [])
            mine.append(job.id)
        return mine

    with ThreadPoolExecutor(6) as pool:
        done = [number for mine in pool.map(work, range(6)) for number in mine]
    assert sorted(done) == numbers


def test_submitters_with_one_key_at_the_same_moment_make_one_job(database: Database) -> None:
    barrier = threading.Barrier(6)

    def send(_n: int) -> int:
        barrier.wait()
        return submit(database, key="once")

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(send, range(6)))) == 1
    assert submit(database, "bob", "once") != submit(database, "ann", "once")  # each has keys of their own


def test_silence_is_told_and_bounded(database: Database, clock: Clock) -> None:
    number = submit(database)
    for attempt in range(1, MOST_ATTEMPTS + 1):
        job = Queue(database, f"far:{attempt}:0").take()
        assert job is not None
        assert job.attempts == attempt
        assert Queue(database, "other:1:0").take() is None
        clock.now += LEASE + 1
    assert Queue(database, "other:1:0").take() is None
    failed = show(database, number)
    assert (failed.state, failed.attempts) == ("failed", MOST_ATTEMPTS)
    assert "3 workers fell silent over it, far:3:0 the last" in (failed.error or "")
    said = [event.text or "" for event in happened(database, number)]
    assert said[2] == "far:1:0 fell silent; attempt 2 of 3, by far:2:0"


def test_a_worker_that_died_on_this_host_is_not_waited_for(database: Database) -> None:
    from schema.ledger import owner_name

    host = owner_name().split(":")[0]
    number = submit(database)
    assert Queue(database, f"{host}:999999999:1").take() is not None
    again = Queue(database).take()
    assert again is not None
    assert (again.id, again.attempts) == (number, 2)


def test_of_progress_the_newest_is_told_and_of_lines_the_first(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taken, "MOST_LINES", 7)
    number = submit(database)
    queue = Queue(database, "far:1:0")
    job = queue.take()
    assert job is not None
    for done in range(5):
        queue.beat(job, {"title": "t", "done": done})
    events = happened(database, number)
    assert [(event.number, event.kind) for event in events] == [(1, "state"), (2, "state"), (7, "progress")]
    assert events[-1].progress == {"title": "t", "done": 4}
    for n in range(12):
        queue.say(job, f"line {n}")
    queue.finish(job, [])
    rest = happened(database, number, after=7)
    assert [event.text for event in rest] == [*(f"line {n}" for n in range(7)), None]
    assert [event.number for event in rest] == list(range(8, 16))


def test_old_jobs_are_forgotten_and_others_are_not(database: Database, clock: Clock) -> None:
    done, waits = submit(database), submit(database)
    queue = Queue(database, "far:1:0")
    job = queue.take()
    assert job is not None
    queue.finish(job, [])
    clock.now += 10 * 86_400
    with database.writing() as session:
        assert asked.prune(session, 11) == 0
        assert asked.prune(session, 9) == 1
    assert show(database, waits).state == "queued"
    with pytest.raises(NotFound, match=f"no job has the number {done}"):
        show(database, done)
    assert submit(database) > waits  # a number is never given twice


def test_jobs_that_wait_survive_another_upgrade(database: Database) -> None:
    number = submit(database)
    upgrade(database)
    job = Queue(database, "far:1:0").take()
    assert job is not None
    assert (job.id, job.request) == (number, BODY)
