"""Who does the work of an index command: this process, more of them, or the machines of a Ray cluster. The ledger shares it out."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from schema import tracing
from schema.errors import InputError
from scopebase.cli.console import ERRORS, shown

if TYPE_CHECKING:
    from indexer.config import Cluster, IndexConfig
    from indexer.progress import Progress
    from schema.records import RunReport
    from schema.settings import Settings

MOST = {"local": 256, "ray": 4096}


def parse_workers(text: str) -> int | None:
    """A number, or None for `auto`."""
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise InputError(f"--workers {text!r}: a number, or auto") from None


def check_engine(engine: str, cluster: Cluster) -> None:
    """Raises InputError for an engine that cannot be, or cannot be had with these options."""
    if engine not in MOST:
        raise InputError(f"--engine {engine!r}: {' or '.join(MOST)}")
    if cluster.workers is not None and not 1 <= cluster.workers <= MOST[engine]:
        raise InputError(f"--workers {cluster.workers}: from 1 to {MOST[engine]}")
    for name in ("address", "cpus_per_worker", "gpus_per_worker", "layers_per_worker"):
        if engine == "local" and getattr(cluster, name) is not None:
            raise InputError(f"--{name.replace('_', '-')} is for --engine ray")


def run(engine: str, config: IndexConfig, settings: Settings, cluster: Cluster, progress: Progress) -> list[RunReport]:
    """The whole job, by whoever was asked for."""
    if engine == "ray":
        from indexer.spread import index as index_on_ray

        return index_on_ray(config, settings, cluster, progress)
    from indexer.run import index

    with helpers((cluster.workers or 1) - 1):
        return index(config, settings, progress)


@contextmanager
def helpers(n: int, words: Sequence[str] | None = None) -> Iterator[None]:
    """n further processes of the command that runs, each with its share of the cores, until it is done.

    Args:
        words: of the command, where it is not the one that was typed.

    Where one fails, the others do its work, and its last words are told.
    """
    threads = str(max(1, (os.cpu_count() or 1) // (n + 1)))
    if n:
        import torch

        torch.set_num_threads(int(threads))
    command = [sys.executable, "-m", "scopebase", *(sys.argv[1:] if words is None else words), "--workers", "1"]
    trace = tracing.traceparent()
    environ = {**os.environ, "OMP_NUM_THREADS": threads, **({tracing.PARENT: trace} if trace else {})}
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8")) for _ in range(n)]
        started = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file, env=environ) for file in files]
        stack.callback(_end, started)
        yield
        for process, file in zip(started, files, strict=True):
            if process.wait():
                file.seek(0)
                last = file.read().strip().splitlines()[-1:] or ["no word of it"]
                ERRORS.print(f"a worker ended with status {process.returncode}: {shown(last[0])}", style="yellow")


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()
