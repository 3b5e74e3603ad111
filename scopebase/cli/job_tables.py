"""Jobs as a person sees them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.text import Text

from schema.wire.jobs import JobEvent, JobItem, JobProgress
from scopebase.cli.console import ERRORS, OUT, duration, number, shown, size, table

STYLES = {"queued": "", "running": "cyan", "finished": "green", "failed": "red", "cancelled": "yellow"}


def show_jobs(jobs: Sequence[JobItem]) -> None:
    made = table("job", "state", "index", "by", "submitted (UTC)", "how far", right={"job"})
    for job in jobs:
        made.add_row(
            str(job.id),
            Text("cancelling" if job.cancelling else job.state, style=STYLES[job.state]),
            shown(_datasets(job)),
            shown(job.author),
            f"{job.created_at:%m-%d %H:%M}",
            _far(job),
        )
    OUT.print(made)


def show_job(job: JobItem) -> None:
    OUT.print(f"job {job.id}  ", Text("cancelling" if job.cancelling else job.state, style=STYLES[job.state]), end="\n")
    lines = {
        "index": _datasets(job),
        "through": f"{job.request.sae}, layers {job.request.layers}",
        "by": f"{job.author}, {job.created_at:%Y-%m-%d %H:%M:%S} UTC",
        "took": _took(job),
        "worker": f"{job.worker}" if job.worker else "",
        "attempt": f"{job.attempts} of {job.most_attempts}" if job.attempts else "",
        "now": _told(job.progress) if job.progress and job.state == "running" else "",
        "error": job.error or "",
    }
    made = table("", "")
    made.show_header = False
    for name, text in lines.items():
        if text:
            made.add_row(name, shown(text))
    OUT.print(made)
    if job.runs:
        runs = table(
            "run",
            "dataset",
            "samples",
            "tokens",
            "fired",
            "on disk",
            right={"run", "samples", "tokens", "fired", "on disk"},
        )
        for run in job.runs:
            name = run.dataset if run.version == 1 else f"{run.dataset}@{run.version}"
            counts = (f"{run.n_samples:,}", f"{run.n_tokens:,}", number(run.n_activations), size(run.bytes))
            runs.add_row(str(run.id), name, *counts)
        OUT.print(runs)


def follow(events: Iterable[JobEvent]) -> None:
    """Draws a job's events on standard error: a bar for what goes on, a line for what happened."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    with ExitStack() as stack:
        drawn = stack.enter_context(Progress(*columns, console=ERRORS, transient=True, disable=not ERRORS.is_terminal))
        task: TaskID | None = None
        for event in events:
            if event.progress is None:
                said = (
                    f"{event.state}: {event.text}"
                    if event.event == "state" and event.text
                    else event.text or event.state
                )
                ERRORS.print(f"{event.at.astimezone():%H:%M:%S} {shown(said)}", markup=False, soft_wrap=True)
            elif not ERRORS.is_terminal:
                ERRORS.print(_told(event.progress), markup=False, soft_wrap=True)
            else:
                task = _draw(drawn, task, event.progress)


def _draw(drawn: Progress, task: TaskID | None, progress: JobProgress) -> TaskID:
    title = shown(progress.title)
    if task is None or drawn.tasks[0].description != title:
        if task is not None:
            drawn.remove_task(task)
        task = drawn.add_task(title, total=progress.total, rate="")
    drawn.update(task, completed=progress.done, total=progress.total, rate=_rate(progress))
    return task


def _datasets(job: JobItem) -> str:
    names = ", ".join(dataset.name for dataset in job.request.datasets[:3])
    more = len(job.request.datasets) - 3
    return f"{names} and {more} more" if more > 0 else names


def _far(job: JobItem) -> str:
    if job.state == "running" and job.progress is not None:
        return shown(_told(job.progress))
    return shown(job.error or "") if job.state == "failed" else _took(job)


def _took(job: JobItem) -> str:
    if job.begun_at is None:
        return ""
    return duration(((job.finished_at or datetime.now(UTC)) - job.begun_at).total_seconds())


def _told(progress: JobProgress) -> str:
    of = f" of {progress.total:,}" if progress.total else ""
    return f"{progress.title}: {progress.done:,}{of} {_rate(progress)}".rstrip()


def _rate(progress: JobProgress) -> str:
    rate = f"{number(progress.tokens_per_second)} tokens/s" if progress.tokens_per_second else ""
    left = f"{duration(progress.seconds_left)} left" if progress.seconds_left else ""
    return ", ".join(part for part in (rate, left) if part)
