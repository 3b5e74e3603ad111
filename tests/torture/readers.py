"""500 people who read while an indexer writes: no error, never half a run, and the same answer for the same snapshot whoever asks.

Each reader keeps a connection open and asks again a while after its last answer. What is asked for and not there yet is a 404 and no
error; from its first 200 on, an answer about a dataset must be the one that it is when all is done.

    python -m tests.torture.readers --seed 1
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from schema.settings import Settings
from tests.making import PROBLEMS, SONGS, TALES, write_jsonl
from tests.torture.case import Case, make_case, run_index
from tests.torture.children import DONE, Child

READERS, PAUSE, SECONDS = 500, 5.0, 40.0
N_DATASETS = 8
SAES = ("tiny-qwen3/0-tiny", "tiny-qwen3/1-tiny")
GROUPS = tuple(f"group{number}" for number in range(N_DATASETS))


@dataclass
class Heard:
    """What all readers heard."""

    milliseconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    answers: dict[str, dict[int, str]] = field(default_factory=dict)
    """Question -> snapshot -> the answer, without where it comes from."""
    missing: int = 0
    """404: not there yet."""
    waited: int = 0
    """Told to come back in a second."""
    differing: list[str] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        times = sorted(self.milliseconds)
        return times[min(len(times) - 1, int(len(times) * share))] if times else 0.0


def questions(rng: random.Random) -> str:
    """A path; the datasets may not be there yet."""
    sae, pool, names = rng.choice(SAES), rng.choice(("any", "last")), ("songs", *GROUPS)
    kind = rng.randrange(4)
    if kind == 0:
        return "overlap?" + urlencode({"sae": sae, "dataset": rng.sample(names, 2), "pool": pool}, doseq=True)
    if kind == 1:
        return "redundancy?" + urlencode({"sae": sae, "dataset": rng.choice(names), "pool": pool})
    if kind == 2:
        a, b = rng.sample(names, 2)
        return "diff?" + urlencode({"sae": sae, "covered_by": a, "not_covered_by": b, "pool": pool})
    return "datasets?" + urlencode({"name": rng.choice(names)})


def run_readers(
    case: Case, folder: Path, seed: int, readers: int = READERS, seconds: float = SECONDS, pause: float = PAUSE
) -> Heard:
    """Readers at a service of two processes over a home, while another process indexes into it.

    Raises:
        AssertionError: the indexer fails.
    """
    settings = Settings.read(shutil.copytree(case.begun, folder / "home"), {})
    rows = [*PROBLEMS, *SONGS, *TALES]
    for number, name in enumerate(GROUPS):
        write_jsonl(folder / f"{name}.jsonl", [{**row, "id": str(i)} for i, row in enumerate(rows[number::N_DATASETS])])
    plan = replace(case.config, datasets=tuple((name, str(folder / f"{name}.jsonl")) for name in GROUPS))
    with service(settings.home) as port:
        asyncio.run(_warm(port))
        indexer = Child(partial(run_index, plan, settings))
        heard = asyncio.run(_read(port, seed, readers, seconds, pause))
        ended = indexer.wait()
        assert ended.status == DONE, ended.said[-2000:]
        asyncio.run(_compare(port, heard))
    return heard


@contextmanager
def service(home: Path) -> Iterator[int]:
    """`scopebase serve --workers 2`; its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "scopebase", "--home", str(home), "serve", "--port", str(port), "--workers", "2"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        try:
            yield port
        finally:
            process.terminate()


async def _warm(port: int) -> None:
    """So that both processes have imported what answers need."""
    await asyncio.gather(*(_ask_once(port, f"redundancy?dataset=songs&sae={SAES[0]}") for _ in range(8)))


async def _read(port: int, seed: int, readers: int, seconds: float, pause: float) -> Heard:
    heard, until = Heard(), time.monotonic() + seconds
    tasks = [_reader(port, random.Random(f"{seed} {number}"), until, pause, heard) for number in range(readers)]
    await asyncio.gather(*tasks)
    return heard


