"""What Prometheus reads of texts that are generated."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from api.app import create_app
from schema.errors import TooMany
from schema.generation import Choice, Event, Failed, Stats
from schema.home import open_home
from schema.settings import Settings
from tests.api.generation.scripted import Scripted, say

DASHBOARD = Path(__file__).parents[3] / "docs" / "how-to" / "dashboard.json"
BODY = {"prompt": "Ann", "max_tokens": 3}


class Counting(Scripted):
    def stats(self) -> Stats:
        return Stats(generated=40, read=7, rows=16, at_work=2, waiting=5, dropped=1)


def fails(_choices: Sequence[Choice], deliver: Callable[[Event], None]) -> None:
    deliver(Failed(RuntimeError("gone")))


def numbers(client: TestClient) -> dict[str, float]:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {s.name: s.value for family in families for s in family.samples if not s.labels}


@pytest.fixture(autouse=True)
def _no_shared_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)


def test_texts_are_counted_whatever_becomes_of_them(indexed: Settings) -> None:
    generator = Counting()
    with TestClient(create_app(open_home(indexed), generator=generator), base_url="http://127.0.0.1") as client:
        for stream in (False, True):
            assert client.post("/v1/completions", json={**BODY, "stream": stream}).status_code == 200
        generator.refusal = TooMany("4 requests wait", 1)
        assert client.post("/v1/completions", json=BODY).status_code == 429
        generator.refusal, generator.script = None, fails
        with pytest.raises(RuntimeError):
            client.post("/v1/completions", json=BODY)
        generator.script = say
        found = numbers(client)
        told = {
            sample.name
            for family in text_string_to_metric_families(client.get("/metrics").text)
            for sample in family.samples
        }
    drawn = set(re.findall(r"scopebase_\w+", DASHBOARD.read_text(encoding="utf-8")))
    assert drawn - told == set(), "the dashboard draws what nobody tells"
    assert found["scopebase_first_token_seconds_count"] == 2
    assert found["scopebase_texts_refused_total"] == 1
    assert found["scopebase_texts_unfinished_total"] == 1
    assert (found["scopebase_generated_tokens_total"], found["scopebase_prompt_tokens_total"]) == (40, 7)
    assert (found["scopebase_generation_rows"], found["scopebase_generation_rows_at_work"]) == (16, 2)
    assert (found["scopebase_generation_queue"], found["scopebase_texts_dropped_total"]) == (5, 1)


def test_without_a_model_there_is_nothing_to_tell(indexed: Settings) -> None:
    with TestClient(create_app(open_home(indexed)), base_url="http://127.0.0.1") as client:
        assert "scopebase_generation_queue" not in client.get("/metrics").text
