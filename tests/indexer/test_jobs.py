"""A worker of the queue: what it may read, what it tells, when it ends, and what becomes of its job then."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from api.services.jobs.book import Asker, cancel_job, job_events, retry_job, show_job, submit_job
from indexer import jobs as working
from indexer.jobs import Do, index_config, work_off
from indexer.places import dataset_source, repository
from indexer.progress import Progress
from indexer.run import index
from schema.database import Database
from schema.errors import InputError, NoCluster, WorkFailed
from schema.home import make_home
from schema.places import check_place
from schema.queue import Queue
from schema.records import RunReport
from schema.settings import Settings
from schema.tables import Job, Shard
from schema.wire.jobs import IndexJob, JobItem
from tests.indexer.test_run import everything
from tests.spans import Spans
from tests.spans import spans as spans

ROOT = Asker("root")


@pytest.fixture
def root(tmp_path: Path, model_dir: Path, release_dir: Path, data_dir: Path) -> Path:
    """The folder that a worker was started with: a model, its SAEs, and datasets."""
    folder = tmp_path / "root"
    shutil.copytree(data_dir, folder / "data")
    shutil.copytree(model_dir, folder / "models" / model_dir.name)
    shutil.copytree(release_dir, folder / release_dir.name)
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.read(tmp_path / "home", {})


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    home = make_home(settings)
    yield home.database
    home.close()


@pytest.fixture
def body(release_dir: Path, model_dir: Path) -> IndexJob:
    datasets = [{"name": name, "source": f"data/{name}.jsonl"} for name in ("songs", "tales")]
    return IndexJob.model_validate(
        {
            "kind": "index",
            "model": f"models/{model_dir.name}",
            "sae": release_dir.name,
            "set": "tiny",
            "datasets": datasets,
            "layers": "2",
            "batch_tokens": 256,
            "logits": "no",
        }
    )


def run_once(database: Database, do: Do, said: list[str] | None = None, ending: threading.Event | None = None) -> int:
    say = (said if said is not None else []).append
    return work_off(Queue(database), do, ending or threading.Event(), say, once=True, keep_days=90)


def doing(settings: Settings, root: Path) -> Do:
    return lambda job, progress: index(index_config(job, root, "cpu"), settings, progress)


class AtBorder:
    """A `Progress` that does something at the n-th border, then asks the one behind it."""

    def __init__(self, inner: Progress, n: int, act: Callable[[], None]) -> None:
        self.inner, self.n, self.act = inner, n, act
        self.say, self.bar = inner.say, inner.bar

    def border(self) -> None:
        self.n -= 1
        if self.n == 0:
            self.act()
        self.inner.border()


def same_as_at_once(settings: Settings, job: JobItem, root: Path, tmp_path: Path) -> None:
    """What the job left is what one undisturbed command leaves."""
    plain = Settings.read(tmp_path / "plain", {})
    row = Job(id=1, kind="index", request=job.request.model_dump(mode="json"))
    index(index_config(row, root, "cpu"), plain)
    assert everything(settings) == everything(plain)


def test_a_cancelled_job_ends_at_a_border_and_a_retry_goes_on_from_there(
    database: Database,
    settings: Settings,
    root: Path,
    body: IndexJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(working, "TELL_SECONDS", 0.02)
    monkeypatch.setattr(working, "HEED_SECONDS", 0.02)
    job = submit_job(database, body, "ann")
    real, progress_seen = doing(settings, root), []

    def cancelled(row: Job, progress: Progress) -> list[RunReport]:
        def act() -> None:
            cancel_job(database, job.id, ROOT)
            progress_seen.append(show_job(database, job.id))
            time.sleep(0.3)  # until the worker has heard of it

        return real(row, AtBorder(progress, 6, act))

    assert run_once(database, cancelled) == 1
    assert (progress_seen[0].state, progress_seen[0].cancelling) == ("running", True)
    ended = show_job(database, job.id)
    assert (ended.state, ended.worker, ended.runs) == ("cancelled", None, [])
    retry_job(database, job.id, ROOT)
    said: list[str] = []
    assert run_once(database, real, said) == 1
    done = show_job(database, job.id)
    assert (done.state, done.attempts, done.error) == ("finished", 1, None)
    assert [(run.dataset, run.n_samples > 0, run.already) for run in done.runs] == [
        ("songs", True, False),
        ("tales", True, False),
    ]
    assert not any("storing songs" in line for line in said)  # that was committed before
    same_as_at_once(settings, done, root, tmp_path)
    events, over = job_events(database, job.id)
    assert over
    assert [event.state for event in events if event.event == "state"] == [
        *("queued", "running", "running", "cancelled"),
        *("queued", "running", "finished"),
    ]


def test_a_worker_that_ends_gives_its_job_back(
    database: Database, settings: Settings, root: Path, body: IndexJob
) -> None:
    job = submit_job(database, body, "ann")
    ending = threading.Event()
    real = doing(settings, root)
    assert run_once(database, lambda row, p: real(row, AtBorder(p, 5, ending.set)), ending=ending) == 1
    given = show_job(database, job.id)
    assert (given.state, given.attempts, given.worker) == ("queued", 0, None)


def test_a_stalled_worker_stops_when_it_wakes_and_changes_nothing(
    database: Database, body: IndexJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working, "TELL_SECONDS", 0.02)
    job = submit_job(database, body, "ann")
    other, said, borders = Queue(database, "other:1:0"), [], []

    def stalled(_row: Job, progress: Progress) -> list[RunReport]:
        with database.writing() as session:
            session.get_one(Job, job.id).leased_until = 0.0  # as if it had been silent for a minute
        taken = other.take()
        assert taken is not None
        other.finish(taken, [])
        monkeypatch.setattr(working, "HEED_SECONDS", 0.02)
        time.sleep(0.3)  # until it was told
        borders.append(1)
        progress.border()
        raise AssertionError("it went on")

    run_once(database, stalled, said)
    assert borders
    assert said[-1] == f"job {job.id}: another worker has it by now"
    assert show_job(database, job.id).state == "finished"


@pytest.mark.parametrize(
    ("error", "state", "told"),
    [
        (InputError("row 3 has no text"), "failed", "row 3 has no text"),
        (WorkFailed("the disk is full"), "queued", "the disk is full"),
        (ZeroDivisionError("secret"), "queued", "a fault of Scopebase or of this machine (ZeroDivisionError); the log"),
    ],
)
def test_what_a_retry_cannot_mend_fails_at_once(
    database: Database, body: IndexJob, error: Exception, state: str, told: str
) -> None:
    def fails(_row: Job, _progress: Progress) -> list[RunReport]:
        raise error

    job = submit_job(database, body, "ann")
    run_once(database, fails)
    after = show_job(database, job.id)
    assert after.state == state
    assert (after.error or "").startswith(told)
    assert "secret" not in (after.error or "")


def test_a_cluster_that_does_not_answer_costs_the_job_no_attempt(
    database: Database, body: IndexJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working, "CLUSTER_SECONDS", 0.01)
    monkeypatch.setattr(working, "POLL_SECONDS", 0.01)
    job, ending, said = submit_job(database, body, "ann"), threading.Event(), list[str]()
    tries: list[int] = []

    def away(row: Job, _progress: Progress) -> list[RunReport]:
        tries.append(row.attempts)
        if len(tries) < 5:
            raise NoCluster("no Ray cluster answers")
        ending.set()
        return []

    assert work_off(Queue(database), away, ending, said.append, once=False, keep_days=90) == 5
    assert tries == [1] * 5
    assert said[1] == "no Ray cluster answers (asked again in 0 s)"
    assert show_job(database, job.id).state == "finished"
    texts = [event.text or "" for event in job_events(database, job.id)[0]]
    assert sum(text.endswith(": no Ray cluster answers") for text in texts) == 4

    def never(_row: Job, _progress: Progress) -> list[RunReport]:
        raise NoCluster("no Ray cluster answers")

    submit_job(database, body, "ann")
    with pytest.raises(NoCluster):  # whoever comes once does not wait
        run_once(database, never)


def test_an_interruption_gives_the_job_back_before_it_goes_on(database: Database, body: IndexJob) -> None:
    def interrupted(_row: Job, _progress: Progress) -> list[RunReport]:
        raise KeyboardInterrupt

    job = submit_job(database, body, "ann")
    with pytest.raises(KeyboardInterrupt):
        run_once(database, interrupted)
    assert show_job(database, job.id).state == "queued"


def test_a_database_that_is_away_is_asked_again(
    database: Database, body: IndexJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working, "AWAY_SECONDS", 0.01)
    submit_job(database, body, "ann")
    ending, said, real = threading.Event(), [], Queue.take
    tries: list[int] = []

    def away(queue: Queue) -> Job | None:
        tries.append(1)
        if len(tries) < 3:
            raise WorkFailed("the database is away")
        return real(queue)

    monkeypatch.setattr(Queue, "take", away)

    def do(_row: Job, _progress: Progress) -> list[RunReport]:
        ending.set()
        return []

    assert work_off(Queue(database), do, ending, said.append, once=False, keep_days=90) == 1
    assert said[:2] == ["the database is away (asked again in 0 s)"] * 2


def test_a_job_reads_nothing_but_what_lies_under_the_root(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret.jsonl").write_text('{"text": "secret"}')
    (root / "out.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (root / "folder").mkdir()
    (root / "folder" / "deep.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (root / "in.jsonl").symlink_to(root / "data" / "songs.jsonl")
    assert dataset_source(root, "data/songs.jsonl") == str((root / "data" / "songs.jsonl").resolve())
    assert dataset_source(root, "in.jsonl") == str((root / "data" / "songs.jsonl").resolve())
    assert repository(root, "owner/name@main") == "owner/name@main"
    for bad, why in {
        "out.jsonl": "is a link that leads out",
        "folder": "'folder/deep.jsonl' is a link that leads out",
        "../secret.jsonl": "leads out of the worker's --data-root",
        "data/../../secret.jsonl": "leads out of the worker's --data-root",
        str(tmp_path / "secret.jsonl"): "by their path under the worker's --data-root",
        "nothing.jsonl": "is not under the worker's --data-root",
    }.items():
        with pytest.raises(InputError, match=why):
            dataset_source(root, bad)
    with pytest.raises(InputError, match="was started without --data-root"):
        dataset_source(None, "data/songs.jsonl")
    monkeypatch.chdir(root)  # what lies where the worker happens to stand is not the hub's
    for call in (lambda: repository(None, "models/tiny-qwen3"), lambda: dataset_source(None, "hub:models/tiny-qwen3")):
        with pytest.raises(InputError, match="also a path where the worker was started"):
            call()


@pytest.mark.parametrize(
    "text",
    [
        *(
            "/etc/passwd",
            "~/x",
            "C:/x",
            "\\\\host\\x",
            "s3://b/x",
            "file:///etc/passwd",
            "a/../b",
            "a\\..\\b",
            "..",
            " ",
            "a\0b",
        ),
        *("hub:text", "hub:/etc", "hub:../x/y", "hub:a/../b", "hub:a/b:c:d:e", "hub:a/b:../c"),
    ],
)
def test_words_that_cannot_be_a_place_are_refused_before_they_are_queued(text: str) -> None:
    with pytest.raises(InputError):
        check_place(text)
    with contextlib.suppress(ValueError):
        IndexJob.model_validate(
            {"kind": "index", "model": "a/b", "sae": "a/b", "datasets": [{"name": "d", "source": text}]}
        )
        raise AssertionError(text)


def test_the_command_that_helps_does_the_same(root: Path, body: IndexJob) -> None:
    """`--workers 2` starts `scopebase index` beside the job: with the same recipe, or it would be another run."""
    import typer

    from scopebase.cli import app
    from scopebase.cli.work import _words

    request: dict[str, Any] = {
        **body.model_dump(mode="json"),
        **{"template": "{text}\n", "id_field": "id", "limit": 9, "max_tokens": 77, "mask": "none", "dtype": "float32"},
        **{"bad_rows": "skip", "logits": "no", "model_name": "m", "text_field": "t"},
    }
    config = index_config(Job(id=1, kind="index", request=request), root, "cpu")
    command = typer.main.get_command(app).commands["index"]  # type: ignore[attr-defined]
    made = command.make_context("index", _words(config)[1:])
    assert made.params["dataset"] == [f"{name}={source}" for name, source in config.datasets]
    for name in ("model", "sae", "layers", "set_name", "model_name", "text_field", "template", "id_field", "limit"):
        assert made.params[name] == getattr(config, name)
    for name in ("bad_rows", "max_tokens", "mask", "batch_tokens", "device", "dtype", "logits"):
        assert made.params[name] == getattr(config, name)


def test_a_job_is_told_piece_by_piece(
    database: Database, settings: Settings, root: Path, body: IndexJob, spans: Spans
) -> None:
    """Each shard of it is a span below the job's, and no other."""
    one = body.model_copy(update={"datasets": body.datasets[:1]})
    submit_job(database, one, "ann")
    assert run_once(database, doing(settings, root)) == 1
    (job,) = spans.named("job")
    with database.reading() as session:
        shards = {(f"index.{shard.kind}", shard.id): shard for shard in session.scalars(select(Shard))}
    pieces = [span for span in spans.all() if "scopebase.shard" in span.attributes]
    assert {span.name for span in pieces} == {"index.samples", "index.directions", "index.encode", "index.seal"}
    assert sorted((span.name, span.attributes["scopebase.shard"]) for span in pieces) == sorted(shards)
    for span in pieces:
        shard = shards[span.name, span.attributes["scopebase.shard"]]
        assert (span.attributes["scopebase.first"], span.attributes["scopebase.stop"]) == (shard.first, shard.stop)
        assert span.parent.span_id == job.context.span_id
        assert job.start_time <= span.start_time <= span.end_time <= job.end_time
    strangers = [span.name for span in spans.all() if span.context.trace_id != job.context.trace_id]
    assert not strangers
    assert len(spans.named("index.publish")) == len(pieces)
    assert "songs" not in spans.text()
