"""`scopebase vector ...` and the client's calls, as scripts and people use them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from api.app import create_app
from schema.errors import Conflict, InputError, NotFound
from schema.home import open_home
from schema.settings import Settings
from scopebase import Client
from tests.making import SONGS, TALES
from tests.scopebase.test_cli import Call, call  # noqa: F401
from tests.scopebase.test_client import serving

SAE = "tiny-qwen3/2-tiny"


@pytest.fixture
def vector(call: Call, indexed: Settings, tmp_path: Path) -> Call:  # noqa: F811
    """`scopebase --home COPY vector ...`"""
    shutil.copytree(indexed.home, tmp_path / "home")
    return lambda *args: call("--home", tmp_path / "home", "vector", *args)


def test_from_a_feature_to_a_file_and_back(vector: Call, tmp_path: Path) -> None:
    shown = vector("show", f"{SAE}/7", "--neighbours", "2")
    assert shown.status == 0, shown.err
    for part in ("decoder column after block 2", "Strengths to begin with", "residual_norm", "Nearest directions"):
        assert part in shown.out
    saved = vector(
        "save", "calm", "--feature", f"{SAE}/7:-2", "--feature", "tiny-qwen3/1-tiny/3", "--description", "quiet",
        "--author", "ann", "--json",
    ).json  # fmt: skip
    assert (saved["id"], saved["layers"], saved["author"]) == ("calm@1", [1, 2], "ann")
    column = np.array(vector("show", f"{SAE}/7", "--json").json["vector"], np.float32)
    np.testing.assert_array_equal(np.array(saved["vectors"][1]["vector"], np.float32), -2 * column)
    assert "sum of components" in vector("show", "calm").out
    for format in ("json", "safetensors", "gguf", "easysteer"):
        file = tmp_path / f"calm.{format}"
        assert vector("export", "calm", "--format", format, "--to", str(file)).status == 0
        back = vector("import", str(file), "--name", "back", "--json").json
        assert (back["sha256"], back["provenance"]["file"]) == (saved["sha256"], file.name)
    assert vector("list", "back").out.count("import") == 4
    assert "calm@1" in vector("list", "--text", "quiet").out
    assert "deleted calm@1" in vector("delete", "calm").out
    gone = vector("show", "calm")
    assert (gone.status, gone.err.count("\n")) == (2, 1)
    assert "can still be read as calm@1" in gone.err


def test_differences_of_means(vector: Call, tmp_path: Path) -> None:
    index = vector("save", "sung", "--means", "songs", "tales", "--sae", SAE, "--top", "9")
    assert index.status == 0, index.err
    assert "difference of means, decoded from the index" in index.out
    read = vector("save", "sung", "--means", "songs", "tales", "--layers", "0,2-3", "--n", "6", "--seed", "1", "--json")
    assert (read.json["id"], read.json["layers"]) == ("sung@2", [0, 2, 3])
    assert [side["n_texts"] for side in read.json["provenance"]["sides"]] == [6, 6]
    texts = {"a": [row["text"] for row in SONGS[:3]], "b": [row["text"] for row in TALES[:3]], "layers": [1]}
    (tmp_path / "request.json").write_text(json.dumps({"residual_means": texts, "normalise": "result"}))
    asked = vector("save", "given", "--request", str(tmp_path / "request.json"))
    assert asked.status == 0, asked.err
    assert "difference of mean residuals" in asked.out
    assert vector("show", "given", "--json").json["norms"] == pytest.approx([1.0])


def test_a_control_vector_of_layer_0_is_warned_of(vector: Call) -> None:
    vector("save", "low", "--feature", "tiny-qwen3/0-tiny/1")
    assert (
        "llama.cpp refuses control vectors of layer 0"
        in vector("export", "low", "--format", "gguf", "--to", "/dev/null").err
    )


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["save", "x"], "give one of components, decoded_means and residual_means"),
        (["save", "x", "--feature", f"{SAE}/7:strong"], "what follows ':' is its weight, a number"),
        (["save", "a/b", "--feature", f"{SAE}/7"], "name: "),
        (["save", "x", "--sae", SAE, "--feature", f"{SAE}/7"], "--sae belongs to --means A B"),
        (["save", "x", "--layers", "1"], "--layers belongs to --means A B"),
        (["save", "x", "--means", "songs", "tales", "--top", "3", "--layers", "1"], "--top is for the index"),
        (["save", "x", "--means", "songs", "tales", "--sae", SAE, "--layers", "1"], "give one of them"),
        (["save", "x", "--request", "nowhere.json"], "nowhere.json cannot be read"),
        (["import", "nowhere.gguf"], "nowhere.gguf cannot be read"),
        (["export", f"{SAE}/7", "--to", "/nowhere/x"], "/nowhere/x cannot be written"),
        (["show", f"{SAE}/999"], "has features 0 to 255, and none 999"),
        (["list", "--model", "x"], "no model named 'x'"),
        (["save", "x", "--feature", f"{SAE}/7", "--based-on", "1"], "vector x is not there, you saw 1"),
    ],
)
def test_refusals_are_one_line(vector: Call, args: list[str], sentence: str) -> None:
    said = vector(*args)
    assert (said.status, sentence in said.err, said.err.count("\n")) == (2, True, 1), said.err


def test_the_client_asks_every_route(indexed: Settings, tmp_path: Path) -> None:
    shutil.copytree(indexed.home, tmp_path / "home")
    app = create_app(open_home(Settings.read(tmp_path / "home", {})))
    with serving(app) as url, Client(url) as client:
        feature = client.feature_vector(f"{SAE}/7", neighbours=1)
        assert (feature.layer, len(feature.neighbours)) == (2, 1)
        saved = client.save_vector("calm", [{"feature": f"{SAE}/7"}], description="quiet")
        assert client.vector("calm@1") == saved
        client.save_vector("sung", decoded_means={"a": "songs", "b": "tales", "saes": [SAE]})
        assert [item.id for item in client.vectors()] == ["calm@1", "sung@1"]
        assert [item.id for item in client.vectors(made="decoded_means")] == ["sung@1"]
        file = client.export_vector("calm", tmp_path / "calm.gguf", "gguf")
        assert client.import_vector(file, "again", layer_shift=1, based_on=0).layers == [3]
        with pytest.raises(Conflict, match="vector again is at version 1, you saw 0"):
            client.import_vector(file, "again", layer_shift=1, based_on=0)
        assert client.export_vector(f"{SAE}/7", tmp_path / "f.safetensors").stat().st_size > 128
        assert [item.id for item in client.delete_vector("calm").data] == ["calm@1"]
        with pytest.raises(NotFound, match="was deleted"):
            client.vector("calm")
        (tmp_path / "bad").write_bytes(b"nothing")
        with pytest.raises(InputError, match="neither safetensors, GGUF nor JSON"):
            client.import_vector(tmp_path / "bad", "bad")
