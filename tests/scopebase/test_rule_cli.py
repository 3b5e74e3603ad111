"""`scopebase rule ...` as scripts and people use it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from schema.settings import Settings
from tests.api.rules.rule_home import RIGHT, SAES, make_rule_home
from tests.scopebase.test_cli import Call, call  # noqa: F401


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, index_args: dict[str, Any]) -> Settings:
    return make_rule_home(tmp_path_factory.mktemp("rules"), index_args)


@pytest.fixture
def rule(call: Call, made: Settings, tmp_path: Path) -> Call:  # noqa: F811
    """`scopebase --home COPY rule ...`"""
    shutil.copytree(made.home, tmp_path / "home")
    return lambda *args: call("--home", tmp_path / "home", "rule", *args)


def test_from_discovery_to_judgement(rule: Call) -> None:
    said = rule("discover", "left", "--save", "toxic", "--author", "ann", "--efficiency", "--no-baselines")
    assert said.status == 0, said.err
    assert "discovered on 32 positive and 32 negative samples" in said.out
    assert "always positive" in said.out
    assert "Stored as toxic@1" in said.out
    shown = rule("show", "toxic", "--json").json
    assert (shown["author"], shown["provenance"]["made"]) == ("ann", "discovery")
    assert "or" in rule("show", "toxic").out or shown["n_features"] == 1
    assert rule("sign", "toxic", "--author", "eve", "--json").json["signed_by"] == "eve"
    assert "eve" in rule("list").out
    measured = rule("evaluate", "toxic", "left", "right", "--json").json
    assert [row["part"] for row in measured["data"]] == ["held_out", "all"]
    assert "left (held out)" in rule("evaluate", "toxic", "left", "right").out
    judged = rule("classify", "toxic", "--dataset", "right", "--positive", "--limit", "2")
    assert judged.out.count(" positive  ") == 2
    assert "the next page: --cursor" in judged.out
    assert "nothing changed since it was made" in rule("drift", "toxic").out


def test_texts_are_judged_as_the_stored_samples_are(rule: Call) -> None:
    rule("discover", "left", "--save", "toxic", "--no-baselines")
    stored = rule("classify", "toxic", "--dataset", "right", "--limit", "1000", "--json").json["data"]
    some = [*range(3), *range(len(RIGHT) - 3, len(RIGHT))]
    read = rule("classify", "toxic", *(RIGHT[i]["text"] for i in some), "--json").json
    verdicts = {sample["id"]: sample["positive"] for sample in stored}
    assert [text["positive"] for text in read["data"]] == [verdicts[RIGHT[i]["id"]] for i in some]
    assert len(set(verdicts.values())) == 2
    assert rule("classify", "toxic").status == 2


def test_a_rule_by_hand(rule: Call, tmp_path: Path) -> None:
    (tmp_path / "rule.json").write_text(json.dumps({"not": {"feature": f"{SAES[0]}/3", "above": 0.5}}))
    assert f"not {SAES[0]}/3 > 0.5" in rule("set", "hand", tmp_path / "rule.json", "--based-on", "0").out
    late = rule("set", "hand", tmp_path / "rule.json", "--based-on", "0")
    assert (late.status, "rule hand is at version 1, you saw 0: somebody changed it" in late.err) == (2, True)
    assert rule("list", "--json").json["data"][0]["expression"] == {"not": {"feature": f"{SAES[0]}/3", "above": 0.5}}


def test_the_transfer_matrix(rule: Call) -> None:
    said = rule("transfer", "left", "right", "--k", "1,2")
    assert said.status == 0, said.err
    assert "F1 of the row's rule on the held-out samples of the column" in said.out
    assert rule("transfer", "left", "--group-by", "language", "--k", "1", "--json").json["names"] == ["de", "en"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("discover", "left", "--k", "one"), "--k 'one': whole numbers with commas"),
        (("discover", "left", "--where", "{"), "--where '{' is no JSON"),
        (
            ("discover", "left", "--save", "x", "--choose", "best"),
            "--choose 'best': <sae>:<k>, or m:<number of layers>",
        ),
        (("discover", "left", "--discovery-share", "2"), "discovery_share: Input should be less than 1"),
        (("set", "x", '{"al": []}'), "an expression is one of"),
        (("show", "x"), "no rule named 'x'"),
        (("discover", "lefd"), "no SAE has all of lefd"),
    ],
)
def test_refusals_are_one_line(rule: Call, args: tuple[str, ...], words: str) -> None:
    said = rule(*args)
    assert said.status == 2
    assert words in said.err
    assert said.err.count("\n") == 1
