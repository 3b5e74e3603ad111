"""Latency of the questions over HTTP, warm, at d_sae 32,768; and that it does not grow with the number of samples."""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import time
import urllib.request

from tests.speed import synthetic
from tests.speed.harness import FOLDER, Table, fresh

SIZES = (200, 2_000)
N_DATASETS = 20


def measure(args: argparse.Namespace) -> list[Table]:
    """Overlap of two, the 20 x 20 matrix, the first page of a difference, redundancy of all."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    names = [f"d{i}" for i in range(N_DATASETS)]
    every = "&".join(f"dataset={name}" for name in names)
    questions = {
        "overlap of two datasets": "overlap?dataset=d0&dataset=d1",
        f"overlap, all pairs of {N_DATASETS}": f"overlap?{every}",
        "diff, first page of 50 with 2 samples each": "diff?covered_by=d0&not_covered_by=d1",
        "diff, first page, a pair not asked for before": "diff?covered_by=d{0}&not_covered_by=d{1}",
        f"redundancy of {N_DATASETS}": f"redundancy?{every}",
    }
    took: dict[str, list[str]] = {question: [] for question in questions}
    for size in SIZES:
        folder = fresh(f"service-{size}")
        synthetic.make(folder, N_DATASETS, size).close()
        with Server(folder) as server:
            ask = server.ask
            ask(f"overlap?{every}")  # warm: every profile was read once
            for question, path in questions.items():
                times = []
                for number in range(30):
                    begin = time.perf_counter()
                    ask(path.format(2 + number % 18, (3 + number) % 18 + 2 if number % 18 != (1 + number) % 18 else 0))
                    times.append((time.perf_counter() - begin) * 1000)
                took[question].append(f"{statistics.median(times):.1f} ({max(times):.1f})")
    table = Table(
        f"Questions over HTTP, milliseconds, median (largest) of 30; d_sae 32,768, k 50, {N_DATASETS} datasets",
        ["question", *(f"{size:,} samples each" for size in SIZES)],
        [[question, *times] for question, times in took.items()],
    )
    return [table]


class Server:
    """`scopebase serve` in a process of its own."""

    def __init__(self, folder: object, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "scopebase", "--home", str(folder), "serve", "--port", str(self.port), *options]
        )

    def ask(self, path: str) -> bytes:
        with urllib.request.urlopen(f"{self.url}/v1/{path}") as answer:
            return bytes(answer.read())

    def __enter__(self) -> Server:
        for _ in range(3000):
            try:
                self.ask("health")
                return self
            except OSError:
                time.sleep(0.01)
        raise RuntimeError("the server did not start")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()
