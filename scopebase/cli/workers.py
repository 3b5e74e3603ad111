"""More processes at the same run: each is the same command once more, and the ledger shares the work out."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from schema.errors import InputError
from scopebase.cli.console import ERRORS, shown

MOST = 256


def check_engine(engine: str, workers: int) -> None:
    """Raises InputError for an engine or a number of workers that cannot be."""
    if engine == "ray":
        raise InputError(
            "--engine ray is not built in yet; start the same command on each machine: they share the work"
        )
    if engine != "local":
        raise InputError(f"--engine {engine!r}: local or ray")
    if not 1 <= workers <= MOST:
        raise InputError(f"--workers {workers}: from 1 to {MOST}")


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
    environ = {**os.environ, "OMP_NUM_THREADS": threads}
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
