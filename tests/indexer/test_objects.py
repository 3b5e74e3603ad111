"""A home whose activation store is a bucket: the same rows and answers as on disk, few requests, and faults that lose nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from indexer.config import IndexConfig
from indexer.run import index
from schema.backup import HALF, back_up, restore
from schema.errors import HomeError, Unreachable, WorkFailed
from schema.home import open_home
from schema.layout import TABLES
from schema.removals import doomed_dataset, remove, trim
from schema.settings import Settings
from schema.store import Store
from schema.tables import Dataset
from schema.verify import verify
from scopebase.cli import main
from tests.objects import QUICK, Fault, weather

SAE = "tiny-qwen3/1-tiny"


def far(bucket: Any, folder: Path, prefix: str) -> Settings:
    return Settings.read(folder, {"SCOPEBASE_STORE_URL": bucket.url(prefix)})


@pytest.fixture(scope="module")
def saved(indexed: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of the indexed home."""
    folder = tmp_path_factory.mktemp("backup") / "saved"
    home = open_home(indexed)
    back_up(home, folder)
    home.close()
    return folder


@pytest.fixture(scope="module")
def moved(saved: Path, object_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """The indexed home with its store in a bucket, by way of that backup. Shared: read it only."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in object_server.environ.items():
            patch.setenv(name, value)
        settings = far(object_server, tmp_path_factory.mktemp("moved") / "home", "moved")
        restore(saved, settings)
        yield settings


def content(settings: Settings, table: str) -> list[dict[str, Any]]:
    """Every row of a table by its key, the fence left out."""
    return list(Store(settings.store_url).latest(table).to_table(filter="key >= 0").sort_by("key").to_pylist())


@pytest.fixture(scope="module")
def songs(index_args: dict[str, Any], data_dir: Path) -> IndexConfig:
    """One dataset through one SAE, without logits."""
    return IndexConfig(
        **index_args, datasets=(("songs", str(data_dir / "songs.jsonl")),), layers="1", logits="no", batch_tokens=128
    )


@pytest.fixture(scope="module")
def calm(songs: IndexConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What an undisturbed run of it writes on a disk."""
    settings = Settings.read(tmp_path_factory.mktemp("calm") / "home", {})
    index(songs, settings)
    return {table: content(settings, table) for table in (*TABLES, "directions_32")}


def check(settings: Settings, calm: dict[str, list[dict[str, Any]]]) -> None:
    """The same rows, and both stores in agreement."""
    for table, wanted in calm.items():
        assert _plain(content(settings, table)) == _plain(wanted), table
    home = open_home(settings)
    assert verify(home, deep=True).findings == []
    home.close()


def _plain(rows: list[dict[str, Any]]) -> str:
    return json.dumps(rows, default=lambda value: value.hex())


def test_an_index_in_a_bucket_is_the_same_byte_for_byte(
    bucket: Any, songs: IndexConfig, calm: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    settings = far(bucket, tmp_path / "home", "same")
    index(songs, settings)
    check(settings, calm)
    assert not (tmp_path / "home" / "store").exists()
    bucket.clear()
    index(songs, settings)
    written = [line for line in bucket.log() if line.startswith("PUT")]
    assert all("/same/probe-" in line for line in written)  # and nothing of the index


def test_faults_lose_nothing(
    bucket: Any,
    songs: IndexConfig,
    calm: dict[str, list[dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Errors, lost answers, cut and partial ones: it goes on, or ends with one sentence and goes on when asked again."""
    monkeypatch.setenv("SCOPEBASE_STORE_OPTIONS", QUICK)
    settings = far(bucket, tmp_path / "home", "faults")
    bucket.fail(*weather(2, share=0.05))
    for _ in range(40):
        with suppress(Unreachable):
            index(songs, settings)
            break
    assert bucket.counts()["faults"] > 5
    bucket.fail()
    index(songs, settings)
    check(settings, calm)


def test_questions_have_the_same_answers(indexed: Settings, moved: Settings) -> None:
    paths = (
        f"overlap?sae={SAE}&dataset=problems&dataset=songs&dataset=tales",
        f"diff?sae={SAE}&covered_by=songs&not_covered_by=tales",
        f"features/{SAE}/7",
        f"subset?sae={SAE}&dataset=tales&coverage=0.9",
        f"samples/songs/s3?sae={SAE}",
        f"steering-vectors/{SAE}/7",
    )
    query = {"sae": SAE, "where": {"dataset": "problems", "where": {"level": [1]}, "min_rate": 0.1}}
    answers = []
    for settings in (indexed, moved):
        with TestClient(create_app(open_home(settings)), base_url="http://127.0.0.1") as client:
            found = [client.get(f"/v1/{path}") for path in paths]
            found.append(client.post("/v1/features/query", json=query))
            assert [each.status_code for each in found] == [200] * len(found)
            answers.append([each.json() for each in found])
    assert answers[0] == answers[1]


def test_questions_take_few_requests(moved: Settings, bucket: Any) -> None:
    """The numbers of the how-to page. Nothing lists data files, and what was read once is not read again."""
    home = open_home(moved)
    assert sum(bucket.counts()[kind] for kind in ("GET", "LIST", "HEAD")) <= 3
    with TestClient(create_app(home), base_url="http://127.0.0.1") as client:

        def requests(path: str) -> int:
            bucket.clear()
            assert client.get(f"/v1/{path}").status_code == 200
            assert not [line for line in bucket.log() if line.startswith("LIST") and "_versions" not in line]
            counts = bucket.counts()
            return counts["GET"] + counts["LIST"] + counts["HEAD"]

        pairs = "dataset=problems&dataset=songs&dataset=tales"
        assert requests(f"overlap?sae={SAE}&{pairs}") <= 12
        assert requests(f"overlap?sae={SAE}&{pairs}&min_samples=2") == 0
        assert requests(f"features/{SAE}/7") > 0
        assert requests(f"features/{SAE}/9") <= 60


def test_an_outage_is_a_503_that_says_when_to_come_back(
    moved: Settings, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCOPEBASE_STORE_OPTIONS", json.dumps({**json.loads(QUICK), "client_max_retries": "0"}))
    path = f"/v1/samples/songs/s3?sae={SAE}"
    with TestClient(create_app(open_home(moved)), base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        bucket.fail(Fault(status=503, code="SlowDown"))
        answer = client.get(path)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert "overloaded" in answer.json()["detail"]
        bucket.fail()
        assert client.get(path).status_code == 200


def test_the_command_line_says_what_is_wrong(
    moved: Settings, bucket: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SCOPEBASE_STORE_URL", moved.store_url)
    monkeypatch.setenv("SCOPEBASE_STORE_OPTIONS", QUICK)
    monkeypatch.setattr(sys, "argv", ["scopebase", "--home", str(moved.home), "verify"])
    for fault, status, said in (
        (Fault(status=404, code="NoSuchBucket"), 2, "there is no bucket 'scopebase'"),
        (Fault(status=500), 1, "has a fault of its own"),
        (Fault("hang_up", path="tokens.lance/_versions"), 1, "does not answer"),
    ):
        bucket.fail(fault)
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr().err
        assert (ended.value.code, told.count("\n")) == (status, 1)
        assert said in told


def test_a_backup_goes_from_the_bucket_to_a_disk(moved: Settings, saved: Path, tmp_path: Path) -> None:
    home = open_home(moved)
    made = back_up(home, tmp_path / "again")
    home.close()
    assert {path for path in made.files if "/data/" in path} == {
        str(path.relative_to(saved)) for path in saved.rglob("data/*") if path.is_file()
    }
    settings = Settings.read(tmp_path / "home", {})
    restore(tmp_path / "again", settings)
    assert verify(open_home(settings)).clean


def test_a_restore_that_died_in_a_bucket_begins_again(
    saved: Path, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCOPEBASE_STORE_OPTIONS", QUICK)
    settings = far(bucket, tmp_path / "home", "half")
    bucket.fail(Fault(status=503, code="SlowDown", methods=("PUT",), path="postings"))
    with pytest.raises(WorkFailed):
        restore(saved, settings)
    assert HALF in bucket.files("half")
    bucket.fail()
    restore(saved, settings)
    assert HALF not in bucket.files("half")
    assert verify(open_home(settings)).clean
    with pytest.raises(HomeError, match="a home at"):
        restore(saved, far(bucket, tmp_path / "other", "half"))


def test_what_is_deleted_leaves_the_bucket_and_damage_is_found(saved: Path, bucket: Any, tmp_path: Path) -> None:
    settings = far(bucket, tmp_path / "home", "worn")
    restore(saved, settings)
    home = open_home(settings)
    with home.database.writing(alone=True) as session:
        songs = session.query(Dataset).filter_by(name="songs").all()
        remove(session, doomed_dataset(session, "songs", songs), "test")
    trim(home)
    assert verify(home).clean
    assert not [row for row in content(settings, "samples") if row["id"].startswith("s")]
    name = next(path for path in bucket.files("worn") if path.startswith("tokens.lance/data/"))
    path = bucket.folder / "scopebase" / "worn" / name
    path.write_bytes(path.read_bytes()[:-7])
    home.store.refresh()
    problems = [finding.problem for finding in verify(home).findings]
    assert any("bytes and not" in problem for problem in problems)
    path.unlink()
    assert any(finding.problem == "the file is not there" for finding in verify(home).findings)
