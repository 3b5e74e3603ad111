"""Killing the indexer at chosen instants and comparing what the same command makes of it with an undisturbed run.

An *event* is the entry to or the return from anything that touches a store: writing fragments, fsync, a Lance commit, a ledger
transaction, making tables, maintenance. A round kills a process (SIGKILL) at one event or after some time, sometimes a second
one as well, and then lets the command finish.

    python -m tests.indexer.chaos --rounds 40 --seed 1      # random events
    python -m tests.indexer.chaos --every 1                 # every single one
    python -m tests.indexer.chaos --weather 0.2             # in a bucket, whose server fails a fifth of its requests
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lance
import torch

import scopebase  # noqa: F401
from indexer import fold, worker
from indexer import run as running
from indexer.config import IndexConfig
from schema import catalog, home, ledger, publish, upkeep
from schema.bucket import Bucket
from schema.errors import Unreachable
from schema.settings import Settings
from schema.store import Store
from tests.making import SONGS, TALES, make_model, make_release, write_jsonl
from tests.objects import QUICK, serving, weather

TABLES = ("samples", "tokens", "forward", "profiles", "postings", "directions_32")


class Events:
    """Counts events in a child process and kills it at the chosen one."""

    def __init__(self, kill_at: int | None) -> None:
        self.kill_at = kill_at
        self.n = 0

    def event(self) -> None:
        if self.n == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.n += 1

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.event()
            result = function(*args, **kwargs)
            self.event()
            return result

        return counted

    def watch(self) -> None:
        upkeep.MANY_FRAGMENTS, worker.MERGE_EVERY = 3, 4  # merge at this size too
        fold.FAN_IN = worker.FAN_IN = 3
        for where, names in (
            (publish, ("write_fragments", "fsync_files")),
            (upkeep, ("fsync_files", "_sweep")),
            (upkeep.Compaction, ("plan", "commit")),
            (lance.LanceDataset, ("delete", "create_scalar_index", "cleanup_old_versions")),
            (ledger.Ledger, ("lease", "stage", "commit", "reclaim")),
            (home, ("upgrade",)),
            (Store, ("create",)),
            (Bucket, ("check_writable", "delete")),
            (running, ("register_model", "register_sae", "register_dataset", "register_run", "maintain")),
            (worker, ("publish_staged",)),
        ):
            for name in names:
                setattr(where, name, self.around(getattr(where, name)))
        commit = lance.LanceDataset.commit
        lance.LanceDataset.commit = staticmethod(self.around(commit))
        add = catalog.Session.flush
        catalog.Session.flush = self.around(add)  # type: ignore[method-assign]


def _indexed(config: IndexConfig, settings: Settings, patient: bool) -> bool:
    try:
        running.index(config, settings)
    except Unreachable:
        if not patient:
            raise
        return False
    return True


def in_child(config: IndexConfig, settings: Settings, kill_at: float | None, patient: bool = False) -> tuple[bool, int]:
    """Runs the command in a forked process: (whether it was killed, events it saw if not).

    Args:
        patient: asks again as long as the bucket cannot be reached.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        torch.set_num_threads(1)
        if isinstance(kill_at, float):  # seconds: in the middle of whatever goes on then
            threading.Timer(kill_at, os.kill, (os.getpid(), signal.SIGKILL)).start()
        events = Events(kill_at if isinstance(kill_at, int) else None)
        events.watch()
        try:
            while not _indexed(config, settings, patient):
                pass
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error}".encode())
            os._exit(1)
        os.write(write, str(events.n).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True, 0
    if os.WEXITSTATUS(status):
        raise AssertionError(f"the command failed: {said}")
    return False, int(said)


def contents(settings: Settings) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table, by key."""
    store = Store(settings.store_url)
    found = {}
    for name in (*TABLES, *(["logits"] if store.has("logits") else [])):
        rows = store.latest(name).to_table(filter="key >= 0").to_pylist()
        found[name] = sorted(rows, key=lambda row: row["key"])
    return found


def compare(
    config: IndexConfig,
    folder: Path,
    kills: Sequence[Sequence[float]],
    say: Callable[[str], None],
    begun: Callable[[int], dict[str, str]] = lambda _number: {},
    ended: Callable[[], None] = lambda: None,
) -> int:
    """Each round in a home of its own; raises where one differs from the undisturbed. Returns the kills that hit.

    Args:
        begun: called before each round with its number; the environment of its home's settings.
        ended: called after it, before what it made is looked at.
    """
    reference = Settings.read(folder / "undisturbed", {})
    # the comparison is read in a child too: a parent that has used Lance's threads could not fork any more
    hit = 0
    in_child(config, reference, None)
    for number, events in enumerate(kills):
        settings = Settings.read(folder / f"round-{number}", begun(number))
        killed = [in_child(config, settings, event, patient=True)[0] for event in events]
        hit += sum(killed)
        in_child(config, settings, None, patient=True)
        ended()
        difference = _in_reader(reference, settings)
        say(
            f"round {number}: killed at {[e for e, k in zip(events, killed, strict=True) if k]}: {difference or 'same'}"
        )
        if difference:
            raise AssertionError(f"after kills at events {events}: {difference}")
    return hit


def _in_reader(reference: Settings, settings: Settings) -> str:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        a, b = contents(reference), contents(settings)
        differing = [f"{name}: {len(a[name])} rows against {len(b[name])}" for name in TABLES if a[name] != b[name]]
        leftover = Store(settings.store_url).latest("parts").count_rows() - 1
        if leftover:
            differing.append(f"parts: {leftover} rows left")
        os.write(write, "; ".join(differing).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return said if status == 0 else f"the stores cannot be read (status {status})"


def make_case(folder: Path) -> None:
    """A model, two SAEs and two datasets of several shards each."""
    make_model(folder / "tiny-qwen3")
    make_release(folder / "SAE-Res-Tiny-W64-L0_3", 2, 32, 64, 3)
    write_jsonl(folder / "songs.jsonl", SONGS[:24])
    write_jsonl(folder / "tales.jsonl", TALES[:20])


def make_case_apart(folder: Path) -> IndexConfig:
    """The case, made in a process of its own: one that has used torch's threads could not fork any more."""
    child = os.fork()
    if child == 0:
        make_case(folder)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    datasets = tuple((name, str(folder / f"{name}.jsonl")) for name in ("songs", "tales"))
    release = folder / "SAE-Res-Tiny-W64-L0_3"
    return IndexConfig(str(folder / "tiny-qwen3"), str(release), datasets, set_name="tiny", batch_tokens=64)


def chosen(rng: random.Random, rounds: int, most: float) -> list[list[float]]:
    """One kill a round, in half of them a second one; `most` is a number of events, or seconds if it is a float."""
    draw = (lambda end: rng.uniform(0, end)) if isinstance(most, float) else (lambda end: rng.randrange(int(end)))
    return [[draw(most), *([draw(most / 2)] if rng.random() < 0.5 else [])] for _ in range(rounds)]


def in_weather(share: float, seed: int) -> Callable[[IndexConfig, Path, Sequence[Sequence[float]], Any], int]:
    """`compare` with the rounds' stores in a bucket, whose server fails this share of its requests."""

    def compared(
        config: IndexConfig, folder: Path, kills: Sequence[Sequence[float]], say: Callable[[str], None]
    ) -> int:
        with serving(folder / "bucket") as bucket:
            os.environ |= {**bucket.environ, "SCOPEBASE_STORE_OPTIONS": QUICK}

            def begun(number: int) -> dict[str, str]:
                bucket.fail(*weather(seed * 1000 + number, share))
                return {"SCOPEBASE_STORE_URL": bucket.url(f"round-{number}")}

            return compare(config, folder, kills, say, begun, bucket.fail)

    return compared


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timed", action="store_true", help="kill after random times instead of at events")
    parser.add_argument("--every", type=int, default=0, help="every N-th event instead of random ones")
    parser.add_argument(
        "--weather", type=float, help="the store in a bucket, whose server fails this share of its requests"
    )
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    config = make_case_apart(folder / "case")
    begin = time.monotonic()
    _, n = in_child(config, Settings.read(folder / "counting", {}), None)
    seconds = time.monotonic() - begin
    kills = chosen(random.Random(args.seed), args.rounds, seconds if args.timed else n)
    if args.every:
        kills = [[event] for event in range(args.seed, n, args.every)]
    hit = (compare if args.weather is None else in_weather(args.weather, args.seed))(config, folder, kills, _say)
    print(json.dumps({"events": n, "rounds": len(kills), "kills": hit, "seed": args.seed}))  # noqa: T201


if __name__ == "__main__":
    main()
