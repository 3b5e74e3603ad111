"""Schemathesis over every route that the API describes, with keys asked for: it finds nothing.

Requests are made from the description, right ones and wrong ones; every answer must be one that the description knows.
"""

from __future__ import annotations

import re
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from api.app import create_app
from api.gate.access import Access, is_open
from api.wording import EXAMPLES
from schema.home import open_home
from schema.keys import create_key
from schema.settings import Settings
from schema.words import Scope
from tests.api.generation.scripted import Scripted
from tests.lengths import LONG

N_EXAMPLES = (
    {GenerationMode.POSITIVE: 60, GenerationMode.NEGATIVE: 40}
    if LONG
    else {GenerationMode.POSITIVE: 2, GenerationMode.NEGATIVE: 1}
)
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


_LABEL = (
    "POST /v1/labels", "PATCH /v1/labels/{label}", "DELETE /v1/labels/{label}", "POST /v1/labels/{label}/votes",
    "POST /v1/labels/{label}/comments", "POST /v1/labels/{label}/undo", "POST /v1/labels/import",
    "POST /v1/labels/describe", "POST /v1/labels/explain",
)  # fmt: skip
_WRITE = (
    "POST /v1/evaluations", "POST /v1/evaluations/import", "DELETE /v1/evaluations/{evaluation}", "POST /v1/rules",
    "POST /v1/rules/{name}/sign", "POST /v1/rules/{name}/evaluate", "POST /v1/steering-vectors",
    "POST /v1/steering-vectors/import", "DELETE /v1/steering-vectors/{name}", "POST /v1/sweeps", "POST /v1/sweeps/{name}/stop",
    "DELETE /v1/sweeps/{name}",
    "POST /v1/jobs", "POST /v1/jobs/{job}/cancel", "POST /v1/jobs/{job}/retry", "DELETE /v1/jobs/{job}",
)  # fmt: skip
_ADMIN = ("DELETE /v1/runs/{run}", "DELETE /v1/datasets/{dataset}", "DELETE /v1/saes/{sae}", "GET /v1/audit")
MORE_THAN_READ = {**dict.fromkeys(_LABEL, "label"), **dict.fromkeys(_WRITE, "write"), **dict.fromkeys(_ADMIN, "admin")}
"""Route -> the least that it asks for, where that is more than reading."""


@pytest.fixture(scope="module")
def keys(described: Any) -> dict[str, str]:
    """A key of each scope, and what is none."""
    library = described.app.state.library
    made = {"none": "", "unknown": "sb_" + "x" * 40}
    with library.home.database.writing() as session:
        for scope in get_args(Scope):
            made[scope] = create_key(session, f"only-{scope}", scope, None, "root")[1]
    return made


def test_every_route_asks_for_its_scope(described: Any, keys: dict[str, str]) -> None:
    """Without a key nothing but the watched routes answers; a key of a lesser scope is refused whatever it asks."""
    client, needed = TestClient(described.app, raise_server_exceptions=False), {}
    admin = {"authorization": f"Bearer {keys['admin']}"}
    until = time.monotonic() + 30
    while client.get("/v1/models", headers=admin).status_code == 401 and time.monotonic() < until:
        time.sleep(0.1)  # a service that has just looked for an unknown key does not look again at once
    for result in described.get_all_operations():
        method, path = (operation := result.ok()).method.upper(), operation.path
        url = re.sub(r"{[^}]*}", "999999", path)  # what is somebody else's would ask for more
        headers = {name: {"authorization": f"Bearer {key}"} if key else {} for name, key in keys.items()}
        told = {name: client.request(method, url, headers=sent).status_code for name, sent in headers.items()}
        if is_open(path):
            assert not {401, 403} & set(told.values()), (method, path)
            continue
        assert (told["none"], told["unknown"]) == (401, 401), (method, path)
        may = [scope for scope in get_args(Scope) if told[scope] not in (401, 403)]
        assert may == list(get_args(Scope))[-len(may) :], "a higher scope may what a lower one may"
        if may[0] != "read":
            needed[f"{method} {path}"] = may[0]
    assert needed == MORE_THAN_READ


def _try(strategy: Any, n: int, refused: bool = True) -> None:
    @settings(
        max_examples=n, deadline=None, derandomize=not LONG, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(strategy)
    def check(case: schemathesis.Case) -> None:
        response = case.call_and_validate()
        readable = refused or case.media_type != "application/json"
        assert readable or response.status_code not in (400, 422), response.text

    check()
