"""Labels over HTTP: the shapes, the refusals and the streams that clients meet."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from api.services.library import Library
from tests.laboratory import make_lab


@pytest.fixture
def lab(tmp_path: Path) -> Library:
    return make_lab(tmp_path / "lab")


@pytest.fixture
def client(lab: Library) -> Iterator[TestClient]:
    with TestClient(create_app(lab.home)) as made:
        yield made


def test_a_label_from_making_to_undo(client: TestClient) -> None:
    made = client.post("/v1/labels", json={"feature": "m/3-tiny/7", "text": " apples "})
    assert made.status_code == 201
    label = made.json()
    assert (label["text"], label["author"], label["index"], label["version"]) == ("apples", "local", 7, 1)
    url = f"/v1/labels/{label['id']}"
    assert client.get(url).json() == label
    assert client.patch(url, json={"version": 1, "text": "pears"}).json()["version"] == 2
    stale = client.patch(url, json={"version": 1, "text": "plums"})
    assert (stale.status_code, stale.headers["content-type"]) == (409, "application/problem+json")
    assert client.post(f"{url}/votes", json={"value": -1}).json()["votes"] == -1
    assert client.post(f"{url}/comments", json={"text": "why?"}).status_code == 201
    assert [c["text"] for c in client.get(f"{url}/comments").json()["data"]] == ["why?"]
    found = client.post("/v1/features/search", json={"text": "pear"}).json()
    assert [each["id"] for each in found["data"]] == ["m/3-tiny/7"]
    assert client.delete(url, params={"version": 1}).status_code == 409
    assert client.delete(url).json()["deleted"] is True
    assert client.get(url).status_code == 404
    assert client.post(f"{url}/undo").json()["text"] == "pears"
    assert [e["action"] for e in client.get(f"{url}/history").json()["data"]] == ["undo", "delete", "edit", "create"]


def test_a_label_whose_making_was_undone_comes_back(client: TestClient) -> None:
    url = f"/v1/labels/{client.post('/v1/labels', json={'feature': 'm/3-tiny/7', 'text': 'apples'}).json()['id']}"
    client.delete(url)
    assert client.post(f"{url}/undo").json()["deleted"] is False
    assert client.post(f"{url}/undo").json()["deleted"] is True, "its making is taken back"
    assert client.post(f"{url}/undo").json()["text"] == "apples"
    assert client.get(url).status_code == 200
    assert client.post(f"{url}/undo").status_code == 409


def test_damaged_packs_are_one_sentence(client: TestClient) -> None:
    whole = gzip.compress(b'{"feature": "m/3-tiny/7", "text": "apples"}\n' * 200, mtime=0)
    for place in range(10, len(whole) - 8, 5):
        damaged = whole[:place] + b"\xff" * 8 + whole[place + 8 :]
        said = client.post("/v1/labels/import", content=damaged, headers={"content-type": "application/x-ndjson"})
        assert said.status_code in (200, 422), said.text
    said = client.post("/v1/labels/import", content=b"[" * 200_000, headers={"content-type": "application/x-ndjson"})
    assert said.status_code == 422


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("post", "/v1/labels", {"feature": "m/3-tiny/7", "text": "x", "author": "boss"}, 422),
        ("post", "/v1/labels", {"feature": "m/3-tiny/7", "text": ""}, 422),
        ("post", "/v1/labels", {"feature": "m/3-tiny/7", "text": "x", "sae_sha256": "0"}, 409),
        ("post", "/v1/labels", {"feature": "m/3-tiny/7777", "text": "x"}, 404),
        ("patch", "/v1/labels/none", {"version": 1, "text": "x"}, 404),
        ("post", "/v1/labels/none/votes", {"value": 2}, 422),
        ("post", "/v1/features/search", {"text": "x", "how": "meaning"}, 422),
        ("post", "/v1/features/search", {"text": "x", "sae": "nope"}, 404),
    ],
)
def test_refusals(client: TestClient, method: str, path: str, body: dict[str, object], status: int) -> None:
    answer = client.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["status"] == status
    assert client.get("/v1/labels").json() == {"data": [], "next_cursor": None}


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_pack_goes_out_and_comes_in(client: TestClient, tmp_path: Path, form: str) -> None:
    for i in range(3):
        client.post("/v1/labels", json={"feature": f"m/3-tiny/{i}", "text": f"text {i}"})
    pack = client.get("/v1/labels/export", params={"format": form, "sae": "m/3-tiny"})
    kind = "application/x-ndjson" if form == "jsonl" else "application/vnd.apache.parquet"
    assert pack.headers["content-type"].startswith(kind)
    other = make_lab(tmp_path / "other")
    with TestClient(create_app(other.home)) as there:
        dry = there.post("/v1/labels/import", content=pack.content, params={"dry_run": True}).json()
        assert (dry["created"], dry["dry_run"], there.get("/v1/labels").json()["data"]) == (3, True, [])
        body = gzip.compress(pack.content) if form == "jsonl" else pack.content
        assert there.post("/v1/labels/import", content=body).json()["created"] == 3
        assert there.post("/v1/labels/import", content=body).json()["unchanged"] == 3
        wrong = there.post("/v1/labels/import", content=b'{"index": 1}\n')
    assert (wrong.status_code, wrong.json()["detail"]) == (422, "the pack, line 1: text: Field required")


def test_an_export_that_cannot_be_is_refused_before_it_begins(client: TestClient) -> None:
    assert client.get("/v1/labels/export", params={"sae": "nope"}).status_code == 404
    assert client.get("/v1/labels/export", params={"cursor": "nope"}).status_code == 404
    assert client.get("/v1/labels/export", params={"format": "neuronpedia"}).status_code == 422
    assert json.loads(client.get("/v1/labels/export").text)["scopebase_labels"] == 2


def test_requests_have_examples(client: TestClient) -> None:
    spec = client.get("/openapi.json").json()
    for path, routes in spec["paths"].items():
        for method, route in routes.items():
            if "labels" not in route.get("tags", []):
                continue
            assert route["summary"], (method, path)
            for content in route.get("requestBody", {}).get("content", {}).values():
                name = content["schema"].get("$ref", "").rsplit("/", 1)[-1]
                named = spec["components"]["schemas"].get(name, {})
                assert "example" in named or "example" in content or content["schema"].get("format") == "binary", path
