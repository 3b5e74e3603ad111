"""A fuzzer on every file reader: a damaged or hostile file is read rightly or refused in a sentence, and nothing else ever happens.

Mutations of valid files are read one after another in a process of its own, with bounded memory and time. Not allowed are any exception
outside of InputError's family, a hang, a blow-up of memory, a dead process, a sentence of several lines, and anything that runs.

    python -m tests.torture.fuzz --seed 1 --mutations 4000
    python -m tests.torture.fuzz --seed 1 --at 1234         # one of them again, with its traceback
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from schema.errors import InputError, ScopebaseError
from tests.torture.mutations import hostile, mutate
from tests.torture.seeds import Seed, make_seeds

SECONDS = 20
"""That one file may take."""
ROOM = 700 << 20
"""Bytes of address space beyond what the process had before."""
LONGEST = 1000
"""Characters of a sentence."""
RUNNING = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "ctypes.dlopen")
"""Audit events that no reader may cause."""


class Hang(BaseException):
    """Reading took too long."""


@dataclass
class Report:
    """What became of the files."""

    seed: int
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    """Kind -> how many were read as they were, read as something else, refused."""
    faults: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    def count(self, kind: str, outcome: str) -> None:
        self.outcomes.setdefault(kind, Counter())[outcome] += 1


@dataclass(frozen=True)
class Case:
    """One damaged file."""

    at: int
    seed: Seed
    victim: Path
    done: str
    data: bytes


def cases(seeds: list[Seed], seed: int, n: int, mark: Path) -> Iterator[Case]:
    """The mutations of a seed, each known by its number alone; before them the hostile files in place of every file."""
    bad = [
        (each, victim, name, data)
        for each in seeds
        for victim in dict.fromkeys(each.files())
        for name, data in hostile(mark).items()
    ]
    for at in range(n):
        if at < len(bad) and at % 2:  # every second one, until all were read
            each, victim, name, data = bad[(at * 7919) % len(bad)]
        else:
            rng = random.Random(f"{seed} {at}")
            each = rng.choices(seeds, [each.share for each in seeds])[0]
            victim = rng.choice(each.files())
            name, data = mutate(victim.read_bytes(), rng)
        yield Case(at, each, victim, name, data)


@contextmanager
def bounded() -> Iterator[None]:
    """Little memory, for as long as it lasts."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextmanager
def in_time() -> Iterator[None]:
    """An alarm while a file is read."""

    def late(_signal: int, _frame: FrameType | None) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def outcome(case: Case, good: Any, ran: list[str], mark: Path) -> tuple[str, str | None]:
    """What became of a file, and what is wrong with that."""
    ran.clear()
    try:
        with in_time():
            found = case.seed.read(case.seed.root)
        said, wrong = ("read as it was" if found == good else "read as something else"), None
    except InputError as error:
        said, wrong = "refused", _bad_sentence(str(error))
    except ScopebaseError as error:
        said, wrong = "refused", f"{type(error).__name__}, as if the machine were at fault: {error}"
    except Hang:
        said, wrong = "hung", f"took longer than {SECONDS} s"
    except MemoryError:
        said, wrong = "blew up", f"needs more than {ROOM >> 20} MiB"
    except BaseException as error:
        said, wrong = "raised", "".join(traceback.format_exception_only(error)).strip()
    if mark.exists() or ran:
        mark.unlink(missing_ok=True)
        return "ran", f"the file ran something: {ran}"
    return said, wrong


def _bad_sentence(text: str) -> str | None:
    if not text.strip() or len(text) > LONGEST:
        return f"a sentence of {len(text):,} characters: {text[:200]!r}"
    return f"several lines: {text[:300]!r}" if "\n" in text.strip() else None


def fuzz(
    folder: Path, seed: int, n: int, kinds: tuple[str, ...] = (), only: int | None = None, begin: int = 0
) -> Report:
    """Reads n damaged files; progress stands in `folder/at`, so that a process that dies can be told which file killed it."""
    mark, report, ran = folder / "it-ran", Report(seed), list[str]()
    warnings.simplefilter("ignore")
    seeds = make_seeds(folder / "seeds", kinds)
    good = {(each.kind, each.name): each.read(each.root) for each in seeds}
    armed = [False]

    def hook(event: str, _args: tuple[Any, ...]) -> None:
        if armed[0] and event in RUNNING:
            ran.append(event)

    sys.addaudithook(hook)
    start = time.monotonic()
    with bounded():
        for case in cases(seeds, seed, n, mark):
            if case.at < begin or only not in (None, case.at):
                continue
            (folder / "at").write_text(str(case.at))
            kept = case.victim.read_bytes()
            case.victim.write_bytes(case.data)
            armed[0] = True
            said, wrong = outcome(case, good[case.seed.kind, case.seed.name], ran, mark)
            armed[0] = False
            if only is not None:
                _tell(case)
            case.victim.write_bytes(kept)
            report.count(case.seed.kind, said)
            if wrong:
                where = f"{case.seed.kind}, {case.seed.name}, {case.victim.name}"
                report.faults.append({"at": case.at, "where": where, "done": case.done, "wrong": wrong[:600]})
    report.seconds = time.monotonic() - start
    return report


def _tell(case: Case) -> None:
    """For one file again: what it was, and the whole traceback."""
    print(f"{case.seed.kind}, {case.seed.name}, {case.victim.name}: {case.done}; {case.data[:300]!r}", file=sys.stderr)  # noqa: T201
    try:
        case.seed.read(case.seed.root)
    except BaseException:
        traceback.print_exc()


def surviving(folder: Path, seed: int, n: int, kinds: tuple[str, ...] = ()) -> Report:
    """Like `fuzz`, in children: a file that kills its process is a fault, and the next child goes on behind it."""
    whole, begin = Report(seed), 0
    while begin < n:
        here = folder / f"from-{begin}"
        here.mkdir(parents=True)
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            report = fuzz(here, seed, n, kinds, begin=begin)
            (here / "report.json").write_text(json.dumps(vars(report)))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status == 0:
            part = json.loads((here / "report.json").read_text())
            begin = n
        else:
            at = int((here / "at").read_text()) if (here / "at").exists() else n
            died = {"at": at, "where": "the process died", "done": "", "wrong": f"status {status}"}
            part = {"outcomes": {}, "faults": [died], "seconds": 0.0}
            begin = at + 1
        for kind, counted in part["outcomes"].items():
            whole.outcomes.setdefault(kind, Counter()).update(counted)
        whole.faults += part["faults"]
        whole.seconds += part["seconds"]
        shutil.rmtree(here, ignore_errors=True)
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--kind", action="append", default=[], help="only readers of this kind")
    parser.add_argument("--at", type=int, help="only this one, with its traceback")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        if args.at is not None:
            report = fuzz(folder, args.seed, args.at + 1, tuple(args.kind), args.at)
        else:
            report = surviving(folder, args.seed, args.mutations, tuple(args.kind))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(vars(report), indent=1))  # noqa: T201
    sys.exit(bool(report.faults))


if __name__ == "__main__":
    main()
