"""Whatever is done to a home, in whatever order, it holds what plain Python says, and verification finds nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis.stateful import run_state_machine_as_test

from schema.settings import Settings
from tests.indexer.machine import RunMachine, profiles
from tests.indexer.test_run import config
from tests.lengths import lengths


def test_runs(indexed: Settings, index_args: dict[str, Any], data_dir: Path) -> None:
    def plan(names: list[str], layers: list[int]) -> Any:
        return config(index_args, data_dir, names=tuple(names), layers=",".join(str(layer) for layer in layers))

    class OneHome(RunMachine):
        reference = profiles(indexed)

    OneHome.plan = staticmethod(plan)
    run_state_machine_as_test(OneHome, settings=lengths(2, 12, steps=(5, 14)))
