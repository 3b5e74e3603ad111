"""Suites and evaluation results over HTTP."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.app import PROBLEM, create_app
from schema.home import open_home
from schema.settings import Settings
from tests.making import PROBLEMS, SONGS, TALES
from tests.scoring import model_names, panel, score_rows

SAE = "tiny-qwen3/2-tiny"
ROWS = {"problems": PROBLEMS, "songs": SONGS, "tales": TALES}


@pytest.fixture(scope="module")
def client(indexed: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    copy = Settings.read(tmp_path_factory.mktemp("served") / "home", {})
    shutil.copytree(indexed.home, copy.home)
    with TestClient(create_app(open_home(copy)), raise_server_exceptions=False) as made:
        yield made


@pytest.fixture(scope="module")
def imported(client: TestClient) -> dict[str, int]:
    """Four models on each dataset, imported over HTTP; model and dataset -> id."""
    ids = {}
    for seed, (name, rows) in enumerate(ROWS.items()):
        for model, scores in zip(model_names(4), panel(4, len(rows), seed), strict=True):
            body = {"dataset": name, "evaluated": model, "metric": "acc"}
            body |= {"rows": score_rows([row["id"] for row in rows], scores)}  # type: ignore[dict-item]
            response = client.post("/v1/evaluations", json=body)
            assert response.status_code == 200, response.text
            assert (response.json()["state"], response.json()["n_missing"]) == ("added", 0)
            ids[f"{model} {name}"] = response.json()["evaluation"]["id"]
    return ids


def get(client: TestClient, path: str, **params: Any) -> Any:
    response = client.get(f"/v1{path}", params=params)
    assert response.status_code == 200, response.text
    return response.json()


def test_a_subset(client: TestClient) -> None:
    answer = get(client, "/subset", sae=SAE, dataset="tales", coverage=0.9)
    assert {"samples", "coverage", "n_features", "curve", "provenance"} <= set(answer)
    assert answer["curve"][-1] == [len(answer["samples"]), answer["coverage"]]
    assert answer["coverage"] >= 0.9
    assert len(get(client, "/subset", sae=SAE, dataset="tales", n=2, weights="activation")["samples"]) <= 2
    assert get(client, "/subset", sae=SAE, dataset="tales")["asked"] == 0.95


def test_slices_in_an_address(client: TestClient) -> None:
    where, rest = json.dumps({"level": 1}), json.dumps({"level": [0, 2]})
    one, other = (
        get(client, "/subset", sae=SAE, dataset="problems", **given)
        for given in ({"where": where}, {"where_not": rest})
    )
    assert one["dataset"]["n_samples"] == other["dataset"]["n_samples"] == 20
    assert (one["dataset"]["name"], one["samples"]) == ("problems[level=1]", other["samples"])
    asked = get(client, "/redundancy", sae=SAE, dataset=["problems"], where=where)
    assert [(item["dataset"], item["n_samples"]) for item in asked["data"]] == [("problems[level=1]", 20)]


def test_a_suite(client: TestClient) -> None:
    response = client.post("/v1/suite", json={"sae": SAE, "datasets": list(ROWS), "pool": "last"})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert [item["dataset"]["name"] for item in answer["data"]] == list(ROWS)
    assert {*(drop["dataset"] for drop in answer["drops"]), answer["keep"]} == set(ROWS)


def test_evaluations_are_listed(client: TestClient, imported: dict[str, int]) -> None:
    page = get(client, "/evaluations", dataset="songs", limit=3)
    assert [item["evaluated"] for item in page["data"]] == model_names(3)
    rest = get(client, "/evaluations", dataset="songs", limit=3, cursor=page["next_cursor"])
    assert [item["id"] for item in rest["data"]] == [imported["model-03 songs"]]


def test_questions_over_evaluations(client: TestClient, imported: dict[str, int]) -> None:
    assert len(imported) == 12
    body = {"dataset": "tales", "samples": ["t1", "t2", "t3", "t4"], "draws": 20}
    by_post = client.post("/v1/rank-preservation", json=body).json()
    assert get(client, "/rank-preservation", **body) == by_post
    assert by_post["subset_n"] == 4
    answer = get(client, "/performance-redundancy", sae=SAE, dataset=list(ROWS), draws=20)
    assert [item["dataset"] for item in answer["data"]] == list(ROWS)
    answer = get(client, "/performance-similarity", sae=SAE, dataset=list(ROWS), metric="acc")
    assert (len(answer["data"]), answer["models"]) == (3, model_names(4))
    answer = get(client, "/failures", sae=SAE, dataset="tales", evaluated="model-01", direction="both", limit=2)
    assert (len(answer["data"]), answer["evaluation"]) == (2, imported["model-01 tales"])


def test_files_are_uploaded_as_they_are(client: TestClient) -> None:
    """What was written by other tools, plain or packed, gives what its rows give."""
    scores = {f"s{i}": i % 2 for i in range(45)}
    table = "id,acc\n" + "".join(f"{id_},{score}\n" for id_, score in scores.items())
    lines = "".join(
        json.dumps({"doc_id": i, "doc": {"id": id_}, "filter": "none", "acc": score}) + "\n"
        for i, (id_, score) in enumerate(scores.items())
    )
    samples = [{"id": id_, "scores": {"acc": {"value": "CI"[1 - score]}}} for id_, score in scores.items()]
    log = json.dumps({"eval": {"model": "openai/gpt-x"}, "samples": samples})
    rows = [{"id": id_, "score": score} for id_, score in scores.items()]
    body = {"dataset": "songs", "evaluated": "by hand", "metric": "acc", "rows": rows}
    made = client.post("/v1/evaluations", json=body).json()["evaluation"]
    for model, sent in (("t", table), ("l", lines), (None, log)):
        for content in (sent.encode(), gzip.compress(sent.encode())):
            asked = {"dataset": "songs", "metric": "acc", "name": "mine.csv"} | ({"evaluated": model} if model else {})
            response = client.post("/v1/evaluations/import", params=asked, content=content)
            assert response.status_code == 200, response.text
            report = response.json()
            assert report["n_matched"] == 45
            assert report["evaluation"]["evaluated"] == (model or "openai/gpt-x")
            assert report["evaluation"]["mean"] == made["mean"]
            assert report["evaluation"]["source"] == "mine.csv"
        assert report["state"] == "unchanged", "the same scores, packed"
        client.delete(f"/v1/evaluations/{report['evaluation']['id']}")
    client.delete(f"/v1/evaluations/{made['id']}")


@pytest.mark.parametrize(
    ("params", "content", "status", "words"),
    [
        ({"metric": "acc"}, b"id,acc\ns1,1\n", 422, "name the model that was evaluated with --evaluated, over HTTP evaluated="),
        ({"metric": "acc", "evaluated": "m"}, b"", 422, "scores.csv has no rows"),
        ({"metric": "acc", "evaluated": "m"}, b"\x1f\x8bzip", 422, "scores.csv: Compressed file ended before"),
        ({"metric": "acc", "evaluated": "m"}, b"PK\x03\x04", 422, "scores.csv: File is not a zip file"),
        ({"metric": "f1", "evaluated": "m"}, b"id,acc\ns1,1\n", 422, "scores.csv, row 1: score='None' is no finite number"),
        ({"metric": "acc", "evaluated": "m"}, b"id,acc\nx1,1\n", 409, "only 0 of 1 rows are samples of songs@1"),
        ({"evaluated": "m"}, b"id,acc\ns1,1\n", 422, "metric: Field required"),
    ],
)  # fmt: skip
def test_an_upload_that_is_no_file_of_scores(
    client: TestClient, params: dict[str, str], content: bytes, status: int, words: str
) -> None:
    before = get(client, "/evaluations", limit=1000)
    asked = {"dataset": "songs", "name": "scores.csv", **params}
    response = client.post("/v1/evaluations/import", params=asked, content=content)
    assert (response.status_code, response.headers["content-type"]) == (status, PROBLEM), response.text
    assert words in response.json()["detail"]
    assert get(client, "/evaluations", limit=1000) == before


def test_an_evaluation_is_removed(client: TestClient) -> None:
    body = {"dataset": "songs", "evaluated": "gone", "metric": "f1", "rows": [{"id": "s1", "score": 0.5}]}
    id_ = client.post("/v1/evaluations", json=body).json()["evaluation"]["id"]
    assert client.delete(f"/v1/evaluations/{id_}").status_code == 204
    assert client.delete(f"/v1/evaluations/{id_}").status_code == 404
    assert get(client, "/evaluations", evaluated="gone")["data"] == []


@pytest.mark.parametrize(
    ("method", "path", "given", "status", "words"),
    [
        ("GET", "/subset", {"dataset": "tales", "sae": SAE, "coverage": 2}, 422, "coverage"),
        ("GET", "/subset", {"dataset": "tale", "sae": SAE}, 404, "did you mean tales?"),
        ("GET", "/subset", {"dataset": "tales", "sae": SAE, "where": "x=1"}, 422, "a JSON object of fields"),
        ("GET", "/subset", {"dataset": "tales", "sae": SAE, "where_not": "[1]"}, 422, "where_not: "),
        ("GET", "/subset", {"dataset": "problems", "sae": SAE, "where": '{"levl": 1}'}, 404, "did you mean level?"),
        (
            "GET",
            "/redundancy",
            {"dataset": "problems", "sae": SAE, "where": '{"level": 9}'},
            422,
            "no sample of problems",
        ),
        ("POST", "/suite", {"datasets": ["tales"], "sae": SAE}, 422, "datasets"),
        ("POST", "/suite", {"datasets": ["tales", "songs"], "saes": SAE}, 422, "saes: Extra inputs"),
        (
            "POST",
            "/suite",
            {"datasets": ["tales", "tales@1"], "sae": SAE},
            422,
            "names the same run of a dataset twice",
        ),
        ("POST", "/suite", {"datasets": ["tales", "\ud800"], "sae": SAE}, 422, "datasets.1"),
        ("POST", "/evaluations", {"dataset": "songs", "evaluated": "m", "metric": "acc", "rows": []}, 422, "rows"),
        (
            "POST",
            "/evaluations",
            {"dataset": "songs", "evaluated": "m", "metric": "acc", "rows": [{"id": "t1", "score": 1}]},
            409,
            "only 0 of 1 rows are samples of songs@1",
        ),
        ("GET", "/failures", {"dataset": "songs", "sae": SAE, "metric": "f2"}, 404, "evaluation"),
        ("GET", "/rank-preservation", {"dataset": "songs", "draws": 1}, 422, "draws"),
    ],
)
def test_errors_are_problems(
    client: TestClient, method: str, path: str, given: dict[str, Any], status: int, words: str
) -> None:
    sent: dict[str, Any] = {"params": given}
    if method == "POST":
        sent = {"content": json.dumps(given), "headers": {"content-type": "application/json"}}
    response = client.request(method, f"/v1{path}", **sent)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM
    assert words in response.json()["detail"]


def test_a_key_that_may_only_read_imports_nothing(client: TestClient) -> None:
    async def as_reader(scope: Any, receive: Any, send: Any) -> None:
        scope.setdefault("state", {})["scopes"] = ["read"]
        await client.app(scope, receive, send)

    reader = TestClient(as_reader, raise_server_exceptions=False)
    body = {"dataset": "songs", "evaluated": "m", "metric": "acc", "rows": [{"id": "s1", "score": 1}]}
    assert reader.post("/v1/evaluations", json=body).status_code == 403
    file = reader.post("/v1/evaluations/import", params={"dataset": "songs", "metric": "acc"}, content=b"id,acc\n")
    assert file.status_code == 403
    assert reader.delete("/v1/evaluations/1").status_code == 403
