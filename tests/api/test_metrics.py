"""What Prometheus reads of the service."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from api.app import create_app
from api.gate.access import Access
from schema.home import open_home
from schema.settings import Settings


def numbers(text: str) -> dict[tuple[str, str, str], float]:
    """(name, route, status) -> value"""
    return {
        (
            sample.name,
            sample.labels.get("route", sample.labels.get("state", "")),
            sample.labels.get("status", ""),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "le" not in sample.labels
    }


def test_requests_are_counted_by_route_and_not_by_name(indexed: Settings) -> None:
    with TestClient(create_app(open_home(indexed)), base_url="http://127.0.0.1") as client:
        for feature in (3, 4, 999_999):
            client.get(f"/v1/features/tiny-qwen3/1-tiny/{feature}")
        client.get("/v1/nothing")
        found = numbers(client.get("/metrics").text)
    asked = "/v1/features/{feature:path}"
    assert {key[1] for key in found if key[0] == "scopebase_requests_total"} == {asked, "none"}
    assert found["scopebase_requests_total", asked, "200"] == 2
    assert found["scopebase_requests_total", asked, "404"] == 1
    assert found["scopebase_requests_total", "none", "404"] == 1
    assert found["scopebase_request_seconds_count", asked, ""] == 3
    assert found["scopebase_requests_at_work", "", ""] == 1, "the look at the numbers itself"


def test_what_the_home_holds_is_counted_when_looked_at(indexed: Settings) -> None:
    with TestClient(create_app(open_home(indexed)), base_url="http://127.0.0.1") as client:
        found = numbers(client.get("/metrics").text)
        runs = client.get("/v1/runs").json()["data"]
    assert found["scopebase_runs_finished", "", ""] == 3
    assert found["scopebase_activations", "", ""] == sum(run["n_activations"] for run in runs)
    assert found["scopebase_store_bytes", "", ""] == sum(run["bytes"] for run in runs)
    assert found["scopebase_shards", "open", ""] == 0
    assert found["scopebase_database_up", "", ""] == 1


def test_the_tables_are_as_large_as_their_files(indexed: Settings) -> None:
    home = open_home(indexed)
    with TestClient(create_app(home), base_url="http://127.0.0.1") as client:
        for _again in range(2):
            families = {f.name: f for f in text_string_to_metric_families(client.get("/metrics").text)}
            told = {s.labels["table"]: s.value for s in families["scopebase_table_bytes"].samples}
    assert set(told) == set(home.tables())
    for name, size in told.items():
        named = {file.path for fragment in home.store.latest(name).get_fragments() for file in fragment.metadata.files}
        assert size == sum((indexed.home / "store" / f"{name}.lance" / "data" / path).stat().st_size for path in named)


def test_a_key_is_asked_for_where_the_service_asks(indexed: Settings) -> None:
    with TestClient(create_app(open_home(indexed), access=Access(auth=True)), base_url="http://127.0.0.1") as client:
        assert client.get("/metrics").status_code == 401


@pytest.fixture(autouse=True)
def _no_shared_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
