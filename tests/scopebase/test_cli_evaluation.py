"""`scopebase subset | suite | evaluation | preservation | failures`."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from schema.settings import Settings
from scopebase.cli import main
from scopebase.cli.options import GLOBALS
from tests.making import PROBLEMS, SONGS, TALES
from tests.scoring import model_names, panel

SAE = "tiny-qwen3/2-tiny"
ROWS = {"problems": PROBLEMS, "songs": SONGS, "tales": TALES}
Call = Callable[..., Any]


@pytest.fixture(scope="module")
def home(indexed: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("cli") / "home"
    shutil.copytree(indexed.home, copy)
    return copy


@pytest.fixture
def call(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """Runs a command in this process: (exit status, standard output, standard error)."""

    def run(*words: str) -> tuple[int, str, str]:
        GLOBALS.home, GLOBALS.json = None, False
        monkeypatch.setattr(sys, "argv", ["scopebase", "--home", str(home), *words])
        with pytest.raises(SystemExit) as left:
            main()
        found = capsys.readouterr()
        return int(left.value.code or 0), found.out, found.err

    yield run
    GLOBALS.home, GLOBALS.json = None, False


@pytest.fixture
def panels(home: Path, call: Call, tmp_path: Path) -> None:
    """Four models on each dataset, from CSV files; the same again change nothing."""
    for seed, (name, rows) in enumerate(ROWS.items()):
        for model, scores in zip(model_names(4), panel(4, len(rows), seed), strict=True):
            path = tmp_path / f"{model}.csv"
            path.write_text("id,score\n" + "".join(f"{row['id']},{s}\n" for row, s in zip(rows, scores, strict=True)))
            status, out, err = call("evaluation", "import", name, str(path), "--evaluated", model, "--metric", "acc")
            assert status == 0, err
            assert f"{model} on {name}@1, acc" in out


def test_a_subset_and_its_rows(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "small.jsonl"
    status, text, _ = call("subset", "tales", "--sae", SAE, "--coverage", "0.9", "--out", str(out))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert status == 0
    assert all(row in TALES for row in rows)
    assert f"{len(rows)} of tales's 50 samples" in text
    assert "No set of fewer than" in text
    status, text, _ = call("subset", "tales", "--sae", SAE, "--coverage", "0.9", "--json")
    assert json.loads(text)["samples"] == [row["id"] for row in rows]
    assert list(tmp_path.iterdir()) == [out]
    status, text, _ = call("subset", "tales", "--sae", SAE, "--n", "2")
    assert "No 2 samples keep more than" in text


def test_a_subset_of_a_slice(call: Call, tmp_path: Path) -> None:
    (tmp_path / "where.json").write_text('{"level": 1}')
    answers = []
    for asked in (
        ["problems[level=1]"],
        ["problems", "--where", '{"level": 1}'],
        ["problems", "--where", f"@{tmp_path}/where.json"],
    ):
        status, text, err = call("subset", *asked, "--sae", SAE, "--json")
        assert status == 0, err
        answers.append(json.loads(text))
    assert answers[0] == answers[1] == answers[2]
    assert answers[0]["dataset"]["n_samples"] == 20
    status, text, _ = call("redundancy", "problems", "problems[level=1]", "--sae", SAE)
    assert (status, "problems[level=1]" in text) == (0, True)
    for asked, words in (
        (["problems[level=1]", "--where", "{}"], "give the slice in brackets or with --where, one of them"),
        (["problems", "--where", "level=1"], "--where: "),
        (["problems", "--where", "@nowhere.json"], "nowhere.json: No such file"),
    ):
        status, _, err = call("subset", *asked, "--sae", SAE)
        assert (status, err.count("\n")) == (2, 1)
        assert words in err


def test_a_file_that_cannot_be_written(call: Call, tmp_path: Path) -> None:
    status, _, err = call("subset", "tales", "--sae", SAE, "--out", str(tmp_path / "none" / "x.jsonl"))
    assert (status, err.count("\n")) == (1, 1)
    assert "cannot be written: No such file or directory; name another file with --out" in err


def test_a_suite(call: Call) -> None:
    status, text, _ = call("suite", "songs", "problems[level=1]", "problems[not level=1]", "--sae", SAE)
    assert (status, "problems[level=1]" in text) == (0, True)
    status, text, _ = call("suite", *ROWS, "--sae", SAE, "--pool", "last")
    assert status == 0
    assert "Drop in this order" in text
    assert max(len(line) for line in text.splitlines()) <= 80
    status, text, _ = call("suite", *ROWS, "--sae", SAE, "--pool", "last", "--json")
    assert len(json.loads(text)["drops"]) == 2


@pytest.mark.usefixtures("panels")
def test_evaluations_and_what_they_tell(call: Call, tmp_path: Path) -> None:
    page = json.loads(call("evaluation", "list", "songs", "--json")[1])
    assert [item["evaluated"] for item in page["data"]] == model_names(4)
    assert "songs@1" in call("evaluation", "list", "songs")[1]
    (tmp_path / "ids.txt").write_text("t1\nt2\nt3\nt4\n")
    status, text, err = call("preservation", "tales", "--samples", str(tmp_path / "ids.txt"))
    assert status == 0, err
    assert "Kendall's tau" in text
    assert "random subsets of 4" in text
    assert "performance redundancy R" in call("preservation", "tales", "--coverage", "0.9", "--sae", SAE)[1]
    assert "Spearman (R, N / |F|)" in call("evaluation", "redundancy", *ROWS, "--sae", SAE, "--draws", "20")[1]
    assert "overlap_min" in call("evaluation", "similarity", *ROWS, "--sae", SAE)[1]
    status, text, _ = call("failures", "tales", "--sae", SAE, "--evaluated", "model-01", "--direction", "both")
    assert "Fisher's exact test, Benjamini-Hochberg" in " ".join(text.split())
    evaluation = page["data"][0]["id"]
    assert call("evaluation", "remove", str(evaluation))[1] == f"evaluation {evaluation} removed\n"
    assert evaluation not in [item["id"] for item in json.loads(call("evaluation", "list", "--json")[1])["data"]]


def test_refusals_are_one_line(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("id,score\ns1,1\n")
    (tmp_path / "empty.txt").write_text("")
    for words, message in (
        (
            ("evaluation", "import", "songs", str(path), "--metric", "acc"),
            "name the model that was evaluated with --evaluated",
        ),
        (
            ("evaluation", "import", "songs", str(path), "--metric", "acc", "--evaluated", "m", "--match", "x"),
            "--match",
        ),
        (("preservation", "tales", "--samples", str(tmp_path / "empty.txt")), "has no ids"),
        (("preservation", "tales", "--samples", str(tmp_path / "no.txt")), "cannot be read"),
        (("evaluation", "remove", "999"), "no evaluation 999"),
    ):
        status, _, err = call(*words)
        assert (status, err.count("\n")) == (2, 1), err
        assert message in err
