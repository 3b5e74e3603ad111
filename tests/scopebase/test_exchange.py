"""`scopebase export` and `scopebase import`, as scripts and people use them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schema.settings import Settings
from tests.scopebase.test_cli import Call, call

SAE = "tiny-qwen3/2-tiny"
__all__ = ["call"]  # the fixture
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def home(indexed: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exchange-cli") / "home"
    shutil.copytree(indexed.home, folder)
    return folder


def test_export_says_what_it_wrote_and_import_compares_it(call: Call, home: Path, tmp_path: Path) -> None:
    for format in ("neuronpedia", "delphi", "dashboard"):
        said = call("--home", home, "export", format, "--sae", SAE, "--out", tmp_path / format, "--features", "0-99")
        assert said.status == 0, said.err
        assert "100 features" in said.out
        assert "mask: special,first" in said.out
        check = [] if format == "dashboard" else ["--check"]
        compared = call("--home", home, "--json", "import", format, tmp_path / format, "--sae", SAE, *check)
        assert compared.status == 0, compared.err
        assert compared.json["n_compared"] == compared.json["n_same_max"] > 20
    shown = call("--home", home, "import", "dashboard", tmp_path / "dashboard", "--sae", "tiny-qwen3/1-tiny")
    assert "The furthest apart" in shown.out
    again = call(
        "--home", home, "--json", "export", "delphi", "--sae", SAE, "--out", tmp_path / "delphi", "--features", "0-99"
    )
    assert again.json["n_examples"] is None, "it was there already"


def test_a_cache_is_taken_in_on_the_command_line(call: Call, home: Path, tmp_path: Path) -> None:
    own = tmp_path / "home"
    shutil.copytree(home, own)
    out = tmp_path / "cache"
    assert call("--home", own, "export", "delphi", "--sae", SAE, "--out", out, "--dataset", "songs").status == 0
    words = ("--home", own, "import", "delphi", out, "--sae", SAE, "--dataset", "verses")
    said = call(*words)
    assert said.status == 0, said.err
    assert "verses" in said.out
    assert "complete" in said.out
    again = call(*words, "--json")
    (run,) = again.json["data"]
    assert (run["dataset"], run["saes"], run["origin"][:7]) == ("verses@1", [SAE], "delphi ")
    assert "nothing" in call(*words).out, "nothing was written"
    twice = call(*words, "--dataset", "more")
    assert (twice.status, "give --dataset once" in twice.err) == (2, True)
    dry = call(*words, "--dry-run")
    assert (dry.status, "--dry-run is for labels" in dry.err) == (2, True)
    masked = call(*words[:-1], "unmasked", "--mask", "everything")
    assert (masked.status, "--mask 'everything': one of" in masked.err) == (2, True)


def test_features_are_written_for_graphs(call: Call, home: Path, tmp_path: Path) -> None:
    said = call("--home", home, "export", "features-json", "--sae", SAE, "--out", tmp_path / "g", "--features", "0-9")
    assert said.status == 0, said.err
    assert "10 features" in said.out
    assert list((tmp_path / "g" / "features").glob("*.json"))


def test_explanations_are_imported_on_the_command_line(call: Call, home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "explanations"
    folder.mkdir(parents=True)
    (folder / "layers.2_latent5.txt").write_text(json.dumps("words of songs"))
    said = call("--home", home, "--json", "import", "delphi", tmp_path / "run", "--sae", SAE, "--licence", "MIT")
    assert (said.status, said.json["created"]) == (0, 1)
    out = tmp_path / "np"
    assert call("--home", home, "export", "neuronpedia", "--sae", SAE, "--out", out, "--features", "5").status == 0
    again = call("--home", home, "import", "neuronpedia", out, "--sae", SAE)
    assert again.status == 0
    assert "1 left as they are here" in again.out, "their rows have no licence; ours keeps it"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("import", "neuronpedia", "no-such-folder"), "there is no folder no-such-folder"),
        (("import", "delphi", "."), "holds no explanations of Delphi"),
        (("import", "dashboard", "."), "holds no batch-*.json"),
        (("export", "dashboard", "--out", "x", "--features", "999"), "the SAE's features are 0 to 255"),
        (("export", "delphi", "--out", "x", "--context", "100"), "no whole number of windows"),
    ],
)
def test_refusals_are_one_line(
    call: Call, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said = call("--home", home, *words, "--sae", SAE)
    assert said.status == 2
    assert says in said.err
    assert not (tmp_path / "x").exists()
