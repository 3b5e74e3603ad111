"""`scopebase gap`: its targets, its files, and the watch."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from schema.settings import Settings
from scopebase.cli.gap import read_target
from tests.making import SONGS, TALES, write_jsonl
from tests.scopebase.test_cli import Call, call  # noqa: F401 - a fixture

SAE = "tiny-qwen3/2-tiny"


def test_targets(tmp_path: Path) -> None:
    assert read_target("dataset:tales@2") == {"dataset": "tales@2"}
    assert read_target("labels:'to be: or not'") == {"labels": "to be: or not"}
    assert read_target("rule:toxic") == {"rule": "toxic"}
    assert read_target("dataset:mmlu[subject='anatomy', not year=2]") == {
        "dataset": "mmlu", "where": {"subject": "anatomy"}, "where_not": {"year": 2}
    }  # fmt: skip
    path = tmp_path / "features.txt"
    path.write_text("# what we need\n7\nm/3-tiny/9\t0.5\n\n11, 0.25 # rare\n")
    assert read_target(f"features:{path}") == {"features": [7, "m/3-tiny/9", 11], "weights": [1.0, 0.5, 0.25]}
    path.write_text('[7, "m/3-tiny/9"]')
    assert read_target(f"features:{path}") == {"features": [7, "m/3-tiny/9"]}


def test_the_command_prints_the_answer_of_the_route(call: Call, indexed: Settings, tmp_path: Path) -> None:  # noqa: F811
    said = call("--home", indexed.home, "--json", "gap", "songs", "--target", "dataset:tales", "--sae", SAE)
    assert (said.status, said.err) == (0, "")
    assert said.json["total"] == len(said.json["data"]) > 0
    assert said.json["data"][0]["samples"]
    assert said.json["data"][0]["synthesis_prompt"] is None
    path = tmp_path / "features.txt"
    path.write_text("".join(f"{item['feature']}\n" for item in said.json["data"]))
    listed = call("--home", indexed.home, "--json", "gap", "songs", "--target", f"features:{path}")
    assert {item["index"] for item in listed.json["data"]} == {item["index"] for item in said.json["data"]}
    assert listed.json["provenance"]["sae"] == SAE, "the features name it"


def test_slices_on_both_sides(call: Call, indexed: Settings) -> None:  # noqa: F811
    target = ["--target", "dataset:problems[not level=1]", "--sae", SAE]
    said = call("--home", indexed.home, "--json", "gap", "problems[level=1]", "songs", *target)
    assert said.status == 0, said.err
    assert [(d["name"], d["n_samples"]) for d in said.json["datasets"]] == [("problems[level=1]", 20), ("songs", 45)]
    assert said.json["target"]["name"] == "problems[not level=1]"
    assert said.json["target"]["n_samples"] == 40


def test_the_command_for_people(call: Call, indexed: Settings) -> None:  # noqa: F811
    args = ["gap", "songs", "--target", "dataset:tales", "--sae", SAE]
    said = call("--home", indexed.home, *args, "--limit", 3, "--prompts")
    assert said.status == 0
    assert "songs against dataset tales: covered" in said.out
    assert "missing  target" in said.out
    assert "fires on" in said.out
    assert "Write one new text for a training set." in said.out
    assert "the next page: --cursor" in said.out
    assert "missing: in no sample" in said.out
    assert max(map(len, said.out.splitlines())) <= 100
    since = call("--home", indexed.home, *args, "--since", 2, "--limit", 1)
    assert "at snapshot 2: covered no target (0 of 0" in since.out
    assert "opened: untargeted → missing" in since.out


def test_files(call: Call, indexed: Settings, tmp_path: Path) -> None:  # noqa: F811
    args = ["gap", "songs", "--target", "dataset:tales", "--sae", SAE, "--support", "0.5"]
    whole = call("--home", indexed.home, "--json", *args, "--limit", 1000).json["data"]
    lines = call("--home", indexed.home, *args, "--output", "-")
    assert [json.loads(line) for line in lines.out.splitlines()] == whole
    for name in ("gap.jsonl", "gap.parquet"):
        said = call("--home", indexed.home, *args, "--output", tmp_path / name)
        assert (said.status, said.out) == (0, "")
        assert f"{len(whole)} features; covered" in said.err
    assert (tmp_path / "gap.jsonl").read_text() == lines.out
    assert [row["index"] for row in pq.read_table(tmp_path / "gap.parquet").to_pylist()] == [i["index"] for i in whole]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gap.jsonl", "gap.parquet"]
    said = call("--home", indexed.home, *args, "--output", tmp_path / "not-there" / "gap.jsonl")
    assert (said.status, "No such file or directory; nothing was written" in said.err) == (1, True)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--target", "tales"], "--target 'tales': dataset:NAME, features:FILE, labels:'text' or rule:NAME"),
        (["--target", "dataset:"], "--target 'dataset:': dataset:NAME"),
        (["--target", "dataset:tale"], "no dataset named 'tale'; did you mean tales?"),
        (["--target", "features:/nowhere"], "/nowhere: No such file or directory"),
        (["--target", "dataset:tales", "--output", "gap.csv"], "--output 'gap.csv': a .jsonl or .parquet file"),
        (["--target", "dataset:tales", "--watch", "--as-of", "1"], "--watch prints what comes"),
        ([], "Missing option '--target'"),
        (["--target", "dataset:problems[level"], "expression: '=' should come at character 15, not 'the end'"),
        (["--target", "dataset:problems[level=1]x"], "expression: the end should come at character 18, not 'x'"),
        (["songs[mood=sad]", "--target", "dataset:tales"], "share "),
    ],
)
def test_a_wrong_call_is_one_line(call: Call, indexed: Settings, args: list[str], words: str) -> None:  # noqa: F811
    said = call("--home", indexed.home, "gap", "songs", *args, "--sae", SAE)
    assert (said.status, said.out) == (2, "")
    assert words in said.err
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [("7 x\n", "line 1: 'x' is no weight"), ("# none\n", "no features; a line is"), ("[7", "no JSON")],
)
def test_a_file_that_holds_no_features_is_refused(
    call: Call, indexed: Settings, tmp_path: Path, text: str, words: str  # noqa: F811
) -> None:  # fmt: skip
    path = tmp_path / "features.txt"
    path.write_text(text)
    said = call("--home", indexed.home, "gap", "songs", "--target", f"features:{path}", "--sae", SAE)
    assert said.status == 2
    assert words in said.err


def test_the_watch_prints_what_a_new_run_closes(indexed: Settings, index_args: dict[str, Any], tmp_path: Path) -> None:
    from indexer.config import IndexConfig
    from indexer.run import index

    copy = Settings.read(tmp_path / "home", {})
    shutil.copytree(indexed.home, copy.home)
    command = [sys.executable, "-m", "scopebase", "--home", str(copy.home), "gap", "songs", "--target", "dataset:tales"]
    watch = subprocess.Popen(
        [*command, "--sae", SAE, "--watch", "--interval", "0.1", "--samples", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert watch.stdout is not None
        assert watch.stderr is not None
        start = json.loads(watch.stdout.readline())
        assert (start["event"], start["snapshot"]) == ("start", 3)
        songs = write_jsonl(tmp_path / "songs.jsonl", [*SONGS, *TALES[:2]])
        index(IndexConfig(**{**index_args, "layers": "2", "datasets": (("songs", str(songs)),)}), copy)
        lines = []
        while not lines or lines[-1]["event"] != "snapshot":
            lines.append(json.loads(watch.stdout.readline()))
        *changes, last = lines
        assert {line["event"] for line in changes} == {"closed"}
        assert all((line["since"], line["snapshot"], line["state"]) == (3, 4, "covered") for line in changes)
        assert all(line["samples"] for line in changes)
        assert last["changed"] == len(changes) > 0
        assert last["coverage"]["n_missing"] == start["coverage"]["n_missing"] - len(changes)
        watch.send_signal(signal.SIGINT)
        assert watch.wait(60) == 0
        assert "stopped at snapshot 4; '--watch --since 4' goes on from there" in watch.stderr.read()
    finally:
        watch.kill()
