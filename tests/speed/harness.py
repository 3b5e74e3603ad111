"""Interleaved rounds: one long-lived process a method, pinned to the same core, exactly one at work at a time.

CPU time is the figure, because other people's work shares the machine; ratios are paired within a round; the first round is thrown away.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ.get("SCOPEBASE_BENCH", Path(tempfile.gettempdir()) / "scopebase-bench"))
CORE = int(os.environ.get("SCOPEBASE_BENCH_CORE", "0"))


@dataclass
class Table:
    """One table of results."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    note: str = ""

    def markdown(self) -> str:
        lines = [f"**{self.title}**", "", "| " + " | ".join(self.columns) + " |", "|" + "---|" * len(self.columns)]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join([*lines, *(["", self.note] if self.note else [])])


def pin() -> None:
    """This process on one core and one thread; call before torch is imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS", "LANCE_CPU_THREADS"):
        os.environ[name] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.sched_setaffinity(0, {CORE})


def fresh(name: str) -> Path:
    """An empty folder."""
    path = FOLDER / "out" / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def folder_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def serve(run: Callable[[], dict[str, Any]]) -> None:
    """A worker's loop: one JSON line for every line it gets. What libraries print goes to standard error."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    out.write("READY\n")
    for _ in sys.stdin:
        gc.collect()
        wall, cpu = time.perf_counter(), time.process_time()
        result = run()
        result |= {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        result["rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        out.write(json.dumps(result) + "\n")


@dataclass(frozen=True)
class Method:
    """One way of doing the same work."""

    label: str
    module: str
    args: tuple[str, ...] = ()
    python: str = sys.executable


def rounds(methods: Sequence[Method], n: int) -> dict[str, list[dict[str, Any]]]:
    """Results by label; a method that does not start is left out and said to be."""
    running = {}
    for method in methods:
        command = [method.python, "-m", f"tests.speed.{method.module}", *method.args]
        with (FOLDER / f"{method.module}.log").open("w") as log:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        line = process.stdout.readline()
        while line and line.strip() != "READY":
            line = process.stdout.readline()
        if line:
            running[method.label] = process
        else:
            print(f"({method.label} is not measured: see {FOLDER / f'{method.module}.log'})", flush=True)
    results: dict[str, list[dict[str, Any]]] = {label: [] for label in running}
    for number in range(n + 1):
        for label in list(running) if number % 2 else reversed(list(running)):
            process = running[label]
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            result = json.loads(process.stdout.readline())
            if number:
                results[label].append(result)
    for process in running.values():
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
    return results


def against(results: dict[str, list[dict[str, Any]]], base: str, title: str) -> Table:
    """Microseconds a token, and time against the base, paired."""
    table = Table(title, ["method", "CPU µs/token", "tokens/s", f"time against {base}", "bytes/activation"])
    for label, each in results.items():
        per_token = [r["cpu"] / r["tokens"] for r in each]
        ratios = [r["cpu"] / r["tokens"] / (b["cpu"] / b["tokens"]) for r, b in zip(each, results[base], strict=True)]
        bytes_each = each[0]["bytes"] / each[0]["activations"] if each[0].get("bytes") else 0
        table.rows.append(
            [
                label,
                f"{statistics.median(per_token) * 1e6:.0f}",
                f"{1 / statistics.median(per_token):,.0f}",
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
                f"{bytes_each:.2f}" if bytes_each else "-",
            ]
        )
    return table
