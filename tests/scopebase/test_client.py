"""The Python client: light to install, typed answers, the service's own errors, patience where it is asked for."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from api.app import create_app
from api.gate.access import Access
from api.services.questions.diff import diff
from api.services.questions.overlap import overlap
from schema.errors import Conflict, InputError, NotFound, TooMany, Unauthorized, WorkFailed
from schema.home import open_home
from schema.keys import create_key
from schema.settings import Settings
from schema.wire.catalog import SaeItem
from schema.wire.questions import DiffAnswer
from scopebase import Client
from scopebase.client import transport

ROOT = Path(__file__).parents[2]
SAE = "tiny-qwen3/2-tiny"
HEAVY = (
    "numpy",
    "pyarrow",
    "pandas",
    "sqlalchemy",
    "alembic",
    "fastapi",
    "starlette",
    "uvicorn",
    "typer",
    "rich",
    "lance",
    "scipy",
    "torch",
)


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """A real server in a thread; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    for _ in range(200):
        if server.started:
            break
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def service(indexed: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A service that asks for a key, and one."""
    import shutil

    copy = Settings.read(tmp_path_factory.mktemp("client") / "home", {})
    shutil.copytree(indexed.home, copy.home)
    home = open_home(copy)
    with home.database.writing() as session:
        _, secret = create_key(session, "client", "admin", None, "root")
    with serving(create_app(home, access=Access(auth=True))) as url:
        yield url, secret


@pytest.fixture
def client(service: tuple[str, str]) -> Iterator[Client]:
    with Client(*service) as made:
        yield made


def test_answers_are_those_of_the_services(client: Client, library: Any) -> None:
    names = ["problems", "songs", "tales"]
    assert client.overlap(*names, sae=SAE, pool="last") == overlap(library, SAE, names, "last")
    page = client.diff("tales", "songs", sae=SAE, limit=3, samples=1)
    assert isinstance(page, DiffAnswer)
    assert page == diff(library, SAE, "tales", "songs", limit=3, samples=1)
    assert [item.dataset for item in client.redundancy(*names, sae=SAE).data] == names
    assert client.health().status == "ok"


def test_lists_are_whole(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    from scopebase.client import asking as module

    monkeypatch.setattr(module, "PAGE", 3)
    saes = client.saes()
    assert [sae.id for sae in saes] == [f"tiny-qwen3/{layer}-tiny" for layer in range(4)]
    assert all(isinstance(sae, SaeItem) for sae in saes)
    assert [sae.layer for sae in client.saes(layer=2)] == [2]
    assert [d.name for d in client.datasets()] == ["problems", "songs", "tales"]
    assert [m.id for m in client.models()] == ["tiny-qwen3"]
    assert [r.dataset for r in client.runs(dataset="songs", state="finished")] == ["songs@1"]


def test_each_follows_every_page(client: Client) -> None:
    whole = client.diff("tales", "songs", sae=SAE, pool="last", limit=1000, samples=0)
    assert whole.total > 2
    assert [
        item.index for item in client.each(client.diff, "tales", "songs", sae=SAE, pool="last", limit=2, samples=0)
    ] == [item.index for item in whole.data]
    assert len(list(client.each(client.audit, limit=1))) == len(client.audit().data) >= 1


def test_tables_on_request(client: Client) -> None:
    answer = client.overlap("problems", "songs", sae=SAE)
    frame = answer.to_pandas()
    assert list(frame.columns) == ["dataset", "covered_by", "overlap", "overlap_min", "jaccard", "shared", "rarefied"]
    assert (
        frame.pivot(index="dataset", columns="covered_by", values="overlap").loc["problems", "songs"]
        == answer.overlap[0][1]
    )
    features = client.diff("tales", "songs", sae=SAE, samples=1)
    wide = features.to_pandas()
    assert list(wide["counts.tales"]) == [item.counts["tales"] for item in features.data]
    table = features.to_arrow()
    assert table.column("index").to_pylist() == [item.index for item in features.data]
    assert table.column("samples").to_pylist()[0][0]["id"] == features.data[0].samples[0].id
    assert list(client.saes().to_pandas()["layer"]) == [0, 1, 2, 3]
    assert client.runs().to_arrow().num_rows == 3


def test_an_empty_table_has_its_columns(client: Client) -> None:
    nothing = client.diff("tales", "songs", sae=SAE, min_samples=1000)
    assert nothing.data == []
    assert {"feature", "q_value"} <= set(nothing.to_pandas().columns)
    assert {"feature", "q_value"} <= set(nothing.to_arrow().column_names)
    assert "layer" in client.saes(layer=99).to_pandas().columns
    assert client.saes(layer=99).to_arrow().num_rows == 0


def test_a_table_without_its_library_is_one_sentence(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    saes = client.saes()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=r"^a data frame needs pandas; pip install pandas$"):
        saes.to_pandas()


def test_refusals_are_the_errors_of_the_service(service: tuple[str, str], client: Client) -> None:
    with pytest.raises(NotFound, match="no dataset named 'problem'; did you mean problems?"):
        client.overlap("problem", "songs", sae=SAE)
    with pytest.raises(InputError, match="dataset: List should have at least 2 items"):
        client.overlap("songs", sae=SAE)
    with pytest.raises(Unauthorized, match="a key is needed"), Client(service[0]) as other:
        other.saes()
    with pytest.raises(Unauthorized, match="this key is unknown"), Client(service[0], "sb_x") as other:
        other.saes()


def test_the_key_of_the_environment(service: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCOPEBASE_API_KEY", service[1])
    with Client(service[0] + "/") as client:
        assert len(client.saes()) == 4


def test_nobody_there_is_one_sentence() -> None:
    with (
        Client("http://127.0.0.1:9", retries=0) as client,
        pytest.raises(WorkFailed, match=r"nobody answers at http://127.0.0.1:9/v1/"),
    ):
        client.saes()


Reply = Callable[[httpx.Request], httpx.Response]


def scripted(*replies: httpx.Response | Exception, **options: Any) -> tuple[Client, list[httpx.Request]]:
    """A client whose service answers these, one after another, and what it was asked."""
    asked: list[httpx.Request] = []

    def reply(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        answer = replies[min(len(asked), len(replies)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return Client("http://lab", transport=httpx.MockTransport(reply), **options), asked


HEALTHY = httpx.Response(200, json={"status": "ok", "version": "9"})


def busy(status: int = 429, **headers: str) -> httpx.Response:
    problem = {"type": "about:blank", "title": "x", "status": status, "detail": "go on in 2 s"}
    return httpx.Response(
        status, json=problem, headers={name.replace("_", "-"): text for name, text in headers.items()}
    )


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []
    monkeypatch.setattr(transport.time, "sleep", waits.append)
    return waits


def test_it_waits_as_long_as_it_is_asked_to(slept: list[float]) -> None:
    client, asked = scripted(busy(retry_after="2"), busy(503, retry_after="1"), HEALTHY)
    assert client.health().version == "9"
    assert (slept, len(asked)) == ([2.0, 1.0], 3)


def test_a_moment_to_wait_for(slept: list[float]) -> None:
    from email.utils import formatdate

    client, _ = scripted(busy(retry_after=formatdate(time.time() + 10, usegmt=True)), HEALTHY)
    client.health()
    assert 8 < slept[0] <= 10


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (busy(429), TooMany),
        (busy(503), WorkFailed),
        (busy(429, retry_after="3600"), TooMany),
        (busy(429, retry_after="soon"), TooMany),
    ],
)
def test_it_does_not_ask_again_where_that_is_not_asked_for(
    reply: httpx.Response, error: type, slept: list[float]
) -> None:
    client, asked = scripted(reply)
    with pytest.raises(error, match="go on in 2 s"):
        client.health()
    assert (len(asked), slept) == (1, [])


def test_it_gives_up_in_the_end(slept: list[float]) -> None:
    client, asked = scripted(busy(retry_after="0"), retries=2)
    with pytest.raises(TooMany):
        client.health()
    assert len(asked) == 3


def test_a_service_that_is_just_starting(slept: list[float]) -> None:
    client, asked = scripted(httpx.ConnectError("refused"), httpx.ConnectError("refused"), HEALTHY)
    assert client.health().status == "ok"
    assert len(asked) == 3
    assert 0 < slept[0] <= 0.25


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (httpx.ReadTimeout("x"), r"no answer from http://lab/v1/ in time; .*Client\(timeout=...\)"),
        (httpx.RemoteProtocolError("cut"), "broke off: cut"),
        (
            httpx.Response(502, text="<html>Bad Gateway"),
            "http://lab/v1/health answered 502 Bad Gateway without saying why",
        ),
        (httpx.Response(200, text="<html>Welcome"), "answered what this client does not understand"),
        (httpx.Response(200, json={"status": "ok"}), "answered what this client does not understand"),
    ],
)
def test_answers_that_are_none_are_one_sentence(reply: Any, words: str) -> None:
    client, asked = scripted(reply)
    with pytest.raises(WorkFailed, match=words):
        client.health()
    assert len(asked) == 1, "what may have been done already is not asked for again"


def test_a_newer_service_may_say_more() -> None:
    sae = {
        "id": "m/0-s", "model": "m", "layer": 0, "set": "s", "release": "r", "format": "f", "activation": "topk", "k": 1,
        "d_model": 1, "d_sae": 1, "sha256": "0", "datasets": [], "created_at": "2026-01-01T00:00:00Z", "colour": "red",
    }  # fmt: skip
    client, _ = scripted(httpx.Response(200, json={"data": [sae], "next_cursor": None, "weather": "fine"}))
    assert client.saes()[0].id == "m/0-s"


def test_what_is_sent(slept: list[float]) -> None:
    client, asked = scripted(httpx.Response(404, json={}), api_key="sb_1")
    with pytest.raises(WorkFailed):
        client.overlap("a", "b&c", min_samples=2)
    assert str(asked[0].url) == "http://lab/v1/overlap?dataset=a&dataset=b%26c&pool=any&min_samples=2"
    assert asked[0].headers["authorization"] == "Bearer sb_1"


def test_every_route_has_a_method(service: tuple[str, str]) -> None:
    """But readiness, which is for machines that watch, and what POST asks as well."""
    described = httpx.get(f"{service[0]}/openapi.json").json()
    routes = {
        (method.upper(), re.sub(r"{\w+}", "{}", path.removeprefix("/v1")))
        for path, item in described["paths"].items()
        for method in item
        if path.startswith("/v1/")
    }
    verbs = {"_get": "GET", "_all": "GET", "_post": "POST", "_patch": "PATCH", "_delete": "DELETE", "_upload": "POST"}
    source = "".join(path.read_text() for path in (ROOT / "scopebase" / "client").glob("*.py"))
    asked = {
        (verbs[verb], path)
        for verb, path in re.findall(r'self\.(_get|_all|_post|_patch|_delete|_upload)\(\s*"([^"]+)"', source)
    }
    asked |= {("POST", path) for path in re.findall(r'self\._transport\.follow\(\s*"([^"]+)"', source)}
    asked |= {("GET", path) for path in re.findall(r'self\._transport\.events\(\s*f"([^"]+)"', source)}
    asked |= set(re.findall(r'self\._(?:transport\.\w+|save)\(\s*"(\w+)", f?"([^"]+)"', source))
    methods = {(verb, re.sub(r"{\w+}", "{}", path)) for verb, path in asked}
    assert methods - routes == set()
    assert routes - methods == {("GET", "/ready"), ("GET", "/rank-preservation")}


def test_features_rules_and_labels(client: Client, tmp_path: Path) -> None:
    """One question of each group, from the client to the stores and back."""
    feature = client.diff("tales", "songs", sae=SAE, limit=1).data[0].feature
    dossier = client.feature(feature)
    assert dossier.feature == feature
    assert client.samples(feature, limit=2).data[0].tokens
    assert len(list(client.each(client.samples, feature, limit=7))) == len(client.samples(feature, limit=1000).data)
    sample = client.sample("problems", "p1", sae=SAE)
    assert sample.id == "p1"
    where = {"and": [{"dataset": "tales", "min_rate": 0.05}, {"not": {"dataset": "songs"}}]}
    page = client.query(where, sae=SAE, limit=3)
    assert feature in {item.feature for item in client.each(client.query, where, sae=SAE, limit=3)}
    assert len(page.data) <= 3
    gap = client.coverage_gap(["songs"], {"dataset": "tales"}, sae=SAE)
    file = client.save_coverage_gap(tmp_path / "gap.parquet", ["songs"], {"dataset": "tales"}, sae=SAE)
    import pyarrow.parquet as pq

    assert pq.read_table(file).num_rows == gap.total
    assert client.subset("songs", sae=SAE, coverage=0.9).samples
    level = {"dataset": "problems", "where": {"level": 1}}
    one = client.subset("problems", sae=SAE, where={"level": 1}).dataset
    assert (one.name, one.n_samples) == ("problems[level=1]", 20)
    assert client.redundancy("problems", sae=SAE, where_not={"level": 1}).data[0].n_samples == 40
    assert client.coverage_gap([level], {"dataset": "tales"}, sae=SAE).coverage.n_samples == 20
    assert client.suite(level, "songs", "tales", sae=SAE).provenance.sae == SAE
    assert client.query(where, sae=SAE, sort="weight", include=["samples"], limit=1).data[0].samples
    rule = client.store_rule("tale", expression={"any": [{"feature": feature, "above": 0.0}]})
    assert [each.name for each in client.rules()] == [rule.name] == ["tale"]
    assert client.rule_drift("tale").usable
    assert client.classify("tale", dataset="tales", limit=5).data
    rows = [{"id": f"p{i}", "score": i % 2} for i in range(60)]
    report = client.import_scores("problems", "m1", "acc", rows)
    assert [each.id for each in client.evaluations()] == [report.evaluation.id]
    client.remove_evaluation(report.evaluation.id)
    (tmp_path / "scores.csv").write_text("id,acc\n" + "".join(f"p{i},{i % 2}\n" for i in range(60)))
    file = client.import_evaluation(tmp_path / "scores.csv", "problems", "acc", evaluated="m1")
    assert file.evaluation.sha256 == report.evaluation.sha256, "the same scores"
    assert file.evaluation.source == "scores.csv"
    client.remove_evaluation(file.evaluation.id)
    assert client.evaluations() == []


def test_labels_and_their_exchange(client: Client, tmp_path: Path) -> None:
    made = client.make_label(f"{SAE}/5", "sums of money")
    assert made.author == "client", "the key's holder, whatever is sent"
    assert client.vote(made.id, 1).votes == 1
    client.comment(made.id, "prices too")
    assert [c.text for c in client.comments(made.id)] == ["prices too"]
    changed = client.change_label(made.id, made.version, text="prices")
    with pytest.raises(Conflict):
        client.change_label(made.id, made.version, text="money")
    assert client.undo_label(made.id).text == "sums of money"
    assert changed.text == "prices"
    assert {event.action for event in client.label_history(made.id)} >= {"create", "edit", "undo"}
    assert [found.id for found in client.search("money").data] == [f"{SAE}/5"]
    pack = client.export_labels(tmp_path / "labels.jsonl", sae=SAE)
    assert client.import_labels(pack).unchanged == 1
    client.delete_label(made.id)
    assert client.labels().data == []
    with pytest.raises(NotFound):
        client.export_labels(tmp_path / "none.jsonl", sae="nobody/0-x")
    assert not (tmp_path / "none.jsonl").exists()


def test_it_works_where_only_pydantic_and_httpx_are_installed(service: tuple[str, str]) -> None:
    """In a process of its own, in which everything else cannot be imported."""
    script = f"""
import json, sys
HEAVY = {HEAVY!r}
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HEAVY:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
from scopebase import Client
with Client(*sys.argv[1:]) as client:
    answer = client.overlap("problems", "songs", sae={SAE!r})
    saes = client.saes()
    try:
        saes.to_arrow()
    except Exception as error:
        said = str(error)
print(json.dumps([answer.overlap[0][0], len(saes), said, sorted(set(HEAVY) & set(sys.modules))]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, *service], cwd=ROOT, capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [1.0, 4, "a table needs pyarrow; pip install pyarrow", []]


def test_the_command_line_without_its_extra_says_one_sentence() -> None:
    script = (
        "import sys\nclass Missing:\n    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'typer': raise ModuleNotFoundError('no', name=name)\n"
        "sys.meta_path.insert(0, Missing())\nfrom scopebase.__main__ import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "scopebase: the command line needs typer, which the client alone does not bring; "
        "pip install 'scopebase[serve]' to ask and to serve, 'scopebase[all]' to index\n"
    )


def test_the_light_install_is_declared() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.split(r"[<>=\[]", dependency)[0] for dependency in project["dependencies"]]
    assert names == ["httpx", "pydantic"]
    assert project["scripts"]["scopebase"] == "scopebase.__main__:main"
