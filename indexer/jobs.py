"""Working off the queue: take a job, do it, say how far it is, heed whoever wants it ended, and go on with the next.

Renewing the lease and telling how far the work is are done by a thread of their own, so that neither waits for the other. The work ends
early at a border between two pieces of it only; what is committed by then stays, and whoever does the job next goes on from there.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from indexer.config import IndexConfig
from indexer.places import dataset_source, repository
from indexer.progress import Progress
from schema import tracing
from schema.errors import InputError, LeaseLost, NoCluster, ScopebaseError
from schema.jobs import TRACE, asked, prune
from schema.queue import Queue
from schema.records import RunReport
from schema.tables import Job
from schema.tracing import REQUEST
from schema.wire.jobs import IndexJob, JobProgress, JobRun

LOG = logging.getLogger("scopebase.jobs")
POLL_SECONDS = 1.0
"""Between two looks at an empty queue."""
TELL_SECONDS = 1.0
"""Between two words on how far the work is."""
HEED_SECONDS = 3.0
"""The same where there is nothing to tell: so long a cancelled job may go on unheard."""
AWAY_SECONDS = 5.0
"""Until a database that was away is asked again."""
CLUSTER_SECONDS = 30.0
"""The same of a Ray cluster that did not answer."""
MOST_TELLS = 12
PRUNE_SECONDS = 3600.0

Do = Callable[[Job, Progress], list[RunReport]]
Say = Callable[[str], None]


class Stopped(Exception):
    """The work ended at a border, before it was done."""


def index_config(job: Job, root: Path | None, device: str) -> IndexConfig:
    """What the job asks for, on this machine.

    Raises:
        InputError: it names what a job may not read, or what is not there.
    """
    body = IndexJob.model_validate(asked(job))
    return IndexConfig(
        model=repository(root, body.model),
        sae=repository(root, body.sae),
        datasets=tuple((each.name, dataset_source(root, each.source)) for each in body.datasets),
        layers=body.layers,
        set_name=body.set,
        model_name=body.model_name,
        text_field=body.text_field,
        template=body.template,
        id_field=body.id_field,
        limit=body.limit,
        bad_rows=body.bad_rows,
        max_tokens=body.max_tokens,
        mask=body.mask,
        batch_tokens=body.batch_tokens,
        device=device,
        dtype=body.dtype,
        logits=body.logits,
    )


def work_off(queue: Queue, do: Do, ending: threading.Event, say: Say, *, once: bool, keep_days: float) -> int:
    """Does jobs until told to end, and returns how many it took.

    Args:
        do: the work itself.
        ending: set by who wants the worker to end; the job at hand goes back to the queue at the next border.
        once: end when nothing waits any more.
        keep_days: jobs that ended longer ago are forgotten.
    """
    taken, pruned = 0, -PRUNE_SECONDS
    while not ending.is_set():
        try:
            if time.monotonic() - pruned >= PRUNE_SECONDS:
                pruned = time.monotonic()
                with queue.database.writing() as session:
                    prune(session, keep_days)
            job = queue.take()
        except InputError:
            raise
        except ScopebaseError as error:
            if once:
                raise
            say(f"{error} (asked again in {AWAY_SECONDS:.0f} s)")
            ending.wait(AWAY_SECONDS)
            continue
        if job is not None:
            taken += 1
            try:
                contextvars.copy_context().run(do_job, queue, job, do, ending, say)  # the next one is another's
            except NoCluster as error:
                if once:
                    raise
                say(f"{error} (asked again in {CLUSTER_SECONDS:.0f} s)")
                ending.wait(CLUSTER_SECONDS)
        elif once:
            break
        else:
            ending.wait(POLL_SECONDS)
    return taken


def do_job(queue: Queue, job: Job, do: Do, ending: threading.Event, say: Say) -> None:
    """One job, to its end or to where it has to stop; the queue knows what became of it.

    Raises:
        NoCluster: this worker can do no job now; the queue has this one again.
    """
    REQUEST.set(job.request_id)
    told: dict[str, Any] = {"job": job.id, "attempt": job.attempts}
    with tracing.span("job", "consumer", parent=job.request.get(TRACE), **told) as begun:
        _do_job(queue, job, do, ending, say, begun)


def _do_job(queue: Queue, job: Job, do: Do, ending: threading.Event, say: Say, begun: Any) -> None:
    say(f"job {job.id}: attempt {job.attempts}")
    watched = Watched(queue, job, ending, say)
    try:
        with watched.beating():
            reports = do(job, watched)
        said, outcome = "finished", partial(queue.finish, job, [_run(each) for each in reports])
    except Stopped as stopped:
        said, outcome = str(stopped), partial(queue.give_back, job)
    except NoCluster as error:
        _tell(partial(queue.give_back, job, str(error), CLUSTER_SECONDS), job, say)
        raise
    except ScopebaseError as error:
        tracing.fail(begun, type(error).__name__)
        said = str(error)
        outcome = partial(queue.fail, job, said, again=not isinstance(error, InputError))
    except Exception as error:
        tracing.fail(begun, type(error).__name__)
        LOG.exception("job %s failed", job.id)
        said = f"a fault of Scopebase or of this machine ({type(error).__name__}); the log of worker {queue.owner} has its trace"
        outcome = partial(queue.fail, job, said, again=True)
    except BaseException:  # interrupted twice: at once
        _tell(partial(queue.give_back, job), job, say)
        raise
    if _tell(outcome, job, say):
        say(f"job {job.id}: {said}")


def _tell(outcome: Callable[[], None], job: Job, say: Say) -> bool:
    """Whether the queue heard what became of a job. A database that is away is told again for a while; then the lease lapses."""
    for attempt in range(MOST_TELLS):
        try:
            outcome()
            return True
        except LeaseLost:
            say(f"job {job.id}: another worker has it by now")
            return False
        except ScopebaseError as error:
            say(f"job {job.id}: {error}")
            time.sleep(min(AWAY_SECONDS, 0.2 * 2**attempt))
    return False


def _run(report: RunReport) -> dict[str, Any]:
    return JobRun(
        id=report.run,
        dataset=report.dataset,
        version=report.version,
        saes=report.saes,
        n_samples=report.n_samples,
        n_tokens=report.n_tokens,
        n_activations=report.n_activations,
        bytes=report.bytes,
        already=report.already,
    ).model_dump(mode="json")


class Watched:
    """A `Progress` that the queue hears."""

    def __init__(self, queue: Queue, job: Job, ending: threading.Event, say: Say) -> None:
        self.queue, self.job, self.ending, self._say = queue, job, ending, say
        self._bar: JobBar | None = None
        self._changed = False
        self._stop = threading.Event()
        self._lost = self._cancelled = False

    def say(self, text: str) -> None:
        self._say(f"job {self.job.id}: {text}")
        try:
            self.queue.say(self.job, text)
        except LeaseLost:
            self._lost = True
        except ScopebaseError:
            return  # a line less

    @contextmanager
    def bar(self, title: str, total: int | None = None, done: int = 0) -> Iterator[JobBar]:
        self._say(f"job {self.job.id}: {title}")
        self._bar = JobBar(self, title, total, done)
        self.change()
        yield self._bar

    def border(self) -> None:
        """Raises Stopped where the job is in other hands, is cancelled, or this worker ends."""
        if self._lost:
            raise Stopped("another worker has it by now")
        if self._cancelled:
            raise Stopped("cancelled")
        if self.ending.is_set():
            raise Stopped("given back")

    def change(self) -> None:
        self._changed = True

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Keeps the lease while the work goes on, and tells its last word of progress."""
        thread = threading.Thread(target=self._beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _beat(self) -> None:
        heard = time.monotonic()
        while not self._lost:
            stopping = self._stop.wait(TELL_SECONDS)
            if self._changed or time.monotonic() - heard >= min(HEED_SECONDS, self.queue.lease_seconds / 4):
                heard = time.monotonic()
                self._tell()
            if stopping:
                return

    def _tell(self) -> None:
        bar, self._changed = self._bar if self._changed else None, False
        try:
            self._cancelled = self.queue.beat(self.job, None if bar is None else bar.told().model_dump(mode="json"))
        except LeaseLost:
            self._lost = True
        except ScopebaseError:
            self._changed = bar is not None  # the database may come back before the lease lapses


class JobBar:
    """One measured piece of a job."""

    def __init__(self, watched: Watched, title: str, total: int | None, done: int) -> None:
        self.watched, self.title, self.total, self.done, self.before = watched, title, total, done, done
        self.tokens = 0
        self.begin = time.monotonic()

    def advance(self, amount: int, tokens: int = 0) -> None:
        self.done += amount
        self.tokens += tokens
        self.watched.change()

    def note(self, text: str) -> None: ...

    def told(self) -> JobProgress:
        seconds, worked = max(time.monotonic() - self.begin, 1e-3), self.done - self.before
        left = None if self.total is None or not worked else seconds / worked * max(0, self.total - self.done)
        return JobProgress(
            title=self.title,
            done=self.done,
            total=self.total,
            tokens=self.tokens,
            tokens_per_second=self.tokens / seconds if self.tokens else None,
            seconds_left=left,
            at=datetime.now(UTC),
        )
