"""Models, SAEs and datasets by their names on the hub: the client library's real requests, to a hub on this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from indexer.run import index
from indexer.saes.known import load_known
from schema.home import open_home
from schema.settings import Settings
from schema.tables import Dataset, Model, Sae
from tests.hub import Hub
from tests.indexer.test_run import config, everything
from tests.making import SONGS, TALES, write_jsonl

MODEL, RELEASE, DATASET = "lab/tiny-qwen3", "lab/SAE-Res-Tiny-W256-L0_6", "lab/verses"
SPARSIFY = "lab/sae-tiny-256"
SHELL = """
import contextlib, io, json, os, sys
from scopebase.cli import main

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for line in sys.stdin:
    said = []
    for arguments in json.loads(line):
        sys.argv, err = ["scopebase", *arguments], io.StringIO()
        try:
            with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
                main()
        except SystemExit as ended:
            said.append((int(ended.code or 0), err.getvalue()))
    print(json.dumps(said), file=answers, flush=True)
"""
CARD = """---
configs:
- config_name: songs
  data_files:
  - split: train
    path: songs/train.jsonl
  - split: test
    path: songs/test.jsonl
- config_name: tales
  data_files: tales.jsonl
---
"""


@pytest.fixture(scope="module")
def shelves(tmp_path_factory: pytest.TempPathFactory, model_dir: Path, release_dir: Path) -> Path:
    """What the hub holds."""
    root = tmp_path_factory.mktemp("hub")
    (root / "models" / "lab").mkdir(parents=True)
    (root / "models" / MODEL).symlink_to(model_dir)
    (root / "models" / RELEASE).symlink_to(release_dir)
    for hook in ("layers.1", "layers.1.mlp", "layers.2"):
        write_sparsify(root / "models" / SPARSIFY / hook, release_dir)
    verses = root / "datasets" / DATASET
    write_jsonl(verses / "songs" / "test.jsonl", SONGS)
    write_jsonl(verses / "songs" / "train.jsonl", SONGS[:5])
    write_jsonl(verses / "tales.jsonl", TALES)
    (verses / "README.md").write_text(CARD)
    return root


def write_sparsify(folder: Path, release_dir: Path) -> None:
    """The SAE of layer 1 as sparsify lays SAEs out."""
    tensors = torch.load(release_dir / "layer1.sae.pt", weights_only=True)
    folder.mkdir(parents=True)
    theirs = {"encoder.weight": tensors["W_enc"], "encoder.bias": tensors["b_enc"], "b_dec": tensors["b_dec"]}
    save_file({**theirs, "W_dec": tensors["W_dec"].T.contiguous()}, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"k": 6, "num_latents": 256, "d_in": 32}))


class Shell:
    """A process that runs commands, one list of them after the other: most of a command's time is its imports.

    Args:
        cache: where it keeps what it fetched from the hub.
    """

    def __init__(self, url: str, cache: Path, *, offline: bool = False) -> None:
        self.cache, self.port = cache, int(url.rpartition(":")[2])
        environ = {
            **os.environ,
            "HF_ENDPOINT": url,
            "HF_HOME": str(cache),
            "HF_HUB_OFFLINE": "1" if offline else "0",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        command = [sys.executable, "-c", SHELL]
        self._process = subprocess.Popen(
            command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def calls(self, calls: list[list[str]]) -> list[tuple[int, str]]:
        """Exit status and standard error of several commands."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(calls), file=self._process.stdin, flush=True)
        return [(status, err) for status, err in json.loads(self._process.stdout.readline())]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


