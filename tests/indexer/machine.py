"""A home and what it should hold, in plain Python: indexed, killed at some event, removed from, verified, backed up and restored."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from api.services.removing import a_dataset, do
from indexer import worker
from indexer.run import index
from schema import ledger
from schema.backup import back_up, restore
from schema.home import open_home
from schema.layout import sample_key
from schema.settings import Settings
from schema.tables import RunSae
from schema.verify import verify
from tests.torture.events import Events

NAMES = st.lists(st.sampled_from(["problems", "songs", "tales"]), min_size=1, max_size=2, unique=True)
LAYERS = st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=2, unique=True)
COLUMNS = ("n_samples", "n_tokens", "samples_any", "samples_last", "tokens", "sums", "maxima", "histogram")
Pair = tuple[str, int]
"""(dataset, layer)"""


class Death(BaseException):
    """As good as SIGKILL: nothing is tidied up behind it."""


def profiles(settings: Settings) -> dict[Pair, list[Any]]:
    """What every finished run says, by dataset and layer; refuses a pair that is there twice."""
    home, found = open_home(settings), {}
    with home.database.reading() as session:
        pairs = {
            pair.id: (pair.run.dataset.name, pair.sae.layer)
            for pair in session.query(RunSae)
            if pair.run.finished is not None
        }
    assert len(set(pairs.values())) == len(pairs)
    for pair, name in pairs.items():
        rows = home.store.rows("profiles", [sample_key(pair)], COLUMNS)
        found[name] = [rows.column(column)[0].as_py() for column in COLUMNS]
    home.close()
    return found


class RunMachine(RuleBasedStateMachine):
    """Subclasses say how a plan is made, and what every pair's profile is."""

    plan: Callable[..., Any]
    reference: dict[Pair, list[Any]]
    events = 600
    """About how many an index command of two datasets has."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="scopebase-runs-"))
        self.settings = Settings.read(self.folder / "home-0", {})
        self.present: set[Pair] = set()
        self.backup: set[Pair] | None = None
        self.n_homes = 0

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    @rule(names=NAMES, layers=LAYERS)
    def index(self, names: list[str], layers: list[int]) -> None:
        asked = {(name, layer) for name in names for layer in layers}
        reports = index(type(self).plan(names, layers), self.settings)
        assert all(report.already for report in reports) == (asked <= self.present)
        self.present |= asked

    @rule(names=NAMES, layers=LAYERS, share=st.floats(0, 1))
    def die(self, names: list[str], layers: list[int], share: float) -> None:
        """What was finished stays; of what was asked for, something may be."""

        def dying() -> None:
            raise Death

        with pytest.MonkeyPatch.context() as patch:
            Events(int(share * self.events), dying).watch(patch.setattr)
            patch.setattr(ledger, "owner_name", lambda: f"{socket.gethostname()}:4194000:1")
            patch.setattr(ledger.Ledger, "_release", lambda *_: None)
            patch.setattr(worker, "discard", lambda *_: None)
            with suppress(Death):
                index(type(self).plan(names, layers), self.settings)
        if (self.settings.home / "scopebase.db").exists():
            index(type(self).plan(names, layers), self.settings)
            self.present |= {(name, layer) for name in names for layer in layers}

    @precondition(lambda self: self.present)
    @rule(k=st.integers(0, 8))
    def remove(self, k: int) -> None:
        name = sorted({name for name, _ in self.present})[k % len({name for name, _ in self.present})]
        home = open_home(self.settings)
        do(home, a_dataset(name), "ann")
        home.close()
        self.present = {pair for pair in self.present if pair[0] != name}

    @precondition(lambda self: self.present)
    @rule()
    def back_up(self) -> None:
        shutil.rmtree(self.folder / "backup", ignore_errors=True)
        home = open_home(self.settings)
        back_up(home, self.folder / "backup")
        home.close()
        self.backup = set(self.present)

    @precondition(lambda self: self.backup is not None)
    @rule()
    def restore(self) -> None:
        """Into another place, where everything goes on."""
        assert self.backup is not None
        self.n_homes += 1
        self.settings = Settings.read(self.folder / f"home-{self.n_homes}", {})
        restore(self.folder / "backup", self.settings)
        self.present = set(self.backup)

    @invariant()
    def it_holds_what_it_should_and_nothing_else(self) -> None:
        if hasattr(self, "settings") and (self.settings.home / "scopebase.db").exists():
            found = profiles(self.settings)
            assert set(found) == self.present
            assert all(found[pair] == type(self).reference[pair] for pair in found)
            home = open_home(self.settings)
            assert verify(home, deep=True).findings == []
            home.close()
