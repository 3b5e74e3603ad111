"""Killing what belongs to `--engine ray` at random instants, and comparing what the same command makes of it with the local engine's rows.

A round starts the command, waits until a chosen number of shards is committed, and kills (SIGKILL) one of

    worker   an actor that holds a shard: the command itself goes on, and at most that shard is done twice
    driver   the command
    raylet   what runs the machine's actors
    head     the cluster's head process

after which the same command is given again, unless it went on by itself.

    python -m tests.indexer.ray_chaos --rounds 8 --seed 1
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import psycopg

import scopebase  # noqa: F401
from schema.layout import FEATURE_BITS, SAMPLE_BITS
from schema.settings import Settings
from schema.store import Store
from tests.making import PROBLEMS, SONGS, TALES, make_model, make_release, write_jsonl

FAULTS = {"worker": "", "driver": "", "raylet": "raylet", "head": "gcs_server"}
"""What is killed -> the name of its process, where it is one of Ray's own."""
PATIENCE = 300.0
Named = dict[str, dict[tuple[Any, ...], dict[str, Any]]]


def ask(settings: Settings, query: str) -> list[tuple[Any, ...]]:
    """Rows of a home's database, of either kind. It is only looked at: one that is not there is not made."""
    file = settings.database_file
    if file is not None:
        with contextlib.closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=10)) as sql:
            return sql.execute(query).fetchall()
    with psycopg.connect(settings.database_url.replace("+psycopg", "")) as server:
        return server.execute(query.encode()).fetchall()


def named_contents(settings: Settings) -> Named:
    """Every row of the tables that answers are made of, by what it is of instead of by ids, which another order of work gives otherwise.

    Runs that hold one dataset through several groups of layers have each stored its tokens; they must be the same.
    """
    datasets = dict(ask(settings, "SELECT id, name FROM datasets"))
    saes = dict(ask(settings, "SELECT id, name FROM saes"))
    of_pair = "SELECT p.id, r.dataset_id, p.sae_id FROM run_saes p JOIN runs r ON r.id = p.run_id"
    pairs = {pair: (datasets[dataset], saes[sae]) for pair, dataset, sae in ask(settings, of_pair)}
    segments = {
        id_: (*pairs[pair], first, stop)
        for id_, pair, first, stop in ask(settings, "SELECT id, run_sae_id, first, stop FROM segments")
    }
    owners: dict[str, tuple[int, dict[int, Any]]] = {
        "samples": (SAMPLE_BITS, datasets),
        "forward": (SAMPLE_BITS, pairs),
        "profiles": (SAMPLE_BITS, pairs),
        "postings": (FEATURE_BITS, segments),
        **{f"directions_{width}": (FEATURE_BITS, saes) for (width,) in ask(settings, "SELECT d_model FROM models")},
        "tokens": (SAMPLE_BITS, {run: datasets[of] for run, of in ask(settings, "SELECT id, dataset_id FROM runs")}),
    }
    store = Store(settings.store_url)
    found: Named = {}
    for table, (bits, owner) in owners.items():
        rows = store.latest(table).to_table(filter="key >= 0").to_pylist()
        found[table] = {}
        for row in rows:
            key = row.pop("key")
            name = (owner[key >> bits], key & ((1 << bits) - 1))
            known = found[table].setdefault(name, row)
            assert known is row or (table == "tokens" and known == row), f"{table}: {name} comes twice"
    return found


def leases(settings: Settings) -> tuple[int, int]:
    """(shards, how often one was leased)."""
    ((shards, leased),) = ask(settings, "SELECT count(*), sum(token) FROM shards")
    return shards, int(leased)


def make_case(folder: Path) -> list[str]:
    """A model, two SAEs and three datasets of several shards each; the options that index them."""
    make_model(folder / "tiny-qwen3")
    release = make_release(folder / "SAE-Res-Tiny-W64-L0_3", 2, 32, 64, 3)
    options = ["--model", str(folder / "tiny-qwen3"), "--sae", str(release), "--set", "tiny", "--batch-tokens", "64"]
    for name, rows in (("songs", SONGS), ("tales", TALES), ("sums", PROBLEMS)):
        options += ["--dataset", f"{name}={write_jsonl(folder / f'{name}.jsonl', rows)}"]
    return [*options, "--logits", "no"]


