"""Many readers at once: requests that arrive at a steady rate, whether or not the ones before are answered, with keys asked for.

Latency is counted from the moment a request was due, so a service that falls behind cannot hide it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import psutil

from tests.speed import synthetic
from tests.speed.harness import FOLDER, Table, fresh

RATE, SECONDS, WARM = 200, 20, 60
N_DATASETS, N_SAMPLES, N_CONNECTIONS = 20, 1000, 32
WORKERS = 2


@dataclass
class Heard:
    """What one kind of question got."""

    milliseconds: list[float] = field(default_factory=list)
    failed: int = 0


def measure(args: argparse.Namespace) -> list[Table]:
    """Overlap of two to five datasets, first pages of differences of any pair, lists; all at random."""
    given = os.environ.get("SCOPEBASE_BENCH_HOME")
    folder = Path(given) if given else fresh("load")
    if not given:
        FOLDER.mkdir(parents=True, exist_ok=True)
        synthetic.make(folder, N_DATASETS, N_SAMPLES).close()
    with _server(folder) as (port, key, process):
        asyncio.run(_load(port, key, RATE, WARM, seed=0))
        before = _cpu(process)
        begin = time.monotonic()
        heard = asyncio.run(_load(port, key, RATE, SECONDS, seed=1))
        took, spent = time.monotonic() - begin, _cpu(process) - before
    n = sum(len(each.milliseconds) for each in heard.values())
    table = Table(
        f"{RATE} requests/s for {SECONDS} s after {WARM} s of others, with a key, d_sae 32,768, {N_DATASETS} datasets, "
        f"{WORKERS} processes",
        ["question", "requests", "failed", "median ms", "p95 ms", "p99 ms", "largest ms"],
        note=f"{n / took:.0f} answers/s; the server spent {1000 * spent / max(n, 1):.1f} ms of CPU time on each.",
    )
    for name, each in [*heard.items(), ("all", _together(heard))]:
        times = sorted(each.milliseconds)
        at = [f"{times[min(len(times) - 1, int(len(times) * share))]:.0f}" for share in (0.5, 0.95, 0.99)]
        table.rows.append([name, f"{len(times):,}", str(each.failed), *at, f"{times[-1]:.0f}"])
    return [table]


def _together(heard: dict[str, Heard]) -> Heard:
    return Heard([ms for each in heard.values() for ms in each.milliseconds], sum(e.failed for e in heard.values()))


def question(rng: random.Random) -> tuple[str, str]:
    """(kind, path) of one request."""
    names = [f"d{i}" for i in range(N_DATASETS)]
    kind = rng.choices(("overlap", "diff", "lists"), (45, 45, 10))[0]
    pool = rng.choice(("any", "last"))
    if kind == "overlap":
        return kind, "overlap?" + urlencode({"dataset": rng.sample(names, rng.randint(2, 5)), "pool": pool}, doseq=True)
    if kind == "diff":
        a, b = rng.sample(names, 2)
        return kind, "diff?" + urlencode({"covered_by": a, "not_covered_by": b, "pool": pool})
    return kind, rng.choice(("saes", "datasets", "runs", "models"))


async def _load(port: int, key: str, rate: int, seconds: float, seed: int) -> dict[str, Heard]:
    rng = random.Random(seed)
    heard = {kind: Heard() for kind in ("overlap", "diff", "lists")}
    due: asyncio.Queue[tuple[float, str, str] | None] = asyncio.Queue()
    workers = [asyncio.create_task(_worker(port, key, due, heard)) for _ in range(N_CONNECTIONS)]
    begin = time.perf_counter()
    moment = 0.0
    while moment < seconds:
        await asyncio.sleep(max(0.0, begin + moment - time.perf_counter()))
        due.put_nowait((begin + moment, *question(rng)))
        moment += rng.expovariate(rate)  # as people come: at random
    for _ in workers:
        due.put_nowait(None)
    await asyncio.gather(*workers)
    return heard


async def _worker(
    port: int, key: str, due: asyncio.Queue[tuple[float, str, str] | None], heard: dict[str, Heard]
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while (job := await due.get()) is not None:
        moment, kind, path = job
        writer.write(f"GET /v1/{path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {key}\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        await reader.readexactly(int(head.split("content-length: ")[1].split("\r\n")[0]))
        heard[kind].milliseconds.append((time.perf_counter() - moment) * 1000)
        heard[kind].failed += " 200 " not in head.split("\r\n")[0]
    writer.close()


@contextmanager
def _server(folder: Path) -> Iterator[tuple[int, str, psutil.Process]]:
    """`scopebase serve --auth` in a process of its own, and a key."""
    scopebase = [sys.executable, "-m", "scopebase", "--home", str(folder)]
    create = [*scopebase, "key", "create", f"load-{time.time_ns()}", "--expires", "1h"]
    key = subprocess.run(create, capture_output=True, text=True, check=True).stdout.strip()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen([*scopebase, "serve", "--auth", "--port", str(port), "--workers", str(WORKERS)]) as process:
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.1)
        yield port, key, psutil.Process(process.pid)
        process.terminate()


def _cpu(process: psutil.Process) -> float:
    whole = [process, *process.children(recursive=True)]
    return sum(sum(each.cpu_times()[:2]) for each in whole)
