"""Valid files for every reader, small and made from seeds, and how each is read. They are what the fuzzer damages."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

import scopebase  # noqa: F401
from api.services.evaluations.files import read_file
from api.services.exchange.dashboard import read_dashboard
from api.services.exchange.delphi_labels import read_delphi_labels
from api.services.exchange.delphi_reading import cache_of, read_delphi
from api.services.exchange.incoming import Taking, take_in
from api.services.labels.book import create
from api.services.labels.export import Filter, export
from api.services.labels.importing import import_labels
from api.services.labels.talk import vote
from api.services.library import Library
from api.services.neuronpedia.reading import read_explanations, read_features, source_folder
from api.services.steering.files import read, write
from api.services.steering.files.lm_eval import COLUMNS, read_lm_eval
from api.services.steering.files.vector_file import VectorFile
from indexer.caches.delphi import Cache
from indexer.readers import READERS
from indexer.saes import open_release
from indexer.survey import CheckedRows, DatasetSpec, ShardSize, survey
from schema.backup import back_up, restore
from schema.home import open_home
from schema.lookup import find_sae
from schema.recipe import Recipe
from schema.settings import Settings
from schema.tables import Sae
from schema.wire.labels import NewLabel
from tests.api.evaluations.test_score_files import HEADER, inspect_sample, lm_eval, zstd_zip
from tests.api.exchange.test_exchange import delphi_result
from tests.indexer.test_sae_formats import FAMILIES
from tests.indexer.test_saes import lens
from tests.laboratory import SAES, make_lab
from tests.making import PROBLEMS, SONGS, make_release, sae_tensors, write_jsonl


@dataclass(frozen=True)
class Seed:
    """A valid file or folder of one reader."""

    kind: str
    """The reader: `SAE`, `dataset`, `label pack`, ..."""
    name: str
    root: Path
    """What the reader is given: a folder, or the file itself."""
    read: Callable[[Path], Any]
    """Reads it and returns what is in it, as something that can be compared."""
    share: float = 1.0
    """Slow readers take fewer mutations."""
    names: str = "*"
    """Which of a folder's files are damaged."""

    def files(self) -> list[Path]:
        """What can be damaged, the larger ones more than once: in weights there is more to go wrong than in settings."""
        found = (
            [self.root]
            if self.root.is_file()
            else sorted(path for path in self.root.rglob(self.names) if path.is_file())
        )
        return [path for path in found for _ in range(1 + (path.stat().st_size > 2000))]


def make_seeds(folder: Path, kinds: tuple[str, ...] = ()) -> list[Seed]:
    """All seeds, or those of some kinds."""
    made = {"SAE": saes, "dataset": datasets, "label pack": packs, "evaluation": evaluations, "vector": vectors,
            "cache": caches, "other tools": foreign, "backup": backups}  # fmt: skip
    return [
        seed
        for kind, make in made.items()
        if not kinds or kind in kinds
        for seed in make(folder / kind.replace(" ", "-"))
    ]


def _sae(root: Path) -> Any:
    release = open_release(str(root))
    found = [release.load(layer) for layer in release.choose("all")]
    return [(sae.layer, sae.k, sae.activation, sae.sha256()) for sae in found]


def saes(folder: Path) -> Iterator[Seed]:
    """Every format, and each class of the formats that have several."""
    for number, (name, family) in enumerate(FAMILIES.items()):
        yield Seed("SAE", name, family.write(folder / str(number)), _sae)
    yield Seed("SAE", "qwen-scope", make_release(folder / "SAE-Res-Tiny-W64-L0_3", 1, 16, 64, 3), _sae)
    tensors = sae_tensors(3, 8, 32)
    lens(folder / "lens", tensors, architecture="topk", k=4, apply_b_dec_to_input=False)
    yield Seed("SAE", "saelens topk", folder / "lens", _sae)
    gate = {name: tensors["b_enc"].clone() for name in ("r_mag", "b_gate", "b_mag")}
    lens(folder / "gated", {**tensors, **gate}, architecture="gated")
    yield Seed("SAE", "saelens gated", folder / "gated", _sae)


def _dataset(path: Path) -> Any:
    spec = DatasetSpec("d", str(path), Recipe(max_tokens=64))
    found = survey(spec, ShardSize(16, 4096))
    skipping = CheckedRows(DatasetSpec("d", str(path), Recipe(max_tokens=64), skip_bad=True))
    return found.sha256, found.n_samples, sum(1 for _ in skipping)


