"""Coverage gaps against sets counted by hand from an independent computation; streams against pages; changes against both ends."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from scipy import stats

from api.app import create_app
from api.services.gaps.gap import coverage_gap
from api.services.labels.book import create
from api.services.library import Library
from schema.errors import InputError, NotFound
from schema.home import open_home
from schema.lab import Rule
from schema.settings import Settings
from schema.wire.gaps import CoverageGapAnswer, CoverageGapQuestion
from schema.wire.labels import NewLabel
from tests.indexer.reference import Reference, reference
from tests.making import PROBLEMS, SONGS, TALES, write_jsonl

SAE = "tiny-qwen3/2-tiny"
ROWS = {"problems": PROBLEMS, "songs": SONGS, "tales": TALES}


@pytest.fixture(scope="module")
def fired(model_dir: Path, release_dir: Path) -> dict[str, Reference]:
    """Layer 2, one sample at a time."""
    return {
        name: reference(model_dir, release_dir, [2], [row["text"] for row in rows], 6, max_tokens=256)[2]
        for name, rows in ROWS.items()
    }


@pytest.fixture(scope="module")
def curated(
    indexed: Settings, fired: dict[str, Reference], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Library]:
    """The indexed home with labels and two versions of a rule over features that fire."""
    copy = Settings.read(tmp_path_factory.mktemp("curated") / "home", {})
    shutil.copytree(indexed.home, copy.home)
    home = open_home(copy)
    some = np.flatnonzero((fired["tales"].any > 0).any(0) & ~(fired["songs"].any > 0).any(0))[:4].tolist()
    with home.database.writing() as session:
        leaves = [{"feature": f"{SAE}/{feature}", "above": 0.0} for feature in some]
        other = {"feature": "tiny-qwen3/0-tiny/7", "above": 0.0}
        old, new = {"any": leaves[:1]}, {"any": [leaves[0], {"all": [leaves[1], {"not": leaves[2]}]}, other]}
        for version, expression in ((1, old), (2, new)):
            session.add(Rule(name="tale", version=version, expression=expression, pool="any", saes={}, author="ann"))
    library = Library(home)
    for feature, text in ((some[0], "once upon"), (some[1], "Once, and much besides"), (some[2], "trees")):
        create(library, NewLabel(feature=f"{SAE}/{feature}", text=text), "ann")
    yield library
    home.close()


def ask(library: Library, datasets: list[str], target: Any, **more: Any) -> CoverageGapAnswer:
    body = {"sae": SAE, "datasets": datasets, "target": target, "limit": 1000, **more}
    return coverage_gap(library, CoverageGapQuestion.model_validate(body))


@pytest.mark.parametrize("pool", ["any", "last"])
@pytest.mark.parametrize(("least", "support"), [(1, 0.001), (2, 0.1)])
def test_a_gap_is_set_arithmetic(
    library: Library, fired: dict[str, Reference], pool: Any, least: int, support: float
) -> None:
    m = {n: ((f.any if pool == "any" else f.last) > 0).sum(0) for n, f in fired.items()}
    x, y = m["tales"], m["songs"] + m["problems"]
    targets = x >= least
    missing, weak = targets & (y < least), targets & (y >= least) & (y / 105 < support)
    answer = ask(library, ["songs", "problems"], {"dataset": "tales"}, pool=pool, min_samples=least, support=support)
    assert {i.index for i in answer.data if i.state == "missing"} == set(np.flatnonzero(missing).tolist())
    assert {i.index for i in answer.data if i.state == "weak"} == set(np.flatnonzero(weak).tolist())
    assert answer.total == len(answer.data) == (missing | weak).sum() > 0
    found = answer.coverage
    assert (found.n_targets, found.n_missing, found.n_weak) == (targets.sum(), missing.sum(), weak.sum())
    assert found.n_covered == targets.sum() - missing.sum()
    assert found.share == found.n_covered / targets.sum()
    assert (found.n_samples, answer.target.n_samples) == (105, 50)
    tested = np.flatnonzero(x + y)
    p = [stats.fisher_exact([[x[f], 50 - x[f]], [y[f], 105 - y[f]]]).pvalue for f in tested]
    q = dict(zip(tested.tolist(), stats.false_discovery_control(p), strict=True))
    assert answer.n_tested == len(tested)
    rates = [item.target_rate for item in answer.data]
    assert rates == sorted(rates, reverse=True) == [item.weight for item in answer.data]
    for item in answer.data:
        assert (item.count, item.target_count) == (y[item.index], x[item.index])
        assert item.q_value == pytest.approx(q[item.index], rel=1e-6)
        assert item.interval is not None
        assert item.difference_interval is not None
        assert item.interval[0] <= y[item.index] / 105 <= item.interval[1]
        assert item.difference_interval[0] <= x[item.index] / 50 - y[item.index] / 105 <= item.difference_interval[1]


def test_pages_cover_the_gap(library: Library) -> None:
    whole = ask(library, ["songs"], {"dataset": "tales"})
    seen, cursor = [], None
    while True:
        page = ask(library, ["songs"], {"dataset": "tales"}, limit=3, cursor=cursor)
        seen += page.data
        cursor = page.next_cursor
        if cursor is None:
            break
    assert len(whole.data) > 6
    assert seen == whole.data


def test_samples_prompts_and_tokens(curated: Library, fired: dict[str, Reference]) -> None:
    texts = {row["id"]: row["text"] for row in TALES}
    answer = ask(curated, ["songs"], {"dataset": "tales"}, include=["samples", "synthesis_prompt"])
    for item in answer.data:
        assert item.samples
        assert item.synthesis_prompt is not None
        for sample in item.samples:
            assert sample.dataset == "tales"
            row = [r["id"] for r in TALES].index(sample.id)
            assert sample.activation == pytest.approx(fired["tales"].any[row, item.index], rel=2e-3)
            strongest = max(sample.tokens, key=lambda token: token.activation)
            token = texts[sample.id][sample.offset :][strongest.start : strongest.end]
            assert f"[[{token}]]" in item.synthesis_prompt
        assert all(token in item.synthesis_prompt for token in item.firing_tokens)
        if item.label:
            assert f"It must show this property: {item.label}" in item.synthesis_prompt
    assert any(item.label for item in answer.data)
    alone = ask(curated, ["songs"], {"dataset": "tales"}, include=["synthesis_prompt"])
    assert [i.synthesis_prompt for i in alone.data] == [i.synthesis_prompt for i in answer.data]
    assert all(item.samples == [] for item in alone.data)


def test_a_slice_as_target_is_proven_by_its_own_samples(library: Library, fired: dict[str, Reference]) -> None:
    chosen = [i for i, row in enumerate(PROBLEMS) if row["level"] == 1]
    m = (fired["problems"].any[chosen] > 0).sum(0)
    target = {"dataset": "problems", "where": {"level": 1}}
    answer = ask(library, ["songs"], target, support=1, include=["samples"])
    assert answer.target.model_dump() == {
        "kind": "dataset",
        "name": "problems[level=1]",
        "n_features": (m > 0).sum(),
        "n_samples": 20,
    }
    ids = {PROBLEMS[i]["id"] for i in chosen}
    for item in answer.data:
        assert item.target_count == m[item.index]
        assert len(item.samples) == min(2, m[item.index])
        assert {sample.id for sample in item.samples} <= ids


@pytest.mark.parametrize("pool", ["any", "last"])
def test_slices_as_datasets(library: Library, fired: dict[str, Reference], pool: Any) -> None:
    """Some problems and the songs against other problems: set arithmetic over the samples of each."""
    own = {"dataset": "problems", "where": {"level": [0, 2]}}
    target = {"dataset": "problems", "where_not": {"level": [0, 2]}}
    matrix = {n: (np.asarray(f.any if pool == "any" else f.last) > 0) for n, f in fired.items()}
    ours = [i for i, row in enumerate(PROBLEMS) if row["level"] != 1]
    theirs = [i for i, row in enumerate(PROBLEMS) if row["level"] == 1]
    y, x = matrix["problems"][ours].sum(0) + matrix["songs"].sum(0), matrix["problems"][theirs].sum(0)
    answer = ask(library, [own, "songs"], target, pool=pool, support=0.3)
    wanted = np.flatnonzero((x > 0) & (y / 85 < 0.3))
    assert {item.index: (item.count, item.target_count) for item in answer.data} == {
        int(f): (y[f], x[f]) for f in wanted
    }
    assert answer.coverage.n_samples == 85
    assert [d.name for d in answer.datasets] == ["problems[level=0|2]", "songs"]
    assert [d.n_features for d in answer.datasets] == [
        matrix["problems"][ours].any(0).sum(),
        matrix["songs"].any(0).sum(),
    ]
    tested = np.flatnonzero(x + y)
    p = [stats.fisher_exact([[x[f], 20 - x[f]], [y[f], 85 - y[f]]]).pvalue for f in tested]
    q = dict(zip(tested.tolist(), stats.false_discovery_control(p), strict=True))
    assert {item.index: item.q_value for item in answer.data} == pytest.approx({int(f): q[int(f)] for f in wanted})
    with pytest.raises(InputError, match="share 20 samples and cannot be compared"):
        ask(library, ["problems"], target)
    with pytest.raises(InputError, match="share 40 samples and cannot be compared"):
        ask(library, [own, "problems"], {"dataset": "songs"})


def test_a_list_of_features_with_weights(library: Library, fired: dict[str, Reference]) -> None:
    m = {n: (f.any > 0).sum(0) for n, f in fired.items()}
    never = int(np.flatnonzero(sum(m.values()) == 0)[0])
    not_in_songs = int(np.flatnonzero((m["songs"] == 0) & (m["tales"] > 0))[0])
    in_songs = int(np.argmax(m["songs"]))
    target = {"features": [f"{SAE}/{never}", not_in_songs, in_songs], "weights": [0.5, 0.9, 1.0]}
    answer = ask(library, ["songs"], target, include=["samples", "synthesis_prompt"])
    assert [(i.index, i.state, i.weight) for i in answer.data] == [
        (not_in_songs, "missing", 0.9),
        (never, "missing", 0.5),
    ]
    assert (answer.coverage.n_targets, answer.coverage.n_covered, answer.n_tested) == (3, 1, None)
    rate = {n: m[n][not_in_songs] / len(ROWS[n]) for n in ("tales", "problems")}
    assert {sample.dataset for sample in answer.data[0].samples} == {max(rate, key=lambda n: rate[n])}
    assert answer.data[1].samples == []
    assert answer.data[1].synthesis_prompt is None, "nothing is known of it"
    assert set(answer.provenance.runs) == {"problems", "songs", "tales"}, "the samples were looked for everywhere"
    assert set(ask(library, ["songs"], target).provenance.runs) == {"songs"}


def test_labels_and_rules_as_targets(curated: Library) -> None:
    answer = ask(curated, ["songs"], {"labels": "once"}, support=1)
    assert [item.label for item in answer.data] == ["once upon", "Once, and much besides"], "best match first"
    assert ask(curated, ["songs"], {"labels": "once", "limit": 1}, support=1).coverage.n_targets == 1
    assert ask(curated, ["songs"], {"rule": "tale"}).coverage.n_targets == 3
    assert ask(curated, ["songs"], {"rule": "tale@1"}).coverage.n_targets == 1
    body = {"datasets": ["songs"], "target": {"rule": "tale@1"}}
    assert coverage_gap(curated, CoverageGapQuestion.model_validate(body)).provenance.sae == SAE, "the rule names it"


def test_what_has_changed_since(
    indexed: Settings, fired: dict[str, Reference], index_args: dict[str, Any], tmp_path: Path
) -> None:
    """The curator adds two of the tales to the songs; the target becomes those and the problems."""
    from indexer.config import IndexConfig
    from indexer.run import index

    copy = Settings.read(tmp_path / "home", {})
    shutil.copytree(indexed.home, copy.home)
    library = Library(open_home(copy))
    first = ask(library, ["songs"], {"dataset": "tales"})
    assert ask(library, ["songs"], {"dataset": "tales"}, since=3).total == 0
    songs = write_jsonl(tmp_path / "songs.jsonl", [*SONGS, *TALES[:2]])
    index(IndexConfig(**{**index_args, "layers": "2", "datasets": (("songs", str(songs)),)}), copy)
    library.refresh()
    second = ask(library, ["songs"], {"dataset": "tales"})
    assert second.coverage.n_samples == 47
    changed = ask(library, ["songs"], {"dataset": "tales"}, since=3)
    before, after = ({i.index for i in answer.data} for answer in (first, second))
    assert {i.index for i in changed.data if i.change == "closed"} == before - after != set()
    assert {i.index for i in changed.data if i.change == "opened"} == after - before == set()
    assert all((i.before, i.state) == ("missing", "covered") for i in changed.data if i.change == "closed")
    assert (changed.coverage_before, changed.coverage) == (first.coverage, second.coverage)
    tales = write_jsonl(tmp_path / "tales.jsonl", [*TALES[:2], *PROBLEMS])
    index(IndexConfig(**{**index_args, "layers": "2", "datasets": (("tales", str(tales)),)}), copy)
    library.refresh()
    third = ask(library, ["songs"], {"dataset": "tales"})
    changed = ask(library, ["songs"], {"dataset": "tales"}, since=4)
    now = {i.index for i in third.data}
    assert {i.index for i in changed.data if i.change == "opened"} == now - after != set()
    gone = [i for i in changed.data if i.change == "closed"]
    assert {i.index for i in gone} == after - now != set()
    assert {i.state for i in gone} == {"untargeted"}
    assert all(i.weight > 0 for i in gone), "what it weighed before"
    repeated = ask(library, ["songs"], {"dataset": "tales"}, since=3, as_of=4)
    assert {i.index for i in repeated.data} == before - after
    # tales came third: at snapshot 2 there was no target, before the first run there was nothing at all
    for since in (2, 0):
        answer = ask(library, ["songs"], {"dataset": "tales"}, since=since, as_of=3)
        assert {i.index for i in answer.data} == before
        assert {(i.change, i.before) for i in answer.data} == {("opened", "untargeted")}
        assert answer.coverage_before is not None
        assert answer.coverage_before.share is None
    library.home.close()


@pytest.mark.parametrize(
    ("datasets", "target", "more", "error", "words"),
    [
        (["song"], {"dataset": "tales"}, {}, NotFound, "did you mean songs?"),
        (["songs"], {"dataset": "tale"}, {}, NotFound, "did you mean tales?"),
        (["songs"], {"dataset": "songs"}, {}, InputError, "the target songs is one of the datasets"),
        (["songs"], {"features": ["other/0-x/3"]}, {}, InputError, "feature other/0-x/3 is not one of tiny-qwen3/2-tiny"),
        (["songs"], {"features": [256]}, {}, NotFound, "has no feature '256'; its features are 0 to 255"),
        (["songs"], {"features": [f"{SAE}/x"]}, {}, NotFound, "has no feature 'x'"),
        (["songs"], {"labels": "nowhere said"}, {}, NotFound, "no label of tiny-qwen3/2-tiny says 'nowhere said'"),
        (["songs"], {"rule": "tail"}, {}, NotFound, "no rule named 'tail'; did you mean tale?"),
        (["songs"], {"rule": "tale@9"}, {}, NotFound, "rule 'tale' has versions 2, 1, not '9'"),
        (["songs"], {"rule": "tale@1"}, {"sae": "tiny-qwen3/0-tiny"}, InputError, "rule 'tale@1' speaks of no feature of"),
        (["songs"], {"features": [1]}, {"sort": "q_value"}, InputError, "sort='q_value' needs a dataset as target"),
        (["songs"], {"dataset": "tales"}, {"since": 9}, InputError, "since=9: snapshots so far are 0 to 3"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_said(
    curated: Library, datasets: list[str], target: Any, more: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        ask(curated, datasets, target, **more)


@pytest.fixture(scope="module")
def client(indexed: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(open_home(indexed)), raise_server_exceptions=False) as made:
        yield made


BODY = {
    "sae": SAE,
    "datasets": ["songs"],
    "target": {"dataset": "tales"},
    "support": 0.2,
    "include": ["samples", "synthesis_prompt"],
}


def test_streams_hold_what_the_pages_hold(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.services.gaps.gap.CHUNK", 5)
    answer = client.post("/v1/coverage-gaps", json={**BODY, "limit": 1000}).json()
    assert answer["total"] == len(answer["data"]) > 10
    assert answer["next_cursor"] is None
    lines = client.post("/v1/coverage-gaps", json=BODY, headers={"accept": "application/x-ndjson"})
    assert lines.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line) for line in lines.text.splitlines()] == answer["data"]
    made = json.loads(lines.headers["scopebase-provenance"])
    assert made == {k: v for k, v in answer["provenance"].items() if k != "runs"}
    assert json.loads(lines.headers["scopebase-coverage"]) == answer["coverage"]
    file = client.post("/v1/coverage-gaps?format=parquet", json=BODY)
    assert file.headers["content-type"] == "application/vnd.apache.parquet"
    table = pq.read_table(io.BytesIO(file.content))
    assert json.loads(table.schema.metadata[b"scopebase.summary"])["coverage"] == answer["coverage"]
    rows = table.to_pylist()
    for name in ("feature", "state", "target_rate", "interval", "synthesis_prompt", "firing_tokens"):
        assert [row[name] for row in rows] == [item[name] for item in answer["data"]]
    assert rows[0]["samples"][0]["tokens"][0]["start"] == answer["data"][0]["samples"][0]["tokens"][0]["start"]
    few = client.post("/v1/coverage-gaps?format=ndjson", json={**BODY, "limit": 3})
    assert len(few.text.splitlines()) == 3


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"target": {}}, 422, "a target has one of: dataset, features, labels, rule"),
        ({"target": {"dataset": "tale"}}, 404, "did you mean tales?"),
        ({"target": {"features": [1], "weights": [1, 2]}}, 422, "2 weights for 1 features"),
        ({"datasets": []}, 422, "at least 1 item"),
        ({"support": 2}, 422, "less than or equal to 1"),
        ({"include": ["poems"]}, 422, "'samples' or 'synthesis_prompt'"),
    ],
)
@pytest.mark.parametrize("kind", ["json", "ndjson", "parquet"])
def test_a_wrong_question_is_refused_before_a_stream_begins(
    client: TestClient, change: Any, status: int, words: str, kind: str
) -> None:
    response = client.post(f"/v1/coverage-gaps?format={kind}", json={**BODY, **change})
    assert response.status_code == status
    assert words in response.json()["detail"]
