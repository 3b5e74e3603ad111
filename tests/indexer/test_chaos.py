"""A short form of `python -m tests.torture`, which does the same two hundred times and in other ways too."""

from __future__ import annotations

import json
import subprocess
import sys


def test_whatever_is_killed_the_same_command_ends_the_same() -> None:
    kinds = ["--only", "indexer-event"]
    command = [sys.executable, "-m", "tests.torture", "--seed", "11", "--faults", "1", "--lanes", "1", "--json", *kinds]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    faults = json.loads(done.stdout)["faults"]
    assert [each["survived"] for each in faults] == [True]
    assert faults[0]["kind"] == "indexer-event"
    assert "not reached" not in faults[0]["said"]
