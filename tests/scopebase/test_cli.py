"""The command line as scripts and people use it: output, exit status, one line of refusal."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import scopebase.cli
from indexer.run import index as run_index
from schema.settings import Settings
from tests.indexer.test_run import config, everything
from tests.lengths import LONG
from tests.making import make_model, make_release, sae_tensors, write_jsonl


@dataclass
class Said:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Call = Callable[..., Said]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs `scopebase ...` in this process, as its console script does."""
    from rich.console import Console

    def run(*args: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["scopebase", *map(str, args)])
        for name in ("OUT", "ERRORS"):
            console = Console(stderr=name == "ERRORS", width=100, highlight=False, markup=False)
            for module in [m for m in sys.modules.values() if getattr(m, "__name__", "").startswith("scopebase.cli")]:
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, console)
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            scopebase.cli.main()
        captured = capfd.readouterr()
        return Said(int(ended.value.code or 0), captured.out, captured.err)

    return run


def _option(name: str, value: object) -> list[object]:
    """`--name value`, once for each of a list; True is a flag."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, list):
        return [part for each in value for part in (flag, each)]
    return [flag] if value is True else [flag, value]


@pytest.fixture
def index(call: Call, index_args: dict[str, Any], data_dir: Path, tmp_path: Path) -> Call:
    """`scopebase index` with the small model; keyword arguments replace options."""

    def run(home: Path | None = None, **changes: object) -> Said:
        options: dict[str, object] = {
            "model": index_args["model"],
            "sae": index_args["sae"],
            "set": "tiny",
            "dataset": f"songs={data_dir / 'songs.jsonl'}",
        }
        given = [p for name, value in {**options, **changes}.items() for p in _option(name, value)]

        return call("--home", home or tmp_path / "home", "index", *given)

    return run


def test_index_then_ask(call: Call, index: Call, data_dir: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    first = index(layers="1,2")
    assert first.status == 0
    assert "songs" in first.out
    assert "complete" in first.out
    assert "Next: scopebase redundancy songs --sae tiny-qwen3/2-tiny" in first.out
    assert "tokens/s" in first.err
    again = index(layers="1,2")
    assert "was complete" in again.out
    assert "All was complete, nothing was written." in again.out
    more = index(layers="1-3")
    assert more.out.count("complete") == 2
    assert [line.split()[3] for line in more.out.splitlines() if line.startswith("songs")] == ["2", "1"], "SAEs"
    assert index(layers="1-3").out.count(" was complete") == 3, "both runs, and all together"
    other = index(layers="2", dataset=f"tales={data_dir / 'tales.jsonl'}", json=True)
    assert [run["dataset"] for run in other.json["data"]] == ["tales@1"]
    answer = call("--home", home, "overlap", "songs", "tales", "--sae", "tiny-qwen3/2-tiny", "--json")
    assert answer.json["datasets"][1]["name"] == "tales"
    listed = call("saes", "--home", home, "--json")
    assert [sae["id"] for sae in listed.json["data"]] == [f"tiny-qwen3/{layer}-tiny" for layer in (1, 2, 3)]
    both = index(layers="2", dataset=[f"{name}={data_dir / f'{name}.jsonl'}" for name in ("tales", "songs")])
    assert "Next: scopebase overlap tales songs --sae tiny-qwen3/2-tiny" in both.out, "an SAE that both have"


def test_logits_that_are_added_later_are_told(index: Call) -> None:
    assert "Logit effects" not in index(layers="1,2", logits="no").out
    later = index(layers="1,2")
    assert "was complete" in later.out
    assert "Logit effects of 2 SAEs were added." in later.out
    assert "nothing was written" not in later.out
    assert "All was complete, nothing was written." in index(layers="1,2").out


def test_tables_for_people(call: Call, indexed: Settings) -> None:
    sae = "tiny-qwen3/2-tiny"
    overlap = call("--home", indexed.home, "overlap", "problems", "songs", "tales", "--sae", sae)
    assert overlap.status == 0
    assert "Share of the row's footprint that the column covers" in overlap.out
    assert "expected of 45 random samples of each" in overlap.out
    assert "mask: special,first" in overlap.out
    diff = call(
        "--home",
        indexed.home,
        "diff",
        "tales",
        "songs",
        "--sae",
        sae,
        "--pool",
        "last",
        "--limit",
        "3",
        "--samples",
        "1",
    )
    assert "of them are not covered by songs" in diff.out
    assert "fires on" in diff.out
    assert "--cursor" in diff.out
    redundancy = call("--home", indexed.home, "redundancy", "problems", "songs", "--sae", sae)
    assert "N / |F|" in redundancy.out
    for command, word in (("models", "tiny-qwen3"), ("saes", sae), ("datasets", "problems"), ("runs", "finished")):
        assert word in call("--home", indexed.home, command).out


def test_firing_tokens_are_highlighted(call: Call, indexed: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm-256color")):
        monkeypatch.setenv(name, value)
    sae = ("--sae", "tiny-qwen3/2-tiny")
    shown = call("--home", indexed.home, "diff", "tales", "songs", *sae, "--pool", "last").out
    assert "\x1b[1;30;42m" in shown, "black on green"


def test_json_before_and_after_the_command(call: Call, indexed: Settings) -> None:
    before = call("--json", "--home", indexed.home, "models").json
    assert before == call("models", "--json", "--home", indexed.home).json
    assert before["next_cursor"] is None


def test_what_the_terminal_prints_cannot_be_steered_by_data() -> None:
    from scopebase.cli.console import shown

    assert shown("a\x1b[31mb\u202ec\x00\nd\te") == "a·[31mb·c· d e"


def _file(name: str, content: bytes | str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return f"d={folder / name}"

    return make


def _rows(*rows: dict[str, Any]) -> Callable[[Path], str]:
    return lambda folder: f"d={write_jsonl(folder / 'd.jsonl', rows)}"


@pytest.mark.skipif(not LONG, reason="make torture kills one of them; the suite shares work on Ray")
def test_workers_share_a_run(tmp_path: Path, index_args: dict[str, Any], data_dir: Path) -> None:
    """As a process of its own: the workers are made from what stands on the command line."""
    alone, shared = Settings.read(tmp_path / "alone", {}), Settings.read(tmp_path / "shared", {})
    run_index(
        config(index_args, data_dir, names=("tales", "songs"), layers="0,1", batch_tokens=64, max_tokens=512), alone
    )
    command = [sys.executable, "-m", "scopebase", "--home", str(shared.home), "index", "--layers", "0,1", "--json"]
    options = ["--batch-tokens", "64", "--workers", "2", "--set", "tiny"]
    datasets = [part for name in ("tales", "songs") for part in ("--dataset", f"{name}={data_dir / name}.jsonl")]
    model = ["--model", index_args["model"], "--sae", index_args["sae"]]
    done = subprocess.run([*command, *options, *datasets, *model], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [run["state"] for run in json.loads(done.stdout)["data"]] == ["finished", "finished"]
    assert everything(shared) == everything(alone)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--engine", "x"], "local or ray"),
        (["--address", "auto"], "--address is for --engine ray"),
        (["--layers-per-worker", "4"], "--layers-per-worker is for --engine ray"),
        (["--engine", "ray", "--workers", "5000"], "from 1 to 4096"),
        (["--workers", "x"], "a number, or auto"),
        (["--workers", "0"], "from 1 to 256"),
    ],
)
def test_engines_and_workers_that_cannot_be(call: Call, tmp_path: Path, options: list[str], words: str) -> None:
    said = call("--home", tmp_path / "h", "index", "--model", "m", "--sae", "s", "--dataset", "d=x.jsonl", *options)
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert words in said.err
    assert not (tmp_path / "h").exists()


def test_brackets_and_escapes_in_data_are_text(call: Call, tmp_path: Path, index_args: dict[str, Any]) -> None:
    rows = [{"text": "La la la, the cat sings!", "[/bold]": "[red]x", "\x1b[31m": 1}]
    data = write_jsonl(tmp_path / "[bold]d" / "odd.jsonl", rows)
    options = [part for name in ("model", "sae") for part in (f"--{name}", index_args[name])]
    home = ["--home", tmp_path / "home"]
    assert call(*home, "index", *options, "--layers", "1", "--dataset", f"odd={data}").status == 0
    said = call(*home, "datasets")
    assert said.status == 0
    assert "[/bold]" in said.out
    assert "\x1b[31m" not in said.out


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: "d=nowhere.jsonl", "there is no file or directory"),
        (lambda folder: "gsm8k.jsonl", "write NAME=SOURCE"),
        (lambda folder: "a b=x.jsonl", "dataset name 'a b'"),
        (_file("e.jsonl", ""), "has no row"),
        (_file("g.jsonl.gz", b"\x1f\x8b broken"), "is a broken gzip file"),
        (_file("j.jsonl", '{"text": "ok", "id": "1"}\n{oops\n'), "line 2 is not JSON"),
        (_rows({"body": "x"}), "has no field 'text'"),
        (_rows({"text": 5}), "is a number, not text"),
        (_rows({"text": "  \n "}), "only white space"),
        (_rows({"text": "a" * 1_000_000}), "1,000,000 characters"),
        (_rows({"text": "a\x00b"}), "NUL"),
        (_rows({"text": "a\udfffb"}), "lone surrogate"),
        (_rows({"id": "x", "text": "a"}, {"id": "x", "text": "b"}), "id 'x' comes twice"),
    ],
)
def test_bad_datasets_exit_with_2_one_line_and_no_home(
    index: Call, tmp_path: Path, make: Callable[[Path], str], words: str
) -> None:
    said = index(dataset=make(tmp_path))
    assert said.status == 2
    assert said.err.count("\n") == 1
    assert said.err.startswith("scopebase: ")
    assert words in said.err
    assert said.out == ""
    assert not (tmp_path / "home").exists()


def _saes(tmp_path: Path, **change: Any) -> Path:
    folder = tmp_path / "bad-L0_6"
    folder.mkdir()
    tensors = sae_tensors(0, 32, 256)
    torch.save({**tensors, **{name: make(tensors[name]) for name, make in change.items()}}, folder / "layer0.sae.pt")
    return folder


def _coded(tmp_path: Path) -> Path:
    from tests.indexer.test_saes import Bomb

    folder = tmp_path / "bad-L0_6"
    folder.mkdir()
    torch.save({"W_enc": Bomb(tmp_path / "trace")}, folder / "layer0.sae.pt")
    return folder


def _nan(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone().index_fill_(0, torch.tensor([3]), float("nan"))


@pytest.mark.parametrize(
    ("option", "make", "words"),
    [
        ("sae", _coded, "holds code"),
        ("sae", lambda t: _saes(t, W_enc=lambda w: w.T.contiguous()), "it is transposed"),
        ("sae", lambda t: _saes(t, W_enc=_nan), "W_enc holds NaN"),
        ("sae", lambda t: make_release(t / "wide-L0_4", 1, 48, 96, 4), "width 48, model"),
        (
            "sae",
            lambda t: make_release(t / "k-L0_300", 1, 32, 256, 300),
            "k = 300, but it must lie between 1 and d_sae = 256",
        ),
        ("sae", lambda t: "no/such/release", "cannot be fetched from the hub"),
        ("layers", lambda t: "4", "has no SAE of layer 4; it has 0-3"),
        ("model", lambda t: "./nowhere", "there is no model directory"),
        ("max_tokens", lambda t: 0, "--max-tokens 0"),
        ("mask", lambda t: "all", "--mask 'all'"),
        ("device", lambda t: "abacus", "--device 'abacus' cannot be used"),
    ],
)
def test_bad_models_and_saes_exit_with_2(
    index: Call, tmp_path: Path, option: str, make: Callable[[Path], Any], words: str
) -> None:
    said = index(**{option: make(tmp_path)})
    assert (said.status, said.err.count("\n")) == (2, 1), said.err
    assert words in said.err
    assert not (tmp_path / "home").exists()
    assert not (tmp_path / "trace").exists()


def test_a_model_without_a_tokenizer(index: Call, tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    for file in model.glob("tokenizer*"):
        file.unlink()
    said = index(model=model)
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert "has no tokenizer" in said.err


def test_bad_input_leaves_an_existing_home_as_it_was(index: Call, tmp_path: Path) -> None:
    assert index(layers="0").status == 0
    home = tmp_path / "home"
    stores = [
        path
        for path in home.rglob("*")
        if path.is_file() and path.suffix != ".db-shm" and not path.name.endswith("-wal")
    ]
    before = {path: path.read_bytes() for path in stores}
    assert index(dataset=_rows({"text": 5})(tmp_path)).status == 2
    assert index(sae=_saes(tmp_path, W_enc=_nan)).status == 2
    assert {path: path.read_bytes() for path in stores} == before


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("overlap", "problem", "songs", "--sae", "tiny-qwen3/2-tiny"), "did you mean problems?"),
        (("overlap", "problems", "songs", "--sae", "tiny-qwen3/7-tiny"), "did you mean tiny-qwen3/"),
        (("overlap", "problems", "songs"), "name an SAE with --sae"),
        (("overlap", "problems", "songs", "--pool", "mean"), "not one of 'any', 'last'"),
        (("overlap",), "Missing argument"),
        (("diff", "problems", "songs", "--sae", "tiny-qwen3/2-tiny", "--limit", "0"), "--limit"),
        (("redundancy", "songs", "--sae", "tiny-qwen3/2-tiny", "--as-of", "77"), "as_of=77"),
        (("frobnicate",), "No such command"),
        (("overlap", "--nope"), "No such option"),
        (("serve", "--host", "0.0.0.0"), "add --no-auth if that is meant"),
    ],
)
def test_wrong_questions_exit_with_2_and_one_line(
    call: Call, indexed: Settings, args: tuple[str, ...], words: str
) -> None:
    said = call("--home", indexed.home, *args)
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1), said.err
    assert words in said.err


def test_a_home_that_is_not_there(call: Call, tmp_path: Path) -> None:
    said = call("--home", tmp_path / "none", "runs")
    assert said.status == 2
    assert "there is no Scopebase home at" in said.err


def test_the_schema_is_made_and_checked(call: Call, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert call("db", "check", "--home", home).status == 2
    assert "made" in call("db", "upgrade", "--home", home).out
    assert "up to date" in call("db", "upgrade", "--home", home).out
    assert call("--json", "db", "check", "--home", home).json["state"] == "up to date"
    assert "up to date" in call("db", "check", "--home", home).out


def test_dry_run(index: Call, tmp_path: Path, call: Call, index_args: dict[str, Any], data_dir: Path) -> None:
    args = (
        "--home",
        tmp_path / "home",
        "index",
        "--model",
        index_args["model"],
        "--sae",
        index_args["sae"],
        "--dataset",
        f"songs={data_dir / 'songs.jsonl'}",
    )
    said = call(*args, "--dry-run")
    assert said.status == 0
    assert "tokens through 4 SAEs give about" in said.out
    assert "Nothing was written" in said.out
    told = call(*args, "--dry-run", "--json").json
    assert told["n_saes"] == 4
    assert not (tmp_path / "home").exists()


def test_bad_rows_can_be_skipped_and_are_reported(index: Call, tmp_path: Path) -> None:
    rows = [{"text": "the moon and the sun"}, {"text": 5}, {"text": "a river"}]
    said = index(dataset=f"d={write_jsonl(tmp_path / 'd.jsonl', rows)}", bad_rows="skip", layers="0")
    assert said.status == 0
    assert "d: 1 rows left out, for instance: dataset d, d.jsonl line 2" in said.err
    assert "songs" not in said.out


def test_version_and_help(call: Call) -> None:
    assert call("--version").out.startswith("scopebase ")
    assert "overlap" in call("--help").out
    run = subprocess.run([sys.executable, "-m", "scopebase", "--help"], capture_output=True, text=True)
    assert run.returncode == 0
