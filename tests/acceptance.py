"""What a deployment must do to be taken for one: the same questions to a team's and to an embedded one, and the same answers.

The embedded one is a home on this machine's disk (SQLite and a folder), indexed from the same seeds by `scopebase index`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from fastapi.testclient import TestClient

from schema.settings import Settings
from tests.making import PROBLEMS, SONGS, TALES, make_model, make_release, write_jsonl
from tests.races import race

if TYPE_CHECKING:
    from tests.team import Deployment

DATASETS = {"problems": PROBLEMS, "songs": SONGS, "tales": TALES}
SAE = "tiny-qwen3/1-tiny"
BODIES: dict[str, dict[str, Any]] = {
    "/v1/features/query": {
        "sae": SAE,
        "where": {"and": [{"dataset": "problems", "min_rate": 0.2}, {"not": {"dataset": "songs", "min_rate": 0.2}}]},
    },
    "/v1/coverage-gaps": {"sae": SAE, "datasets": ["songs"], "target": {"dataset": "tales"}, "include": ["samples"]},
    "/v1/rules/discover": {
        "saes": [SAE],
        "dataset": "problems",
        "label_field": "level",
        "positive": 1,
        "k": [1, 2],
        "seed": 3,
    },
}
ASKED = (
    "/v1/saes",
    "/v1/datasets",
    f"/v1/overlap?sae={SAE}&dataset=problems&dataset=songs&dataset=tales",
    f"/v1/overlap?sae={SAE}&dataset=problems&dataset=tales&pool=last&min_samples=2",
    f"/v1/diff?sae={SAE}&covered_by=problems&not_covered_by=songs&limit=20",
    f"/v1/redundancy?sae={SAE}&dataset=tales",
    f"/v1/subset?sae={SAE}&dataset=songs&coverage=0.9",
    f"/v1/samples/problems/p7?sae={SAE}",
    *(
        f"/v1/features/{SAE}/{index}{part}"
        for index in (3, 77)
        for part in ("", "/profiles", "/samples", "/neighbours")
    ),
)
RULE = {"name": "sums", "expression": {"any": [{"feature": f"{SAE}/3", "above": 0.1}, {"feature": f"{SAE}/77"}]}}
N_LABELS = 40
PASSING = frozenset({"at", "author", "bytes", "created_at", "finished_at", "source", "size", "updated_at", "used_at"})
"""Fields that tell when, by whom and from where, and not what."""


def accept(team: Deployment, folder: Path, tell: Callable[[str], None]) -> None:
    """Raises AssertionError, with what differs, where a team's deployment does less than the embedded one or something else."""
    place = make_material(team.given)
    run_job(team)
    tell("indexed by a job")
    home = folder / "embedded"
    scopebase(home, "index", *words(place, place))
    client = httpx.Client(base_url=team.url, headers={"authorization": f"Bearer {team.admin_key}"}, timeout=60)
    with embedded(home) as beside, client:
        for asking in (beside, client):
            assert asking.post("/v1/rules", json=RULE).status_code == 201
        compare("embedded", ask(beside), "the team's", ask(client))
        tell(f"{len(ASKED) + len(BODIES)} questions and a rule are answered alike")
        other = team.another_api()
        labels = write_labels(team.url, other, team.admin_key)
        tell(f"{len(labels)} labels written through two API processes, none lost")
        assert client.get("/v1/overlap", headers={"authorization": "Bearer sb_nobody"}).status_code == 401
        assert "scopebase_labels 40.0" in client.get("/metrics").text
        labels |= race_for_one_version([team.url, other], team.admin_key)
        tell("of those who change one label, rule or vector at once one wins, and one job is made of one key")
        answers = ask(client)
    team.run("verify")
    team.run("backup", str(folder / "backup"))
    again = folder / "again"
    scopebase(again, "restore", str(folder / "backup"))
    scopebase(again, "verify", "--deep")
    with embedded(again) as restored:
        compare("the team's", answers, "restored", ask(restored))
        kept = restored.get("/v1/labels", params={"limit": 1000}).json()["data"]
        assert {label["id"]: label["text"] for label in kept} == labels
    tell("backed up, restored into an embedded home, verified: nothing is missing")


def make_material(root: Path) -> Path:
    """A model, its SAEs and three datasets, as small as they can be."""
    make_model(root / "tiny-qwen3")
    make_release(root / "sae", n_layers=4, d_model=32, d_sae=256, k=6)
    for name, rows in DATASETS.items():
        write_jsonl(root / f"{name}.jsonl", rows)
    return root


