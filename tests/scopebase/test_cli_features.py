"""`scopebase feature | match | inspect | sample | contrast` as people and scripts use them."""

from __future__ import annotations

from pathlib import Path

import pytest

from schema.settings import Settings
from tests.making import TALES
from tests.scopebase.test_cli import Call, call  # noqa: F401 - a fixture

SAE = "tiny-qwen3/2-tiny"


def test_a_dossier_in_the_terminal(call: Call, indexed: Settings) -> None:  # noqa: F811
    said = call("--home", indexed.home, "feature", f"{SAE}/0", "--json")
    whole = said.json
    shown = call("--home", indexed.home, "feature", f"{SAE}/0")
    assert shown.status == 0
    assert f"fires in {whole['samples']} of 155 samples" in shown.out
    for heading in ("Activations", "Datasets", "Output", "Strongest samples", "Nearest directions", "Rivals"):
        assert heading in shown.out
    assert whole["shown"]["top"][0]["id"] in shown.out
    assert "█" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 100
    one = call("--home", indexed.home, "feature", f"{SAE}/0", "--dataset", "songs", "--json")
    assert one.json["provenance"]["runs"] == {"songs": 2}
    gone = call("--home", indexed.home, "feature", f"{SAE}/999")
    assert (gone.status, gone.err) == (2, "scopebase: SAE tiny-qwen3/2-tiny has features 0 to 255, and none 999\n")


def test_match_in_the_terminal(call: Call, indexed: Settings) -> None:  # noqa: F811
    shown = call("--home", indexed.home, "match", SAE, "tiny-qwen3/1-tiny", "--limit", "3")
    assert shown.status == 0
    assert "mutual best" in shown.out
    assert "256 in all; the next page: --cursor" in shown.out
    whole = call("--home", indexed.home, "match", SAE, "tiny-qwen3/1-tiny", "--json").json
    assert f"{whole['a']['mean_max_cosine']:.3f}" in shown.out


def test_a_text_in_the_terminal(call: Call, indexed: Settings) -> None:  # noqa: F811
    """The model is found where it was indexed from; a stored sample of the same text fires the same."""
    text = TALES[4]["text"]
    new = call("--home", indexed.home, "inspect", "--sae", SAE, text, "--json").json
    stored = call("--home", indexed.home, "sample", "tales", "t4", "--sae", SAE, "--json").json
    assert [f["index"] for f in new["saes"][0]["features"][:5]] == [
        f["index"] for f in stored["saes"][0]["features"][:5]
    ]
    shown = call("--home", indexed.home, "inspect", "--sae", SAE, "a cat sleeps")
    assert shown.status == 0
    assert "masked" in shown.out
    assert "loading tiny-qwen3 (float32, cpu)" in shown.err
    assert "Strongest of the" in call("--home", indexed.home, "sample", "tales", "t4", "--sae", SAE).out
    ids = call("--home", indexed.home, "inspect", "--sae", SAE, "--token-ids", "5,9", "--json").json
    assert [token["id"] for token in ids["tokens"]] == [5, 9]


def test_contrast_in_the_terminal(call: Call, indexed: Settings, tmp_path: Path) -> None:  # noqa: F811
    lines = tmp_path / "moon.txt"
    lines.write_text("the moon sings\nthe moon sleeps\n\n")
    shown = call(
        "--home", indexed.home, "contrast", "--sae", SAE, "--positive", f"@{lines}", "--negative", "a red pear"
    )
    assert shown.status == 0
    assert "2 positive and 1 negative texts" in shown.out
    assert "too few texts" in shown.out
    stored = call("--home", indexed.home, "contrast", "--sae", SAE, "--datasets", "songs,tales", "--json")
    assert stored.json["n"] == [45, 50]
    assert stored.err == ""


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["inspect", "--sae", SAE], "give either text or token_ids"),
        (["inspect", "--sae", SAE, "--token-ids", "1,b"], "--token-ids '1,b': whole numbers with commas between"),
        (["inspect", "--sae", SAE, "a", "--mask", "last"], "mask: Input should be"),
        (["contrast", "--sae", SAE], "positive"),
        (["contrast", "--sae", SAE, "--datasets", "songs"], "--datasets 'songs': write POSITIVE,NEGATIVE"),
        (["contrast", "--sae", SAE, "--positive", "@nowhere.txt", "--negative", "a"], "nowhere.txt cannot be read"),
        (["match", SAE, SAE], "against itself says nothing"),
    ],
)
def test_refusals_are_one_line(call: Call, indexed: Settings, args: list[str], words: str) -> None:  # noqa: F811
    said = call("--home", indexed.home, *args)
    assert said.status == 2
    assert words in said.err
    assert len(said.err.splitlines()) == 1