@pytest.fixture(scope="module")
def shell(shelves: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    with Hub(shelves) as first:
        started = Shell(first.url, tmp_path_factory.mktemp("hub-cache"))
    yield started
    started.close()


@pytest.fixture
def hub(shelves: Path, shell: Shell) -> Iterator[Hub]:
    """At the address that the shell knows, with nothing of it in the shell's cache."""
    for kept in shell.cache.iterdir():
        shutil.rmtree(kept) if kept.is_dir() else kept.unlink()
    with Hub(shelves, shell.port) as running:
        yield running


@dataclass
class Desk:
    """A person's machine: a home, a shell with a cache of the hub, and the hub."""

    folder: Path
    hub: Hub
    shell: Shell

    @property
    def settings(self) -> Settings:
        return Settings.read(self.folder / "home", {})

    def index(self, *datasets: str, model: str = MODEL, sae: str = RELEASE) -> tuple[int, str]:
        """Exit status and standard error of `scopebase index`."""
        return self.shell.calls([self.call(*datasets, model=model, sae=sae)])[0]

    def call(self, *datasets: str, model: str = MODEL, sae: str = RELEASE) -> list[str]:
        """What stands on the command line."""
        named = [part for dataset in datasets for part in ("--dataset", dataset)]
        where = ["--home", str(self.settings.home), "index", "--set", "tiny", "--layers", "1"]
        return [*where, "--model", model, "--sae", sae, *named]


@pytest.fixture
def desk(tmp_path: Path, hub: Hub, shell: Shell) -> Desk:
    return Desk(tmp_path, hub, shell)


def test_model_and_saes_by_hub_id_give_the_rows_of_the_directories(
    desk: Desk, tmp_path: Path, index_args: dict[str, Any], data_dir: Path, release_dir: Path
) -> None:
    songs = f"songs={data_dir / 'songs.jsonl'}"
    status, err = desk.index(songs)
    assert status == 0, err
    here = Settings.read(tmp_path / "here", {})
    index(config(index_args, data_dir, layers="1", max_tokens=512), here)
    assert everything(desk.settings) == everything(here)
    assert desk.hub.fetched(RELEASE) == {"layer1.sae.pt", "config.json"}
    assert "model.safetensors" in desk.hub.fetched(MODEL)
    with open_home(desk.settings).database.reading() as session:
        model = session.query(Model).one()
        assert (model.name, model.source, model.revision) == ("tiny-qwen3", MODEL, desk.hub.commit(MODEL))

    desk.hub.asked.clear()
    assert desk.index(songs, model=f"{MODEL}@main", sae=f"{RELEASE}@{desk.hub.commit(RELEASE)}")[0] == 0
    assert not desk.hub.fetched(MODEL) | desk.hub.fetched(RELEASE), "all of it is in the cache"

    desk.hub.stop()  # the model comes from the cache; what a release holds, only the hub can tell
    assert desk.index(songs, sae=str(release_dir))[0] == 0
    offline = Shell(desk.hub.url, desk.shell.cache, offline=True)
    release, model = offline.calls([desk.call(songs), desk.call(songs, model="lab/nothing")])
    offline.close()
    check_refused(release, f"{RELEASE} cannot be fetched from the hub: .* give a local directory")
    check_refused(model, "model lab/nothing cannot be fetched from the hub: .*; check its name and the network")


def test_a_release_of_folders_by_hub_id(desk: Desk, index_args: dict[str, Any], data_dir: Path) -> None:
    """Only the folder of the layer is fetched, and the SAE is found again in the hub's cache, its settings beside it."""
    status, err = desk.index(f"songs={data_dir / 'songs.jsonl'}", model=index_args["model"], sae=SPARSIFY)
    assert status == 0, err
    assert desk.hub.fetched(SPARSIFY) == {"layers.1/sae.safetensors", "layers.1/cfg.json"}
    desk.hub.stop()
    with open_home(desk.settings).database.reading() as session:
        known = session.query(Sae).one()
        sae = load_known(known)
        assert (known.format, known.release, sae.k, sae.subtract_b_dec) == ("sparsify", "sae-tiny-256", 6, True)


def test_a_dataset_by_hub_id(desk: Desk, index_args: dict[str, Any], tmp_path: Path, data_dir: Path) -> None:
    """Config and split, or the config alone, in the place of a split."""
    sources = {"songs": f"hub:{DATASET}:songs:test", "tales": f"hub:{DATASET}:tales"}
    named = [f"{name}={source}" for name, source in sources.items()]
    status, err = desk.index(*named, model=index_args["model"], sae=index_args["sae"])
    assert status == 0, err
    here = Settings.read(tmp_path / "here", {})
    index(config(index_args, data_dir, names=("songs", "tales"), layers="1", max_tokens=512), here)
    assert everything(desk.settings) == everything(here)
    with open_home(desk.settings).database.reading() as session:
        found = {each.name: (each.source, each.n_samples) for each in session.query(Dataset)}
    assert found == {"songs": (sources["songs"], len(SONGS)), "tales": (sources["tales"], len(TALES))}


MISSING = [
    ({"model": "lab/nothing"}, "model lab/nothing cannot be fetched from the hub: RepositoryNotFoundError"),
    ({"model": f"{MODEL}@v9"}, f"model {MODEL}@v9 cannot be fetched from the hub: RevisionNotFoundError"),
    ({"sae": "lab/nothing"}, "lab/nothing cannot be fetched from the hub: RepositoryNotFoundError"),
    ({"dataset": f"d=hub:{DATASET}"}, f"{DATASET} has several configs; name one: .*, of songs, tales"),
    ({"dataset": f"d=hub:{DATASET}:sogns:test"}, f"{DATASET} has no config 'sogns'; its configs: songs, tales"),
    ({"dataset": f"d=hub:{DATASET}:songs:dev"}, "no config or split 'dev'; its splits: train, test"),
    ({"dataset": "d=hub:lab/nothing"}, "hub dataset lab/nothing cannot be loaded: DatasetNotFoundError"),
]


def test_what_the_hub_does_not_have_is_one_sentence(desk: Desk, index_args: dict[str, Any], data_dir: Path) -> None:
    local = {"model": index_args["model"], "sae": index_args["sae"], "dataset": f"songs={data_dir / 'songs.jsonl'}"}
    calls = [{**local, **changed} for changed, _ in MISSING]
    said = desk.shell.calls([desk.call(call["dataset"], model=call["model"], sae=call["sae"]) for call in calls])
    for one, (_, words) in zip(said, MISSING, strict=True):
        check_refused(one, words)
    assert not desk.settings.home.exists()


def test_a_hub_out_of_reach_is_one_sentence(desk: Desk, data_dir: Path) -> None:
    desk.hub.stop()
    said = desk.index(f"songs={data_dir / 'songs.jsonl'}")
    check_refused(said, f"model {MODEL} cannot be fetched from the hub: .*; check its name and the network")
    assert not desk.settings.home.exists()


def check_refused(said: tuple[int, str], words: str) -> None:
    """Exit status 2 and one line on standard error."""
    status, err = said
    assert (status, err.count("\n")) == (2, 1), err
    assert re.search(words, err), err
