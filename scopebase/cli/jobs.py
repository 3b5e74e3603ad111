"""`scopebase jobs ...`: long work for workers, in the queue of a home or of a service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Optional

import typer

from schema.errors import InputError
from schema.wire.base import Page
from schema.wire.jobs import IndexJob, JobItem
from schema.words import JobState
from scopebase.cli import index_options as o
from scopebase.cli.console import ERRORS, OUT, print_json
from scopebase.cli.job_tables import follow, show_job, show_jobs
from scopebase.cli.options import Home, Json, checked, person, settings, wants_json
from scopebase.cli.queues import HomeJobs, JobsOf

app = typer.Typer(
    name="jobs",
    help="Long work that 'scopebase work' does: submitted, watched, cancelled, tried again.",
    no_args_is_help=True,
)
Url = Annotated[
    Optional[str],  # noqa: UP045 - Typer on Python 3.11 reads this form
    typer.Option(
        "--url",
        envvar="SCOPEBASE_URL",
        help="A service, in place of a home, such as https://scopebase.example.org; its key is SCOPEBASE_API_KEY.",
        show_default=False,
    ),
]
Number = Annotated[int, typer.Argument(metavar="JOB", min=1, help="The job's number.")]
Key = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--key", help="This submission's own word: sent twice, it makes one job.", show_default=False),
]
Watch = Annotated[bool, typer.Option("--watch", help="Stay until it has ended.")]


@app.command()
def submit(
    model: o.Model,
    sae: o.Sae,
    dataset: o.Datasets,
    set_name: o.SetName = None,
    layers: o.Layers = "all",
    text_field: o.TextField = "text",
    template: o.Template = None,
    id_field: o.IdField = None,
    limit: o.Limit = None,
    bad_rows: o.BadRows = "stop",
    max_tokens: o.MaxTokens = 512,
    mask: o.Mask = "special,first",
    batch_tokens: o.BatchTokens = None,
    dtype: o.Dtype = "auto",
    logits: o.Logits = "auto",
    model_name: o.ModelName = None,
    key: Key = None,
    watch: Watch = False,
    url: Url = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Ask for an index, as 'scopebase index' would make it here; files are named by their path under the workers' --data-root."""
    body = checked(
        IndexJob,
        {
            "kind": "index",
            "model": model,
            "sae": sae,
            "datasets": [_dataset(text) for text in dataset],
            "set": set_name,
            "layers": layers,
            "text_field": text_field,
            "template": template,
            "id_field": id_field,
            "limit": limit,
            "bad_rows": bad_rows,
            "max_tokens": max_tokens,
            "mask": mask,
            "batch_tokens": batch_tokens,
            "dtype": dtype,
            "logits": logits,
            "model_name": model_name,
        },
    )
    with _jobs(url, home) as jobs:
        job = jobs.submit(body, key)
        if not watch:
            _shown(job, json)
            return
        ERRORS.print(f"job {job.id}")
        _watch(jobs, job, json)


@app.command("list")
def list_(
    state: Annotated[Optional[JobState], typer.Option("--state", help="Only these.", show_default=False)] = None,  # noqa: UP045
    url: Url = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Jobs, the newest first."""
    with _jobs(url, home) as jobs:
        found = jobs.list(state)
    if wants_json(json):
        print_json(Page[JobItem](data=found, next_cursor=None))
    else:
        show_jobs(found)


@app.command()
def show(job: Number, url: Url = None, home: Home = None, json: Json = False) -> None:
    """How far a job is, who works on it, and what became of it."""
    with _jobs(url, home) as jobs:
        _shown(jobs.show(job), json)


@app.command()
def watch(job: Number, url: Url = None, home: Home = None, json: Json = False) -> None:
    """Stay with a job until it has ended. The exit status is 1 where it failed or was cancelled."""
    with _jobs(url, home) as jobs:
        _watch(jobs, jobs.show(job), json)


@app.command()
def cancel(job: Number, url: Url = None, home: Home = None, json: Json = False) -> None:
    """End a job: at once where it waits, at the next border between two pieces of work where it runs. What is committed stays."""
    _change(lambda jobs: jobs.cancel(job), url, home, json)


@app.command()
def retry(job: Number, url: Url = None, home: Home = None, json: Json = False) -> None:
    """Go on with a job that failed or was cancelled."""
    _change(lambda jobs: jobs.retry(job), url, home, json)


@app.command()
def remove(job: Number, url: Url = None, home: Home = None, json: Json = False) -> None:
    """Forget a job that has ended; what it indexed stays."""
    with _jobs(url, home) as jobs:
        gone = jobs.remove(job)
    if wants_json(json):
        print_json(gone)
    else:
        OUT.print(f"job {gone.id} ({gone.state}) is forgotten")


@contextmanager
def _jobs(url: str | None, home: Path | None) -> Iterator[JobsOf]:
    """The jobs of a service, or of a home."""
    if url is not None:
        from scopebase.cli.queues import ServiceJobs
        from scopebase.client import Client

        with Client(url) as client:
            yield ServiceJobs(client)
        return
    from schema.home import open_home

    found = open_home(settings(home))
    try:
        yield HomeJobs(found.database, person())
    finally:
        found.close()


def _change(act: Callable[[JobsOf], JobItem], url: str | None, home: Path | None, json: bool) -> None:
    with _jobs(url, home) as jobs:
        _shown(act(jobs), json)


def _watch(jobs: JobsOf, job: JobItem, json: bool) -> None:
    follow(jobs.events(job.id))
    ended = jobs.show(job.id)
    _shown(ended, json)
    if ended.state != "finished":
        raise typer.Exit(1)


def _shown(job: JobItem, json: bool) -> None:
    if wants_json(json):
        print_json(job)
    else:
        show_job(job)


def _dataset(text: str) -> dict[str, str]:
    name, sign, source = text.partition("=")
    if not sign or not name or not source:
        raise InputError(f"--dataset {text!r}: write NAME=SOURCE, like gsm8k=hub:openai/gsm8k:main:test")
    return {"name": name, "source": source}
