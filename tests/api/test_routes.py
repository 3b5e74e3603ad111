"""The same answers over HTTP, and what a wrong request gets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.app import PROBLEM, create_app
from schema.database import Database, upgrade
from schema.home import open_home
from schema.settings import Settings

SAE = "tiny-qwen3/2-tiny"


@pytest.fixture(scope="module")
def client(indexed: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(open_home(indexed)), raise_server_exceptions=False) as made:
        yield made


def get(client: TestClient, path: str, **params: Any) -> Any:
    response = client.get(f"/v1{path}", params=params)
    assert response.status_code == 200, response.text
    return response.json()


def test_health_and_readiness(client: TestClient) -> None:
    assert get(client, "/health")["status"] == "ok"
    assert get(client, "/ready") == {"status": "ready", "checks": {"database": "ok", "store": "ok"}}


def test_lists_say_what_is_there(client: TestClient) -> None:
    model = get(client, "/models")["data"][0]
    assert (model["id"], model["family"], model["n_layers"], model["d_model"], model["n_saes"]) == (
        "tiny-qwen3",
        "qwen3",
        4,
        32,
        4,
    )
    saes = get(client, "/saes")["data"]
    assert [sae["id"] for sae in saes] == [f"tiny-qwen3/{layer}-tiny" for layer in range(4)]
    assert saes[0]["datasets"] == ["problems", "songs", "tales"]
    assert [sae["layer"] for sae in get(client, "/saes", layer=2, model="tiny-qwen3", set="tiny")["data"]] == [2]
    assert get(client, "/saes", model="other")["data"] == []
    datasets = get(client, "/datasets")["data"]
    assert [(d["id"], d["n_samples"], d["n_runs"]) for d in datasets] == [
        ("problems@1", 60, 1),
        ("songs@1", 45, 1),
        ("tales@1", 50, 1),
    ]
    assert datasets[0]["fields"] == {"id": "text", "text": "text", "answer": "number", "level": "number"}
    runs = get(client, "/runs")["data"]
    assert [(r["dataset"], r["state"], r["snapshot"], r["progress"]) for r in runs] == [
        ("problems@1", "finished", 1, 1.0),
        ("songs@1", "finished", 2, 1.0),
        ("tales@1", "finished", 3, 1.0),
    ]
    assert runs[0]["n_activations"] > runs[0]["n_tokens"] > 0
    assert get(client, "/runs", state="unfinished")["data"] == []
    assert [r["dataset"] for r in get(client, "/runs", dataset="songs")["data"]] == ["songs@1"]


def test_lists_come_in_pages(client: TestClient) -> None:
    first = get(client, "/saes", limit=3)
    assert len(first["data"]) == 3
    second = get(client, "/saes", limit=3, cursor=first["next_cursor"])
    assert [sae["layer"] for sae in first["data"] + second["data"]] == [0, 1, 2, 3]
    assert second["next_cursor"] is None


def test_questions(client: TestClient) -> None:
    answer = get(client, "/overlap", sae=SAE, dataset=["problems", "songs", "tales"], pool="last", min_samples=2)
    assert [d["name"] for d in answer["datasets"]] == ["problems", "songs", "tales"]
    assert answer["overlap"][0][0] == 1.0
    assert set(answer["provenance"]) == {"sae", "sae_sha256", "runs", "pool", "mask", "snapshot"}
    page = get(client, "/diff", sae=SAE, covered_by="tales", not_covered_by="songs", pool="last", limit=2)
    assert len(page["data"]) == 2
    item = page["data"][0]
    assert item["feature"] == f"{SAE}/{item['index']}"
    assert item["samples"][0]["tokens"]
    following = get(
        client,
        "/diff",
        sae=SAE,
        covered_by="tales",
        not_covered_by="songs",
        pool="last",
        limit=2,
        cursor=page["next_cursor"],
    )
    assert following["data"][0]["index"] not in {i["index"] for i in page["data"]}
    redundancy = get(client, "/redundancy", sae=SAE, dataset=["problems", "songs"])
    assert [item["dataset"] for item in redundancy["data"]] == ["problems", "songs"]


@pytest.mark.parametrize(
    ("path", "params", "status", "words"),
    [
        ("/overlap", {"sae": SAE, "dataset": ["problem", "songs"]}, 404, "did you mean problems?"),
        ("/overlap", {"sae": "tiny/2-x", "dataset": ["problems", "songs"]}, 404, "no SAE named 'tiny/2-x'"),
        ("/overlap", {"sae": SAE}, 422, "dataset: Field required"),
        (
            "/overlap",
            {"sae": SAE, "dataset": ["songs", "tales"], "pool": "mean"},
            422,
            "pool: Input should be 'any' or 'last'",
        ),
        ("/overlap", {"sae": SAE, "dataset": ["songs", "tales"], "min_samples": 0}, 422, "min_samples"),
        ("/overlap", {"sae": SAE, "dataset": ["songs", "tales"], "as_of": 10**30}, 422, "as_of"),
        ("/overlap", {"sae": "x" * 5000, "dataset": ["songs", "tales"]}, 422, "sae"),
        ("/diff", {"sae": SAE, "covered_by": "songs"}, 422, "not_covered_by: Field required"),
        ("/diff", {"sae": SAE, "covered_by": "songs", "not_covered_by": "tales", "limit": 1001}, 422, "limit"),
        ("/diff", {"sae": SAE, "covered_by": "songs", "not_covered_by": "tales", "cursor": "%00"}, 422, "cursor"),
        (
            "/diff",
            {"sae": SAE, "covered_by": "'; DROP TABLE runs; --", "not_covered_by": "tales"},
            404,
            "no dataset named",
        ),
        ("/nothing", {}, 404, "there is no GET /v1/nothing here"),
    ],
)
def test_errors_are_problems(client: TestClient, path: str, params: dict[str, Any], status: int, words: str) -> None:
    response = client.get(f"/v1{path}", params=params)
    assert response.status_code == status
    assert response.headers["content-type"] == PROBLEM
    problem = response.json()
    assert {"type", "title", "status", "detail"} <= set(problem)
    assert words in problem["detail"]
    assert len(response.content) < 2000, "what was sent is not sent back"


def test_a_method_that_a_route_does_not_have(client: TestClient) -> None:
    response = client.post("/v1/overlap")
    assert (response.status_code, response.headers["content-type"]) == (405, PROBLEM)
    assert response.headers["allow"] == "GET"


def test_a_fault_of_ours_is_a_problem_too(indexed: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(open_home(indexed))
    monkeypatch.setattr(app.state.library, "refresh", lambda: 1 // 0)
    with TestClient(app, raise_server_exceptions=False) as client:
        response = client.get("/v1/models")
    assert (response.status_code, response.headers["content-type"]) == (500, PROBLEM)
    assert response.json()["detail"] == "a fault of Scopebase (ZeroDivisionError); the server's log has its trace"


def test_a_team_home_is_ready_before_its_first_run(tmp_path: Path) -> None:
    settings = Settings.read(tmp_path / "home", {})
    settings.home.mkdir()
    upgrade(Database(settings.database_url))
    with TestClient(create_app(open_home(settings))) as client:
        assert get(client, "/ready") == {"status": "ready", "checks": {"database": "ok", "store": "empty"}}
        assert get(client, "/datasets")["data"] == []


def test_not_ready_when_the_store_is_gone(indexed: Settings, tmp_path: Path) -> None:
    import shutil

    copy = Settings.read(tmp_path / "copy", {})
    shutil.copytree(indexed.home, copy.home)
    with TestClient(create_app(open_home(copy)), raise_server_exceptions=False) as client:
        shutil.rmtree(copy.home / "store" / "profiles.lance")
        client.app.state.library.store.refresh()  # type: ignore[attr-defined]
        response = client.get("/v1/ready")
        assert response.status_code == 503
        assert "profiles" in response.json()["checks"]["store"]


def test_the_committed_openapi_is_current(client: TestClient) -> None:
    """`make docs` writes it."""
    committed = json.loads(Path("docs/reference/openapi.json").read_text())
    current = client.get("/openapi.json").json()
    current["info"]["version"] = committed["info"]["version"]
    assert current == committed


def test_the_query_side_runs_without_torch() -> None:
    import subprocess
    import sys

    script = "import sys, scopebase, api.app, scopebase.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
