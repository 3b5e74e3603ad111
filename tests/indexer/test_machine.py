"""Whatever is done to a home, in whatever order, it holds what plain Python says, and verification finds nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis.stateful import run_state_machine_as_test

from schema.settings import Settings
from tests.indexer.machine import RunMachine, profiles
from tests.indexer.test_run import config
from tests.lengths import LONG, lengths


def test_runs(indexed: Settings, index_args: dict[str, Any], data_dir: Path) -> None:
    def plan(names: list[str], layers: list[int]) -> Any:
        return config(index_args, data_dir, names=tuple(names), layers=",".join(str(layer) for layer in layers))

    class OneHome(RunMachine):
        reference = profiles(indexed)

    OneHome.plan = staticmethod(plan)
    if LONG:
        run_state_machine_as_test(OneHome, settings=lengths(0, 12, steps=(0, 14)))
    else:
        _each_once(OneHome())


def _each_once(home: RunMachine) -> None:
    """Of what `make torture` does in any order, the order that has most of it in few steps."""
    home.begin()
    for step in (
        lambda: home.die(["songs"], [1], 0.4),
        home.back_up,
        lambda: home.remove(0),
        home.restore,
    ):
        step()
        home.it_holds_what_it_should_and_nothing_else()
    home.teardown()
