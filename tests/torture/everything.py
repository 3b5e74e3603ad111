"""What `make torture` does beside the faults: readers at a service, the fuzzers, and the long forms of tests with chance in them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.torture.case import Case
from tests.torture.fuzz import Report, surviving
from tests.torture.readers import READERS, Heard, run_readers, summary

ROOT = Path(__file__).parents[2]
LONG = (
    "tests/api/labels/test_machine.py",
    "tests/api/rules/test_machine.py",
    "tests/api/sweeps/test_sweeps.py",
    "tests/indexer/test_caches.py",
    "tests/indexer/test_full_disk.py",
    "tests/indexer/test_machine.py",
    "tests/indexer/test_postgres.py",
    "tests/indexer/test_ray.py",
    "tests/indexer/test_ray_nodes.py",
    "tests/packs/test_real_ray.py",
    "tests/schema/test_jobs.py",
    "tests/api/test_schemathesis.py",
    "tests/scopebase/test_cli.py",
    "tests/scopebase/test_ending.py",
    "tests/torture/test_faults.py",
    "tests/scopebase/test_jobs.py",
)
"""Tests that try more with HYPOTHESIS_PROFILE=torture (see `tests/lengths.py`)."""
MUTATIONS = 12_000
Say = Callable[[str], None]


def readers(case: Case, folder: Path, seed: int, say: Say) -> bool:
    """Whether 500 readers were all answered, and rightly."""
    folder.mkdir()
    heard: Heard = run_readers(case, folder, seed)
    for name, value in summary(heard, READERS).items():
        say(f"  {name}: {value}")
    return not heard.errors and not heard.differing


def fuzzers(folder: Path, seed: int, say: Say, mutations: int = MUTATIONS) -> bool:
    """Whether every damaged file was read or refused."""
    report: Report = surviving(folder, seed, mutations)
    for kind, outcomes in sorted(report.outcomes.items()):
        say(f"  {kind}: {', '.join(f'{n:,} {what}' for what, n in sorted(outcomes.items()))}")
    for fault in report.faults:
        say(f"  FAULT at {fault['at']}: {fault['where']}: {fault['done']}: {fault['wrong'][:200]}")
        say(f"    again: python -m tests.torture.fuzz --seed {seed} --at {fault['at']}")
    return not report.faults


def long_tests(seed: int, say: Say) -> bool:
    """Whether the state machines hold, and Schemathesis finds nothing."""
    environ = {**os.environ, "HYPOTHESIS_PROFILE": "torture"}
    command = [sys.executable, "-m", "pytest", "-q", f"--hypothesis-seed={seed}", "-x", *LONG]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    say("  " + (done.stdout.strip().splitlines() or ["no word"])[-1])
    if done.returncode:
        say(done.stdout[-6000:])
    return done.returncode == 0