def start(settings: Settings, options: Sequence[str], *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "scopebase", "--home", str(settings.home), "index", *options, *more]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    if settings.database_file is None:
        environ |= {"SCOPEBASE_DATABASE_URL": settings.database_url, "SCOPEBASE_STORE_URL": settings.store_url}
    return subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], *, well: bool = True) -> str:
    """What it said until it ended."""
    _, said = process.communicate(timeout=PATIENCE)
    assert not well or process.returncode == 0, said[-3000:]
    return said


def progress(settings: Settings) -> tuple[int, list[int]]:
    """(shards to encode or to seal that are committed, the processes that hold one)."""
    ours = "FROM shards WHERE kind IN ('encode', 'seal') AND state"
    try:
        ((done,),) = ask(settings, f"SELECT count(*) {ours} = 'committed'")
        held = ask(settings, f"SELECT owner {ours} = 'leased'")
    except (sqlite3.OperationalError, psycopg.Error):  # not there yet
        return 0, []
    return done, [int(owner.rsplit(":", 2)[1]) for (owner,) in held]


def await_committed(settings: Settings, n: int, process: subprocess.Popen[str]) -> list[int]:
    """The processes that hold a shard, once n are committed."""
    while process.poll() is None:
        done, held = progress(settings)
        if done >= n and held:
            return held
        time.sleep(0.003)
    return []


def kill(fault: str, process: subprocess.Popen[str], holders: Sequence[int], rng: random.Random) -> bool:
    """Whether there was something to kill."""
    if not holders:
        return False
    victims = {"worker": [*holders], "driver": [process.pid]}.get(fault)
    if victims is None:
        victims = [child.pid for child in psutil.Process(process.pid).children() if child.name() == FAULTS[fault]]
    try:
        os.kill(rng.choice(victims), signal.SIGKILL)
    except (ProcessLookupError, IndexError):
        return False
    return True


def one_round(
    settings: Settings, options: Sequence[str], fault: str, n: int, rng: random.Random
) -> tuple[bool, int, str]:
    """(whether it was hit, shards done more than once, the command's last words) of a round in a home of its own."""
    on_ray = ("--engine", "ray", "--workers", "2")
    process = start(settings, options, *on_ray)
    holders = await_committed(settings, n, process)
    time.sleep(rng.uniform(0, 0.02))
    hit = kill(fault, process, holders, rng)
    said = finish(process, well=fault == "worker").strip().splitlines()
    if process.returncode:
        finish(start(settings, options, *on_ray))
    shards, leased = leases(settings)
    return hit, leased - shards, said[-1] if process.returncode and said else ""


def compare(
    folder: Path, faults: Sequence[tuple[str, int]], rng: random.Random, say: Callable[[str], None]
) -> dict[str, int]:
    """Rounds of (what is killed, committed shards before it). Returns how often each fault hit; raises where a home differs."""
    options = make_case(folder / "case")
    reference = Settings.read(folder / "undisturbed", {})
    finish(start(reference, options))
    wanted = named_contents(reference)
    hits = dict.fromkeys(FAULTS, 0)
    for number, (fault, n) in enumerate(faults):
        settings = Settings.read(folder / f"round-{number}", {})
        hit, again, words = one_round(settings, options, fault, n, rng)
        hits[fault] += hit
        say(
            f"round {number}: {fault} killed after {n} shards: {'hit' if hit else 'missed'}, {again} shards done again. {words}"
        )
        found = named_contents(settings)
        differing = [table for table in wanted if found[table] != wanted[table]]
        assert not differing, f"round {number} ({fault} after {n} shards): {differing} differ"
        assert again <= (1 if fault == "worker" else 2), f"round {number}: {again} shards were done again"
    return hits


def chosen(rng: random.Random, rounds: int) -> list[tuple[str, int]]:
    """Every fault in turn, each after a random number of shards."""
    return [([*FAULTS][number % len(FAULTS)], rng.randrange(8)) for number in range(rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    folder = Path(tempfile.mkdtemp(prefix="ray-chaos-"))
    hits = compare(folder, chosen(rng, args.rounds), rng, lambda text: print(text, file=sys.stderr, flush=True))  # noqa: T201
    print(json.dumps({"rounds": args.rounds, "seed": args.seed, "kills": hits}))  # noqa: T201


if __name__ == "__main__":
    main()