def datasets(folder: Path) -> Iterator[Seed]:
    """Every file ending that is read."""
    rows = [{**row, "tags": [{"b": i}], "x": 0.5} for i, row in enumerate(SONGS[:12])]
    plain = write_jsonl(folder / "songs.jsonl", rows).read_bytes()
    table = io.StringIO()
    writer = csv.DictWriter(table, ["id", "text", "level"])
    writer.writeheader()
    writer.writerows({name: row[name] for name in ("id", "text", "level")} for row in PROBLEMS[:12])
    pq.write_table(pa.Table.from_pylist(rows), folder / "songs.parquet")
    made = {
        ".jsonl": plain,
        ".jsonl.gz": gzip.compress(plain),
        ".csv": table.getvalue().encode(),
        ".csv.gz": gzip.compress(table.getvalue().encode()),
    }
    for ending in READERS:
        path = folder / f"songs{ending}"
        if ending in made:
            path.write_bytes(made[ending])
        yield Seed("dataset", ending, path, _dataset)


def packs(folder: Path) -> Iterator[Seed]:
    """Packs of labels in each form, with votes, and batches of Neuronpedia's."""
    lab = make_lab(folder / "lab")
    for number in range(8):
        label = create(
            lab,
            NewLabel(
                feature=f"{SAES[number % 2]}/{number}",
                text=f"words of {number} — 韻",
                score=0.5,
                score_method="detection",
            ),
            "ann",
        )
        vote(lab, label.id, "bob", 1)
    other = make_lab(folder / "other")

    def taken(path: Path) -> Any:
        report = import_labels(other, path, "fuzz", "m/3-tiny" if "neuronpedia" in path.name else None, dry_run=True)
        return report.model_dump()

    for form, which in (("jsonl", {}), ("parquet", {}), ("neuronpedia", {"sae": "m/3-tiny"})):
        path = folder / f"pack-{form}"
        path.write_bytes(
            b"".join(part if isinstance(part, bytes) else part.encode() for part in export(lab, Filter(**which), form))
        )
        yield Seed("label pack", form, path, taken)
    path = folder / "pack.jsonl.gz"
    path.write_bytes(gzip.compress((folder / "pack-jsonl").read_bytes()))
    yield Seed("label pack", "jsonl.gz", path, taken)


def _scores(path: Path) -> Any:
    found = read_file(path, "match")
    return found.format, [(row.shown, row.score) for row in found.rows]


def evaluations(folder: Path) -> Iterator[Seed]:
    """Per-sample scores of every tool."""
    folder.mkdir(parents=True)
    rows = [lm_eval(number, match=number % 2) for number in range(6)]
    log = {**HEADER, "samples": [inspect_sample(number, "C") for number in range(1, 6)]}
    members = {"header.json": json.dumps(HEADER).encode()}
    members |= {f"samples/{i}_epoch_1.json": json.dumps(inspect_sample(i, "I")).encode() for i in range(4)}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    zstd_zip(folder / "zstd.eval", members)
    made = {
        "lm-eval.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode(),
        "rows.jsonl.gz": gzip.compress(b"".join(b'{"id": "p%d", "score": 0.5}\n' % i for i in range(9))),
        "scores.csv": b"id,score\n" + b"".join(b"p%d,%d\n" % (i, i % 2) for i in range(9)),
        "inspect.json": json.dumps(log, indent=1).encode(),
        "inspect.eval": packed.getvalue(),
    }
    for name, data in made.items():
        (folder / name).write_bytes(data)
    for path in sorted(folder.iterdir()):
        yield Seed("evaluation", path.name, path, _scores)


def _vector(path: Path) -> Any:
    found, form = read(path.read_bytes())
    return form, {layer: vector.tobytes() for layer, vector in found.layers.items()}


