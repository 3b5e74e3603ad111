"""Damaged and hostile files: a short form of `python -m tests.torture.fuzz`, and each thing that it has found."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schema.backup import restore
from schema.errors import HomeError, InputError
from schema.home import open_home
from schema.settings import Settings
from schema.store import Store
from tests.torture.fuzz import Hang, fuzz, in_time
from tests.torture.mutations import gzip_bomb, hostile
from tests.torture.seeds import Seed, make_seeds

DEEP = b"[" * 100_000
Damage = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Seed]:
    return {(seed.kind, seed.name): seed for seed in make_seeds(tmp_path_factory.mktemp("seeds"))}


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    report = fuzz(tmp_path, seed=5, n=250, kinds=("SAE", "dataset", "evaluation", "vector", "cache", "label pack"))
    assert report.faults == []
    outcomes = {name for counted in report.outcomes.values() for name in counted}
    assert outcomes == {"refused", "read as it was", "read as something else"}
    assert set(report.outcomes) == {"SAE", "dataset", "evaluation", "vector", "cache", "label pack"}


def refused(seed: Seed, file: str, damage: Damage, tmp_path: Path) -> str:
    """The sentence with which a reader refuses a copy of a seed of which one file is damaged."""
    root = tmp_path.joinpath(*seed.root.parts[-4:])  # some formats are told by the folders above
    root.parent.mkdir(parents=True)
    (shutil.copytree if seed.root.is_dir() else shutil.copyfile)(seed.root, root)
    victim = root if root.is_file() else next(root.rglob(file))
    victim.write_bytes(damage(victim.read_bytes()))
    with pytest.raises(InputError) as error:
        seed.read(root)
    assert "\n" not in str(error.value).strip()
    assert len(str(error.value)) < 600
    return str(error.value)


def in_directory(offset: int, value: bytes) -> Damage:
    """Other bytes in the last entry of a zip's directory."""

    def change(data: bytes) -> bytes:
        at = data.rfind(b"PK\x01\x02") + offset
        return data[:at] + value + data[at + len(value) :]

    return change


def odd_method(data: bytes) -> bytes:
    """A zip whose members are packed in a way that nobody knows."""
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = data.find(signature)
        while at >= 0:
            data = data[: at + offset] + struct.pack("<H", 77) + data[at + offset + 2 :]
            at = data.find(signature, at + 4)
    return data


def locked(data: bytes) -> bytes:
    """A zip that says that it is encrypted."""
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(signature)
        while at >= 0:
            data = data[: at + offset] + struct.pack("<H", 1) + data[at + offset + 2 :]
            at = data.find(signature, at + 4)
    return data


def broken_inside(data: bytes) -> bytes:
    """A gzip file with another block type behind its header."""
    return data[:10] + b"\xff" * 8 + data[18:]


def no_utf8(_data: bytes) -> bytes:
    """A Parquet file with text that is none."""
    sink = pa.BufferOutputStream()
    texts = pa.StringArray.from_buffers(1, pa.py_buffer(struct.pack("<ii", 0, 2)), pa.py_buffer(b"\xff\xfe"))
    pq.write_table(pa.table({"text": texts, "feature": texts}), sink)
    return bytes(sink.getvalue())


def odd_features(data: bytes) -> bytes:
    """A list of what an export holds whose number of features is none."""
    return json.dumps({**json.loads(data), "n_features": {"a": 1}}).encode()