async def _reader(port: int, rng: random.Random, until: float, pause: float, heard: Heard) -> None:
    """One person, with a client that does as it is asked: it waits where the service says so, and opens closed connections anew."""
    await asyncio.sleep(rng.uniform(0, pause))  # they do not come all at the same moment
    connection = await asyncio.open_connection("127.0.0.1", port)
    while time.monotonic() < until:
        path, begin, tries = questions(rng), time.perf_counter(), 0
        while True:
            tries += 1
            try:
                status, body = await _ask(*connection, path)
            except (OSError, EOFError) as error:
                if tries > 3:
                    heard.errors.append(f"{path}: {type(error).__name__} {error}")
                    return
                connection = await asyncio.open_connection("127.0.0.1", port)  # it was closed for being idle
                continue
            if status != 503 or b"try again" not in body or tries > 30:
                break
            heard.waited += 1
            await asyncio.sleep(1)
        heard.milliseconds.append((time.perf_counter() - begin) * 1000)
        note(heard, path, status, body)
        await asyncio.sleep(rng.expovariate(1 / pause))
    connection[1].close()


async def _ask_once(port: int, path: str) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    status, body = await _ask(reader, writer, path)
    writer.close()
    return status, body


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> tuple[int, bytes]:
    writer.write(f"GET /v1/{path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
    return int(head.split(" ", 2)[1]), await reader.readexactly(length)


def note(heard: Heard, path: str, status: int, body: bytes) -> None:
    """Keeps an answer, and whether it contradicts another of the same snapshot."""
    if status == 404:
        heard.missing += 1
    elif status != 200:
        heard.errors.append(f"{path}: {status} {body[:200]!r}")
    else:
        answer = json.loads(body)
        snapshot = answer.get("provenance", {}).get("snapshot", 0)
        said, known = _plain(answer), heard.answers.setdefault(path, {})
        if known.setdefault(snapshot, said) != said and "provenance" in answer:
            heard.differing.append(f"{path}: two answers of snapshot {snapshot}")
        known[snapshot] = said


def _plain(answer: dict[str, Any]) -> str:
    """An answer without the snapshot it is of: what it says about datasets that are whole never changes."""
    kept = {name: value for name, value in answer.items() if name not in ("provenance", "next_cursor")}
    return json.dumps(kept, sort_keys=True)


async def _compare(port: int, heard: Heard) -> None:
    """Every answer that was given meanwhile is the one that is given now."""
    for path, known in heard.answers.items():
        status, body = await _ask_once(port, path)
        if status != 200:
            heard.differing.append(f"{path}: {status} in the end")
            continue
        final = json.loads(body)
        if path.startswith("datasets"):
            _compare_lists(heard, path, known, final)
        else:
            wrong = [snapshot for snapshot, said in known.items() if said != _plain(final)]
            heard.differing += [f"{path}: snapshot {snapshot} said something else" for snapshot in wrong]


def _compare_lists(heard: Heard, path: str, known: dict[int, str], final: dict[str, Any]) -> None:
    """A list may have been empty; what it told of a dataset is what it tells now, but for which runs it has."""
    names = {each["name"]: each["n_samples"] for each in final["data"]}
    for said in known.values():
        for each in json.loads(said)["data"]:
            if names.get(each["name"]) != each["n_samples"]:
                heard.differing.append(f"{path}: {each['name']} had {each['n_samples']} samples")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", type=int, default=READERS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    try:
        heard = run_readers(make_case(folder / "case"), folder, args.seed, args.readers, args.seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(summary(heard, args.readers), indent=1))  # noqa: T201
    sys.exit(bool(heard.errors or heard.differing))


def summary(heard: Heard, readers: int) -> dict[str, Any]:
    """What is told of it."""
    return {
        "readers": readers,
        "answers": len(heard.milliseconds),
        "not there yet": heard.missing,
        "asked to wait": heard.waited,
        "errors": heard.errors[:20],
        "contradictions": heard.differing[:20],
        "median ms": round(heard.quantile(0.5), 1),
        "p99 ms": round(heard.quantile(0.99), 1),
    }


if __name__ == "__main__":
    main()