def vectors(folder: Path) -> Iterator[Seed]:
    """Steering vectors in each format, and lm-eval's table."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    several = VectorFile(
        {layer: rng.standard_normal(32).astype(np.float32) for layer in (1, 2, 5)}, "m", "qwen3", "calm"
    )
    single = VectorFile({2: several.layers[2]}, "m", "qwen3", "calm")
    for form in ("safetensors", "gguf", "easysteer", "neuronpedia"):
        (folder / form).write_bytes(write(single if form == "neuronpedia" else several, form))
    ours = {"model": "m", "vectors": [{"layer": n, "vector": v.tolist()} for n, v in several.layers.items()]}
    (folder / "json").write_text(json.dumps(ours))
    for path in sorted(folder.iterdir()):
        yield Seed("vector", path.name, path, _vector)
    table = folder / "lm-eval.csv"
    table.write_text(",".join(COLUMNS) + "\nsae_lens,add,gemma-scope-2b,layers.3,17,4.0,layer3,dogs\n")
    yield Seed("vector", "lm-eval", table, lambda path: read_lm_eval(path.read_bytes()))


def _cache(root: Path) -> Any:
    cache = Cache(cache_of(root, None, 2))
    checked = cache.check(5, 40, lambda _n: None)
    samples = list(cache.samples())
    fired = cache.fired(checked.pieces, 0, cache.n_tokens)
    return checked.sha256, len(samples), float(fired.value.sum()), cache.token_ids(0, cache.n_tokens).sum()


def caches(folder: Path) -> Iterator[Seed]:
    """Delphi's activations: a cache of its own, and one that a Scopebase wrote; read to be taken in, and to be compared."""
    rng = np.random.default_rng(1)
    for name, ours in (("delphi", False), ("scopebase", True)):
        root = folder / name
        hook = root / "latents" / "layers.2"
        hook.mkdir(parents=True)
        tokens = rng.integers(0, 400, (6, 32)).astype(np.int64)
        for first, stop in ((0, 20), (20, 40)):
            places = np.stack([rng.integers(0, 6, 60), rng.permutation(60) % 32, rng.integers(0, stop - first, 60)], 1)
            places = np.unique(places, axis=0).astype(np.int64)
            values = rng.random(len(places)).astype(np.float32) + 0.5
            save_file(
                {"locations": places, "activations": values, "tokens": tokens}, hook / f"{first}_{stop - 1}.safetensors"
            )
        (hook / "config.json").write_text(json.dumps({"model_name": "m", "cache_ctx_len": 32}))
        if ours:
            (root / "scopebase.json").write_text(json.dumps({"n_features": 40, "recipe": {"max_tokens": 32}}))
            rows = ({"id": f"s{i}", "first": i * 32, "n_tokens": 20, "fields": {"sample": i}} for i in range(6))
            (root / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        yield Seed("cache", f"{name}, taken in", root, _cache)
    yield Seed("cache", "compared", folder / "delphi", lambda root: list(read_delphi(cache_of(root, None, 2))))


def foreign(folder: Path) -> Iterator[Seed]:
    """What Delphi, Neuronpedia and SAEDashboard write about features."""
    lab = make_lab(folder / "lab")
    with lab.home.database.reading() as session:
        sae = find_sae(session, "m/3-tiny")
    yield Seed(
        "other tools",
        "delphi labels",
        delphi_result(folder / "delphi", [{"activating": True, "prediction": True}] * 3),
        lambda root: _taken(lab, sae, read_delphi_labels(root, None, 2)),
        0.5,
    )
    source = folder / "v1" / "m" / "3-tiny"
    (source / "explanations").mkdir(parents=True)
    (source / "features").mkdir()
    row = {
        "id": "c" + "a" * 24,
        "modelId": "m",
        "layer": "3-tiny",
        "index": "5",
        "description": "dogs",
        "explanationModelName": "gpt-4",
    }
    (source / "explanations" / "batch-0.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode() + b"\n"))
    (source / "features" / "batch-0.jsonl").write_text('{"index": "5", "maxActApprox": 1.5, "frac_nonzero": 0.1}\n')
    (source / "source.jsonl").write_text(json.dumps({"id": "3-tiny", "saelensConfig": {"sha256": sae.sha256}}) + "\n")

    def neuronpedia(root: Path) -> Any:
        there = source_folder(root, sae)
        return _taken(lab, sae, read_explanations(there, sae)), list(read_features(there))

    yield Seed("other tools", "neuronpedia", folder / "v1", neuronpedia, 0.5)
    batch = {"features": [{"feature_index": 3, "frac_nonzero": 0.1, "activations": [{"values": [0.0, 1.5]}]}]}
    (folder / "dashboard").mkdir()
    (folder / "dashboard" / "batch-0.json").write_text(json.dumps(batch))
    yield Seed("other tools", "dashboard", folder / "dashboard", lambda root: list(read_dashboard(root)))


def _taken(lab: Library, sae: Sae, labels: Any) -> Any:
    return take_in(lab, sae, "files", labels, Taking("fuzz", dry_run=True)).model_dump()


def backups(folder: Path) -> Iterator[Seed]:
    """A backup of a home with labels; also one whose hashes say that all is well."""
    lab = make_lab(folder / "home")
    create(lab, NewLabel(feature="m/3-tiny/1", text="kept"), "ann")
    lab.home.ensure_table("directions_4")
    back_up(lab.home, folder / "backup")
    lab.home.close()
    to, signed = folder / "restored", folder / "signed"

    def restored(root: Path) -> Any:
        shutil.rmtree(to, ignore_errors=True)
        before = set(folder.rglob("*"))
        try:
            restore(root, Settings.read(to, {}))
            open_home(Settings.read(to, {})).close()
        finally:
            outside = [path for path in set(folder.rglob("*")) - before if path != to and to not in path.parents]
            assert not outside, f"a backup wrote outside of its home: {outside}"
        return "restored"

    def restored_signed(root: Path) -> Any:
        shutil.rmtree(signed, ignore_errors=True)
        shutil.copytree(root, signed)
        with suppress(ValueError, AttributeError, OSError, TypeError):
            said = json.loads((signed / "backup.json").read_text())
            said["files"] = {path: _sha256(signed / path) for path in said["files"]}
            (signed / "backup.json").write_text(json.dumps(said))
        return restored(signed)

    yield Seed("backup", "whole", folder / "backup", restored, 0.15, "*.json*")
    yield Seed("backup", "with hashes that are right", folder / "backup", restored_signed, 0.3, "database*")
    yield Seed("backup", "with files that are not whole", folder / "backup", restored_signed, 0.1, "*.manifest")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
