"""`scopebase work`: takes jobs from the queue and does them, until it is told to end."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from schema import tracing
from schema.errors import InputError
from scopebase import __version__
from scopebase.cli import index_options as o
from scopebase.cli.console import shown
from scopebase.cli.logs import LogFormat, log_to_standard_error
from scopebase.cli.options import Home, settings
from scopebase.cli.workers import check_engine, helpers, parse_workers

if TYPE_CHECKING:
    from indexer.config import Cluster, IndexConfig
    from indexer.progress import Progress
    from schema.records import RunReport
    from schema.settings import Settings
    from schema.tables import Job

LOG = logging.getLogger("scopebase.jobs")


def work(
    data_root: Annotated[
        Optional[Path],  # noqa: UP045 - Typer on Python 3.11 reads this form
        typer.Option(
            "--data-root",
            help="Folder under which jobs may name datasets, models and SAEs; without it they may name the hub alone.",
            envvar="SCOPEBASE_DATA_ROOT",
            show_default=False,
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="End when nothing waits any more, as for cron.")] = False,
    device: o.Device = "auto",
    engine: o.Engine = "local",
    workers: o.Workers = "auto",
    address: o.Address = None,
    gpus_per_worker: o.GpusPerWorker = None,
    cpus_per_worker: o.CpusPerWorker = None,
    layers_per_worker: o.LayersPerWorker = None,
    lease: Annotated[
        float,
        typer.Option("--lease", min=2, max=3600, help="Seconds of silence after which another worker takes over."),
    ] = 60,
    keep_days: Annotated[
        float,
        typer.Option("--keep-days", min=0, help="Jobs that ended longer ago are forgotten; what they made stays."),
    ] = 90,
    log_format: LogFormat = "text",
    home: Home = None,
) -> None:
    """Take jobs from the queue and do them, until told to end.

    Start it on as many machines as there are; each job is done by one, or with --engine ray by a cluster. Ctrl-C or SIGTERM finishes the
    piece of work at hand and gives the job back to the queue; twice ends at once. A killed worker's job goes on with the next one.
    """
    try:
        import indexer.run  # noqa: F401 - now, so that the first job does not wait for it
        from indexer.config import Cluster
        from indexer.jobs import index_config, work_off
    except ImportError as error:
        raise InputError(
            f"indexing needs torch and transformers ({error.name} is missing); pip install 'scopebase[index]'"
        ) from None
    from schema.home import make_home
    from schema.queue import Queue

    cluster = Cluster(address, parse_workers(workers), cpus_per_worker, gpus_per_worker, layers_per_worker)
    check_engine(engine, cluster)
    where = settings(home)
    if engine == "ray":
        from indexer.spread import check_cluster

        check_cluster(device, where, cluster)  # now, so that no job fails for it
    log_to_standard_error(log_format)
    tracing.start("work", __version__)
    root = _root(data_root)
    queue = Queue(make_home(where).database, lease_seconds=lease)

    def do(job: Job, progress: Progress) -> list[RunReport]:
        return _index(index_config(job, root, device), progress, engine, cluster, where)

    _say(f"worker {queue.owner} waits for jobs" + (f" over {root}" if root else " that name the hub alone"))
    taken = work_off(queue, do, _ending(), _say, once=once, keep_days=keep_days)
    _say(f"worker {queue.owner} ends; it took {taken} job{'' if taken == 1 else 's'}")


def _index(config: IndexConfig, progress: Progress, engine: str, cluster: Cluster, where: Settings) -> list[RunReport]:
    if engine == "ray":
        from indexer.apart import index_apart

        return index_apart(config, where, cluster, progress)
    from indexer.run import index

    with helpers((cluster.workers or 1) - 1, ["--home", str(where.home), *_words(config)]):
        return index(config, where, progress)


def _words(config: IndexConfig) -> list[str]:
    """The command that does the same."""
    words = ["index", *(part for name, source in config.datasets for part in ("--dataset", f"{name}={source}"))]
    for option, value in {
        "--model": config.model,
        "--sae": config.sae,
        "--layers": config.layers,
        "--set": config.set_name,
        "--model-name": config.model_name,
        "--text-field": config.text_field,
        "--template": config.template,
        "--id-field": config.id_field,
        "--limit": config.limit,
        "--bad-rows": config.bad_rows,
        "--max-tokens": config.max_tokens,
        "--mask": config.mask,
        "--batch-tokens": config.batch_tokens,
        "--device": config.device,
        "--dtype": config.dtype,
        "--logits": config.logits,
    }.items():
        words += [] if value is None else [option, str(value)]
    return words


def _root(folder: Path | None) -> Path | None:
    if folder is None:
        return None
    if not folder.expanduser().is_dir():
        raise InputError(f"--data-root {folder}: there is no such folder")
    return folder.expanduser().resolve()


def _ending() -> threading.Event:
    """Set by the first Ctrl-C or SIGTERM; the second one interrupts."""
    ending = threading.Event()

    def end(_signal: int, _frame: object) -> None:
        if ending.is_set():
            raise KeyboardInterrupt
        ending.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    return ending


def _say(text: str) -> None:
    LOG.info("%s", shown(text))
