"""Schemathesis over every route that the API describes, with keys asked for: it finds nothing.

Requests are made from the description, right ones and wrong ones; every answer must be one that the description knows.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from api.app import create_app
from api.gate.access import Access
from api.wording import EXAMPLES
from schema.home import open_home
from schema.keys import create_key
from schema.settings import Settings
from tests.api.generation.scripted import Scripted

N_EXAMPLES = {GenerationMode.POSITIVE: 3, GenerationMode.NEGATIVE: 2}
"""Requests a route; hypothesis adds some when one fails."""
SAE = "tiny-qwen3/2-tiny"
HERE = {
    **{name: SAE for name in ("sae", "a")},
    **{name: "tiny-qwen3/1-tiny" for name in ("b", "in_sae")},
    **{name: f"{SAE}/7" for name in ("feature", "target")},
    "as_of": 3,
    "control": "tales",
    "covered_by": "problems",
    "cursor": "1-3",
    "dataset": ["problems", "songs"],
    "index": 7,
    "layer": 2,
    "model": "tiny-qwen3",
    "name": "problems",
    "not_covered_by": "songs",
    "sample": "p1",
    "samples": ["p1", "p2"],
    "set": "tiny",
}
"""Examples that this home can answer, so that what lies behind a name is reached too."""


@schemathesis.serializer("application/x-ndjson", "application/vnd.apache.parquet")
def as_it_is(_context: Any, value: Any) -> Any:
    """Packs of labels, mostly no packs at all."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")


@pytest.fixture(scope="module")
def described(indexed: Settings, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The routes of a service over a copy of the indexed home, and a key that may do everything."""
    copy = Settings.read(tmp_path_factory.mktemp("schemathesis") / "home", {})
    shutil.copytree(indexed.home, copy.home)
    home = open_home(copy)
    with home.database.writing() as session:
        _, secret = create_key(session, "schemathesis", "admin", None, "root")
    monkey = pytest.MonkeyPatch()
    for name, example in HERE.items():
        monkey.setitem(EXAMPLES, name, example)
    config = schemathesis.Config.from_path(Path(__file__).parents[2] / "schemathesis.toml")
    app = create_app(home, access=Access(auth=True))
    app.state.generator = Scripted()  # it writes, and reads no texts
    app.state.jobs.longest = 0.05  # nobody does the jobs, and their watchers would stay
    found = schemathesis.openapi.from_asgi("/openapi.json", app, config=config)

    @found.auth()
    class Key:
        def get(self, _case: Any, _context: Any) -> str:
            return secret

        def set(self, case: Any, key: str, _context: Any) -> None:
            case.headers["Authorization"] = f"Bearer {key}"

    yield found
    monkey.undo()


def test_nothing_is_found(described: Any, subtests: pytest.Subtests) -> None:
    operations = [result.ok() for result in described.get_all_operations()]
    for operation in sorted(
        operations, key=lambda each: each.label.startswith("DELETE")
    ):  # what is removed answers nothing more
        for mode, n in N_EXAMPLES.items():
            with (
                subtests.test(f"{operation.label}, {mode.value}"),
                suppress(Unsatisfiable),
            ):  # nothing that could be wrong
                _try(operation.as_strategy(generation_mode=mode, auth_storage=described.auth), n)


def test_the_examples_of_parameters_are_answered(described: Any, subtests: pytest.Subtests) -> None:
    for result in described.get_all_operations():
        operation = result.ok()
        if not operation.body:
            for strategy in operation.get_strategies_from_examples(auth_storage=described.auth):
                with subtests.test(operation.label):
                    _try(strategy, 1)


def test_the_examples_of_bodies_are_understood(described: Any, subtests: pytest.Subtests) -> None:
    """They name what this home does not have; beyond that nothing is wrong with them."""
    for result in described.get_all_operations():
        operation = result.ok()
        if operation.body:
            for strategy in operation.get_strategies_from_examples(auth_storage=described.auth):
                with subtests.test(operation.label):
                    _try(strategy, 1, refused=False)


def _try(strategy: Any, n: int, refused: bool = True) -> None:
    @settings(max_examples=n, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def check(case: schemathesis.Case) -> None:
        response = case.call_and_validate()
        readable = refused or case.media_type != "application/json"
        assert readable or response.status_code not in (400, 422), response.text

    check()