FOUND = [
    (("SAE", "qwen-scope"), "*.pt", in_directory(46, b"\xff\xfe\xfd"), "cut short or damaged"),
    (("SAE", "gemma"), "*.npz", odd_method, "is no numpy archive"),
    (("SAE", "AutoEncoder"), "config.json", lambda _: DEEP, "no JSON"),
    (("SAE", "qwen-scope"), "config.json", lambda _: DEEP, "not JSON"),
    (("SAE", "sparsify"), "cfg.json", lambda d: d.replace(b'"expansion_factor": 4', b'"expansion_factor": "four"'), "whole number"),
    (("evaluation", "inspect.eval"), "", odd_method, "compression method"),
    (("evaluation", "inspect.eval"), "", locked, "encrypted"),
    (("evaluation", "zstd.eval"), "", in_directory(42, b"\xff\xff\xff\x7f"), "expected lm-eval"),
    (("dataset", ".parquet"), "", no_utf8, "no readable Parquet"),
    (("dataset", ".jsonl.gz"), "", lambda d: gzip_bomb(d, random.Random(1)), "longer than 64 MiB"),
    (("dataset", ".csv.gz"), "", lambda d: gzip_bomb(d, random.Random(1)), "longer than 64 million"),
    (("label pack", "parquet"), "", no_utf8, "no Parquet file that can be read"),
    (("cache", "scopebase, taken in"), "samples.jsonl", lambda _: DEEP, "does not say where the samples"),
    (("cache", "compared"), "*.safetensors", lambda d: d.replace(b'"shape":[', b'"shape":[-'), "no safetensors"),
    (("other tools", "neuronpedia"), "*.gz", broken_inside, "cannot be read"),
    (("other tools", "neuronpedia"), "*.gz", lambda d: gzip_bomb(d, random.Random(1)), "longer than 32 MiB"),
    (("other tools", "delphi labels"), "*17.txt", lambda _: DEEP, "cannot be read as JSON"),
    (("other tools", "delphi labels"), "explanations/*17.txt", lambda _: b'"words of song\\ud800s"', "half of a character"),
    (("cache", "scopebase, taken in"), "scopebase.json", odd_features, "holds {'a': 1} chosen"),
    (("other tools", "dashboard"), "*.json", lambda _: DEEP, "no batch of SAEDashboard"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("which", "file", "damage", "words"), FOUND, ids=[f"{a[1]} {i}" for i, (a, *_) in enumerate(FOUND)]
)
def test_what_the_fuzzer_found(
    seeds: dict[tuple[str, str], Seed], tmp_path: Path, which: tuple[str, str], file: str, damage: Damage, words: str
) -> None:
    said = refused(seeds[which], file, damage, tmp_path)
    assert words in said, said


def signed(backup: Path, to: Path, change: Callable[[Path], None]) -> Path:
    """A copy of a backup that was changed, and whose hashes say that all is well."""
    shutil.copytree(backup, to)
    change(to)
    said = json.loads((to / "backup.json").read_text())
    said["files"] = (
        said["files"]
        if isinstance(said["files"], int)
        else {
            path: hashlib.sha256((to / path).read_bytes()).hexdigest() if (to / path).is_file() else sha256
            for path, sha256 in said["files"].items()
        }
    )
    (to / "backup.json").write_text(json.dumps(said))
    return to


def listing(change: Callable[[dict[str, object]], None]) -> Callable[[Path], None]:
    """Changes what `backup.json` says."""

    def changed(folder: Path) -> None:
        said = json.loads((folder / "backup.json").read_text())
        change(said)
        (folder / "backup.json").write_text(json.dumps(said))

    return changed


def rewritten(change: Callable[[bytes], bytes], packed: bool = False) -> Callable[[Path], None]:
    """Changes the dump of the database, or with `packed` the file that it is packed in."""

    def changed(folder: Path) -> None:
        path = folder / "database.jsonl.gz"
        whole = path.read_bytes()
        path.write_bytes(change(whole) if packed else gzip.compress(change(gzip.decompress(whole))))

    return changed


def outside(folder: Path) -> None:
    """A file beside the backup, and a list that has it copied beside the store."""
    (folder.parent / "x").write_text("planted")
    listing(lambda said: said["files"].update({"store/../../x": "0"}))(folder)  # type: ignore[attr-defined]


BACKUPS = {
    "a path out of the store": (outside, "cannot be one of a store"),
    "an absolute path": (listing(lambda s: s["files"].update({"/etc/passwd": "0"})), "cannot be one of a store"),  # type: ignore[attr-defined]
    "a list that is none": (listing(lambda said: said.update(files=3)), "no readable backup.json"),
    "a revision that is none": (listing(lambda said: said.update(revision="0000")), "made by a newer Scopebase"),
    "a revision of another kind": (listing(lambda said: said.update(revision=None)), "no readable backup.json"),
    "a dump that is cut short": (rewritten(lambda data: data[:-9], packed=True), "is damaged"),
    "a dump with a broken block": (
        rewritten(lambda d: d[: len(d) // 2] + b"\xff" * 8 + d[len(d) // 2 + 8 :], packed=True),
        "is damaged",
    ),
    "a row that is no JSON": (rewritten(lambda data: b"{" + data), "is damaged"),
    "a row that is missing": (rewritten(lambda data: data[data.index(b"\n") + 1 :]), "has not the rows"),
    "a column that is none": (rewritten(lambda data: data.replace(b'"value"', b'"worth"')), "does not fit schema"),
    "a table that is none": (rewritten(lambda data: data.replace(b'["settings"', b'["sittings"')), "has not the rows"),
}


@pytest.mark.parametrize("name", BACKUPS)
def test_a_backup_that_lies_is_refused(seeds: dict[tuple[str, str], Seed], tmp_path: Path, name: str) -> None:
    change, words = BACKUPS[name]
    folder = signed(seeds["backup", "whole"].root, tmp_path / "backup", change)
    home = Settings.read(tmp_path / "deep" / "home", {})
    with pytest.raises(InputError, match=words):
        restore(folder, home)
    assert not [path for path in tmp_path.rglob("x") if path != tmp_path / "x"]
    restore(seeds["backup", "whole"].root, home)
    open_home(home).close()


def test_a_store_whose_manifest_is_cut_off_is_said(seeds: dict[tuple[str, str], Seed], tmp_path: Path) -> None:
    home = Settings.read(tmp_path / "home", {})
    restore(seeds["backup", "whole"].root, home)
    for path in (home.home / "store" / "samples.lance" / "_versions").iterdir():
        path.write_bytes(path.read_bytes()[:9])
    with pytest.raises(HomeError, match="cannot be opened .* restore it from a backup"):
        open_home(home)
    with pytest.raises(HomeError, match="cannot be opened"):
        Store(home.store_url).identity()


def test_the_watch_over_readers_sees_what_it_should(tmp_path: Path) -> None:
    """A control: the hostile files do what they are there for where somebody unpickles them, and a hang is noticed."""
    import pickle
    import time

    mark = tmp_path / "mark"
    for name, data in hostile(mark).items():
        if name.startswith("pickle"):
            pickle.loads(data)
            assert mark.exists(), name
            mark.unlink()
    from tests.torture import fuzz as fuzzing

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Hang):
        patch.setattr(fuzzing, "SECONDS", 1)
        with in_time():
            time.sleep(5)
