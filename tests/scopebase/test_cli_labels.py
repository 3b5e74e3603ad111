"""`scopebase label ...` as people and scripts use it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tests.laboratory import make_lab
from tests.scopebase.test_cli import Call, call  # noqa: F401 - a fixture


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    made = make_lab(tmp_path / "lab")
    made.home.close()
    return tmp_path / "lab"


def test_a_label_from_making_to_undo(call: Call, lab: Path) -> None:  # noqa: F811
    made = call("--home", lab, "label", "set", "m/3-tiny/7", "sums of money", "--author", "ann", "--json").json
    assert (made["author"], made["feature"]) == ("ann", "m/3-tiny/7")
    short = made["id"][:10]
    assert "version 2" in call("--home", lab, "label", "set", short, "sums of money and prices").out
    assert call("--home", lab, "label", "set", short, "x", "--version", "1").status == 2
    assert "votes -1" in call("--home", lab, "label", "vote", short, "--down").out
    assert call("--home", lab, "label", "comment", short, "why?").status == 0
    assert "why?" in call("--home", lab, "label", "show", short).out
    assert "sums of money" in call("--home", lab, "label", "search", "price").out
    assert "deleted" in call("--home", lab, "label", "remove", short).out
    gone = call("--home", lab, "label", "show", short)
    assert (gone.status, gone.out) == (2, "")
    assert f"'scopebase label undo {made['id']}' brings it back" in gone.err
    assert made["id"][:12] in call("--home", lab, "label", "list", "--deleted").out
    assert "prices" in call("--home", lab, "label", "undo", short).out
    history = call("--home", lab, "label", "history", short, "--json").json["data"]
    assert [event["action"] for event in history] == ["undo", "delete", "edit", "create"]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["set", "m/3-tiny/7"], "say what the feature means: scopebase label set FEATURE 'TEXT'"),
        (["set", "m/3-tiny/7", " "], "text: String should have at least 1 character"),
        (["set", "m/3-tiny/7", "x", "--author", " "], "--author: 1 to 128 characters"),
        (["show", "none"], "no label has the id 'none'"),
        (["import", "/nowhere.jsonl"], "there is no /nowhere.jsonl; give a label pack"),
        (["search", "x", "--how", "meaning"], "search by meaning needs a sentence model"),
        (["export", "--to", "/nowhere/x.jsonl"], "--to /nowhere/x.jsonl cannot be written"),
        (["explain", "--endpoint", "x", "--model", "m"], "--endpoint 'x': an address such as"),
        (
            ["explain", "--endpoint", "http://x", "--model", "m", "--features", "x"],
            "--features 'x': indexes and ranges",
        ),
    ],
)
def test_refusals_are_one_line(call: Call, lab: Path, args: list[str], sentence: str) -> None:  # noqa: F811
    said = call("--home", lab, "label", *args)
    assert (said.status, said.out) == (2, "")
    assert sentence in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("name", ["pack.jsonl", "pack.jsonl.gz", "pack.parquet"])
def test_packs_from_lab_to_lab(call: Call, lab: Path, tmp_path: Path, name: str) -> None:  # noqa: F811
    label = call("--home", lab, "label", "set", "m/3-tiny/7", "sums of money", "--json").json["id"]
    assert call("--home", lab, "label", "export", "--to", tmp_path / name).status == 0
    make_lab(tmp_path / "other").home.close()
    report = call("--home", tmp_path / "other", "label", "import", tmp_path / name, "--json").json
    assert (report["created"], report["n_conflicts"]) == (1, 0)
    call("--home", tmp_path / "other", "label", "set", label, "money")
    said = call("--home", tmp_path / "other", "label", "import", tmp_path / name)
    assert "1 label read: 1 left as they are here" in said.out
    assert "money" in said.out


def test_an_export_to_standard_output_is_the_pack(call: Call, lab: Path, tmp_path: Path) -> None:  # noqa: F811
    call("--home", lab, "label", "set", "m/3-tiny/7", "sums of money")
    out = call("--home", lab, "label", "export", "--format", "neuronpedia", "--sae", "m/3-tiny").out
    assert json.loads(out)["description"] == "sums of money"
    call("--home", lab, "label", "export", "--to", tmp_path / "x.jsonl.gz")
    assert gzip.decompress((tmp_path / "x.jsonl.gz").read_bytes()).count(b"\n") == 2
