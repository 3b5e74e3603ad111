"""A short form of the chaos suite: `python -m tests.indexer.chaos --every 1` kills at every single event."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "more",
    [
        ["--rounds", "2", "--seed", "11"],
        ["--rounds", "1", "--seed", "12", "--timed", "--weather", "0.05"],
    ],
    ids=["at events", "at times, in a bucket that fails"],
)
def test_whatever_is_killed_the_same_command_ends_the_same(more: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "tests.indexer.chaos", *more], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["kills"] >= 1