def words(model_root: Path, data_root: Path) -> list[str]:
    options = ["--model", str(model_root / "tiny-qwen3"), "--sae", str(model_root / "sae"), "--set", "tiny"]
    return options + [word for name in DATASETS for word in ("--dataset", f"{name}={data_root / name}.jsonl")]


def run_job(team: Deployment) -> None:
    """The same indexing through /v1/jobs, done by the worker."""
    body = {
        "kind": "index",
        "model": "tiny-qwen3",
        "sae": "sae",
        "set": "tiny",
        "datasets": [{"name": name, "source": f"{name}.jsonl"} for name in DATASETS],
    }
    headers = {"authorization": f"Bearer {team.admin_key}", "x-request-id": "acceptance-1"}
    with httpx.Client(base_url=team.url, headers=headers, timeout=60) as client:
        made = client.post("/v1/jobs", json=body)
        assert made.status_code == 202, made.text
        until = time.monotonic() + 120
        while True:
            job = client.get(f"/v1/jobs/{made.json()['id']}").json()
            if job["state"] not in ("queued", "running"):
                break
            assert time.monotonic() < until, f"the job is {job['state']} after two minutes: {team.log('worker')}"
            time.sleep(0.2)
    assert job["state"] == "finished", f"the job {job['state']}: {job['error']}"
    assert [run["dataset"] for run in job["runs"]] == list(DATASETS)
    assert "[request acceptance-1]" in team.log("worker"), "a job's lines bear the id of the request that submitted it"


def scopebase(home: Path, *words: str) -> None:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("SCOPEBASE_", "AWS_"))}
    command = [sys.executable, "-m", "scopebase", "--home", str(home), *words]
    done = subprocess.run(command, env=environ, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, f"scopebase {' '.join(words)}: {done.stderr}"


def embedded(home: Path) -> TestClient:
    """The service over a home of this machine."""
    from api.app import create_app
    from schema.home import open_home

    return TestClient(create_app(open_home(Settings.read(home, {}))), base_url="http://127.0.0.1")


def ask(client: httpx.Client | TestClient) -> dict[str, Any]:
    """Question -> what is lasting in its answer."""
    answers = {path: client.get(path) for path in (*ASKED, "/v1/rules/sums")}
    answers |= {path: client.post(path, json=body) for path, body in BODIES.items()}
    bad = {path: answer.text for path, answer in answers.items() if answer.status_code != 200}
    assert not bad, bad
    return {path: _lasting(answer.json()) for path, answer in answers.items()}


def compare(one: str, answers: dict[str, Any], other: str, others: dict[str, Any]) -> None:
    for path, answer in answers.items():
        assert answer == others[path], f"{path}: {one} answers {answer}, {other} {others[path]}"


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(each) for key, each in value.items() if key not in PASSING}
    return [_lasting(each) for each in value] if isinstance(value, list) else value


def race_for_one_version(urls: Sequence[str], key: str) -> dict[str, str]:
    """See `tests.races.race`; four clients at each address."""
    headers = {"authorization": f"Bearer {key}"}
    with contextlib.ExitStack() as stack:
        made = [httpx.Client(base_url=url, headers=headers, timeout=60) for url in (*urls, *urls) for _ in range(2)]
        return race([stack.enter_context(client) for client in made], f"{SAE}/5", width=32)


def write_labels(one: str, other: str, key: str) -> dict[str, str]:
    """Labels written at once through two processes, each read at once through the other one; id -> text."""
    clients = [
        httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=60) for url in (one, other)
    ]

    def write(number: int) -> tuple[str, str]:
        text = f"label {number}"
        made = clients[number % 2].post("/v1/labels", json={"feature": f"{SAE}/{number}", "text": text})
        assert made.status_code == 201, made.text
        seen = clients[1 - number % 2].get(f"/v1/labels/{made.json()['id']}")
        assert seen.json()["text"] == text, seen.text
        return made.json()["id"], text

    with ThreadPoolExecutor(8) as pool:
        written = dict(pool.map(write, range(N_LABELS)))
    for client in clients:
        listed: Sequence[dict[str, Any]] = client.get("/v1/labels", params={"limit": 1000}).json()["data"]
        assert {label["id"]: label["text"] for label in listed} == written
        client.close()
    return written
