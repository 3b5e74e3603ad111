"""How long a service takes from its start to its first answer, and the command line to say anything."""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.speed import synthetic
from tests.speed.harness import FOLDER, Table, fresh
from tests.speed.service import Server

N_DATASETS, N_LAYERS, N_SAMPLES = 20, 28, 20
"""Few samples: a start reads none, and a profile is as long with few."""


def measure(args: argparse.Namespace) -> list[Table]:
    """On a home of 20 datasets and 28 layers: `serve` with one process and with several, and two commands."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    folder = fresh("start")
    home = synthetic.make(folder, N_DATASETS, N_SAMPLES)
    synthetic.invent_layers(home, N_LAYERS - 1)
    home.close()
    table = Table(
        f"From the start to an answer, seconds, median (largest) of {args.rounds}; {N_DATASETS} datasets, {N_LAYERS} layers",
        ["", "by the clock", "CPU of all processes"],
    )
    for workers in (1, 3):
        named = f"`serve --workers {workers}`"
        started = [_served(folder, workers) for _ in range(args.rounds)]
        table.rows.append([f"{named}, first 200 of /v1/health", _shown([s[0] for s in started]), "-"])
        table.rows.append(
            [f"{named}, first overlap of two", _shown([s[1] for s in started]), _shown([s[2] for s in started])]
        )
    for words in (["--help"], ["runs"]):
        times = [_timed(lambda words=words: _called(folder, words)) for _ in range(args.rounds)]
        table.rows.append([f"`scopebase {words[0]}`", _shown([t[0] for t in times]), _shown([t[1] for t in times])])
    return [table]


def _served(folder: Path, workers: int) -> tuple[float, float, float]:
    """Seconds to the first 200 and to the first answer, and the CPU time of all processes until they have ended."""
    begin, before = time.perf_counter(), _children()
    server = Server(folder, "--workers", str(workers))
    with server:
        healthy = time.perf_counter() - begin
        server.ask(f"overlap?dataset=d0&dataset=d1&sae={synthetic.SAE_NAME}")
        answered = time.perf_counter() - begin
    return healthy, answered, _children() - before


def _called(folder: Path, words: Sequence[str]) -> None:
    command = [sys.executable, "-m", "scopebase", "--home", str(folder), *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ)


def _timed(work: Callable[[], None]) -> tuple[float, float]:
    begin, before = time.perf_counter(), _children()
    work()
    return time.perf_counter() - begin, _children() - before


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _shown(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({max(seconds):.2f})"
