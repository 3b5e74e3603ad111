"""Two workers on Ray against one, a core each, both in one Ray and in alternating order.

A worker's rate is taken between the ends of its first and of its last shard, so that loading the model, which is done once for hours of
work, and the wait for a last shard, which is one shard whatever the run, do not count; rates of workers add up.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass

import psutil

from indexer.config import Cluster, IndexConfig
from indexer.progress import Bar, NoBar, Silent
from indexer.remote import Hello
from indexer.seats import Seat
from schema.settings import Settings
from tests.speed import assets
from tests.speed.harness import FOLDER, Table, fresh

DOCUMENTS = 480
BATCH_TOKENS = 512
"""About 6,000 tokens a shard: enough shards for a rate, in a minute."""


@dataclass
class Rate:
    """What the workers of one round did between their first and last shard."""

    tokens_per_second: float = 0.0
    tokens: int = 0
    cpu: float = 0.0


class Heard(NoBar):
    """Tokens of one answer."""

    def __init__(self) -> None:
        self.tokens = 0

    def advance(self, amount: int, tokens: int = 0) -> None:
        self.tokens += tokens


def measure(args: argparse.Namespace) -> list[Table]:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS", "LANCE_CPU_THREADS"):
        os.environ[name] = "1"  # the workers inherit it
    from indexer import on_ray, spread

    class Timed(on_ray.Crew):
        """Keeps when each worker ended a shard, and what it had used of its core by then."""

        def _greet(self, seat: Seat, hello: Hello) -> None:
            super()._greet(seat, hello)
            for thread in psutil.Process(hello.pid).threads():
                os.sched_setaffinity(thread.id, {cores[len(self.seats) > 1 and seat is self.seats[1]]})

        def _hear(self, seat: Seat, bar: Bar) -> bool:
            heard = Heard()
            idle = super()._hear(seat, heard)
            if heard.tokens and seat.hello is not None:
                used = psutil.Process(seat.hello.pid).cpu_times()
                ends[seat.number].append((time.monotonic(), heard.tokens, used.user + used.system))
            return idle

    FOLDER.mkdir(parents=True, exist_ok=True)
    assets.make()
    source = FOLDER / "ray.jsonl"
    texts = (" ".join(f"w{token}" for token in ids.tolist()) for ids in assets.documents(DOCUMENTS))
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = IndexConfig(
        model=str(assets.ASSETS / "model"),
        sae=str(assets.release("8k")),
        datasets=(("bench", str(source)),),
        batch_tokens=BATCH_TOKENS,
        logits="no",
    )
    cores = sorted(os.sched_getaffinity(0))[:2]
    ends: dict[int, list[tuple[float, int, float]]] = defaultdict(list)
    found: dict[int, list[Rate]] = {1: [], 2: []}
    before, spread.Crew = spread.Crew, Timed  # type: ignore[misc]
    on_ray.connect(Cluster(workers=2, cpus_per_worker=1), Silent())
    try:
        for number in range(args.rounds):
            for workers in (1, 2) if number % 2 else (2, 1):
                ends.clear()
                settings = Settings.read(fresh(f"ray-{workers}"), {})
                spread.index(config, settings, Cluster(workers=workers, cpus_per_worker=1), Silent())
                found[workers].append(rate([*ends.values()]))
    finally:
        spread.Crew = before  # type: ignore[misc]
        on_ray.ray.shutdown()
    return [table(found)]


def rate(workers: list[list[tuple[float, int, float]]]) -> Rate:
    """The sum over workers of (moment, tokens, CPU seconds) at the end of each shard."""
    total = Rate()
    for shards in workers:
        (begin, _, cpu), (end, _, cpu_then) = shards[0], shards[-1]
        tokens = sum(n for _, n, _ in shards[1:])
        total.tokens_per_second += tokens / (end - begin) if tokens else 0.0
        total.tokens += tokens
        total.cpu += cpu_then - cpu
    return total


def table(found: dict[int, list[Rate]]) -> Table:
    made = Table(
        "Workers on Ray, a core each: 23 M model, 6 SAEs of 8,192 features, durable",
        ["workers", "tokens/s", "against one", "CPU µs/token", "tokens a CPU second against one"],
        note="Asked: two workers at least 1.8 times one. Where others use the machine, the CPU columns are the figure.",
    )
    for workers, each in found.items():
        pairs = [*zip(each, found[1], strict=True)]
        speed = [one.tokens_per_second / base.tokens_per_second for one, base in pairs]
        cost = [(base.cpu / base.tokens) / (one.cpu / one.tokens) for one, base in pairs]
        made.rows.append(
            [
                str(workers),
                f"{statistics.median(one.tokens_per_second for one in each):,.0f}",
                f"{statistics.median(speed):.2f} ({min(speed):.2f}-{max(speed):.2f})",
                f"{statistics.median(one.cpu / one.tokens for one in each) * 1e6:.0f}",
                f"{statistics.median(cost):.2f} ({min(cost):.2f}-{max(cost):.2f})",
            ]
        )
    return made
