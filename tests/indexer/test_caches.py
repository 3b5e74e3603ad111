"""Caches of Delphi taken in as datasets: the same profiles and firing as what they were made of, whoever wrote them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sqlalchemy import select

from api.services.exchange.delphi import Shape, export_delphi
from api.services.exchange.plan import plan
from api.services.library import Library
from api.services.questions.diff import diff
from api.services.questions.overlap import overlap
from indexer.caches.spelling import Speller
from indexer.caches.subjects import Taking
from indexer.caches.taking import take_in_delphi
from indexer.live import open_live
from indexer.saes import open_release
from indexer.subject import Described
from schema.errors import Conflict, InputError
from schema.home import open_home
from schema.layout import sample_key
from schema.lookup import find_dataset
from schema.packing import VALUE_OF_BITS
from schema.recipe import Recipe
from schema.records import RunReport
from schema.settings import Settings
from schema.store import Store
from schema.tables import RunSae
from tests.lengths import LONG
from tests.making import SONGS, TALES, make_release

SAE = "tiny-qwen3/2-tiny"
PROFILE = ("n_samples", "n_tokens", "samples_any", "samples_last", "tokens", "sums", "maxima", "histogram")
FORWARD = ("n_tokens", "features", "maxima", "last_features", "last_values", "detail")


@pytest.fixture(scope="module")
def cache(indexed: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `scopebase export delphi` writes of two datasets."""
    out = tmp_path_factory.mktemp("cache") / "out"
    home = open_home(indexed)
    export_delphi(plan(Library(home), SAE, out, ["songs", "tales"]), Shape(64, 16, 3, pad_token=1), "tiny")
    home.close()
    return out


@pytest.fixture
def home(tmp_path: Path) -> Settings:
    return Settings.read(tmp_path / "home", {})


def asked(cache: Path, release_dir: Path, model_dir: Path, **more: Any) -> Taking:
    given = {"sae": str(release_dir), "dataset": "taken", "model": str(model_dir), "set_name": "tiny", **more}
    return Taking(cache / "latents" / "layers.2" if (cache / "latents").is_dir() else cache, **given)


def rows(settings: Settings, pairs: list[int], table: str, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """All rows of some pairs, one pair after another."""
    store, found = Store(settings.store_url), []
    for pair in pairs:
        batches = store.span(table, sample_key(pair), sample_key(pair + 1), ["key", *columns])
        found += sorted((row for batch in batches for row in batch.to_pylist()), key=lambda row: row["key"])
    return [{name: row[name] for name in columns} for row in found]


def pairs_of(settings: Settings, *datasets: str) -> list[int]:
    home = open_home(settings)
    with home.database.reading() as session:
        found = {pair.run.dataset.name: pair.id for pair in session.scalars(select(RunSae)) if pair.sae.name == SAE}
    home.close()
    return [found[name] for name in datasets]


def test_there_and_back_is_the_same(
    indexed: Settings, home: Settings, cache: Path, release_dir: Path, model_dir: Path
) -> None:
    """Forward rows are equal byte for byte, and the profile is the sum of those of the two datasets."""
    report = take_in_delphi(asked(cache, release_dir, model_dir), home)
    ours, (theirs,) = pairs_of(indexed, "songs", "tales"), pairs_of(home, "taken")
    assert rows(home, [theirs], "forward", FORWARD) == rows(indexed, ours, "forward", FORWARD)
    (profile,) = rows(home, [theirs], "profiles", PROFILE)
    parts = rows(indexed, ours, "profiles", PROFILE)
    for name in PROFILE:
        combine = np.max if name == "maxima" else np.sum
        np.testing.assert_array_equal(profile[name], combine([part[name] for part in parts], axis=0))
    assert (report.n_samples, report.already) == (len(SONGS) + len(TALES), False)
    assert (report.n_activations == profile["histogram"] and False) or report.n_activations == sum(profile["tokens"])


def test_questions_are_answered_over_it(
    indexed: Settings, tmp_path: Path, cache: Path, release_dir: Path, model_dir: Path
) -> None:
    """Taken into the very home that it came from, it is comparable with what is indexed there, and covers it."""
    shutil.copytree(indexed.home, tmp_path / "copy")
    settings = Settings.read(tmp_path / "copy", {})
    take_in_delphi(asked(cache, release_dir, model_dir, sae=SAE, model=None), settings)
    opened = open_home(settings)
    library = Library(opened)
    answer = overlap(library, SAE, ["songs", "tales", "taken"])
    assert [answer.overlap[i][2] for i in range(3)] == [1, 1, 1]
    assert diff(library, SAE, "songs", "taken").total == 0
    sample = next(row for row in SONGS if row["id"] == "s3")
    record = store_record(settings, opened, "songs/s3")
    assert record["text"] == sample["text"]
    assert (record["dataset"], record["sample"]) == ("songs", "s3")
    opened.close()


def store_record(settings: Settings, home: Any, id_: str) -> dict[str, Any]:
    with home.database.reading() as session:
        dataset = find_dataset(session, "taken").id
    batches = Store(settings.store_url).span("samples", sample_key(dataset), sample_key(dataset + 1), ["id", "record"])
    return next(json.loads(row["record"]) for batch in batches for row in batch.to_pylist() if row["id"] == id_)


def write_cache(
    folder: Path, tokens: np.ndarray, fired: list[tuple[int, int, int, float]], edges: tuple[int, ...]
) -> Path:
    """A cache as Delphi itself writes it: no word about samples, locations as wide as they must be, any order."""
    folder.mkdir(parents=True, exist_ok=True)
    for first, stop in pairwise(edges):
        here = [each for each in fired if first <= each[2] < stop]
        locations = np.array([[row, at, latent - first] for row, at, latent, _ in here], np.uint16).reshape(-1, 3)
        values = np.array([value for *_, value in here], np.float16)
        save_file(
            {"locations": locations, "activations": values, "tokens": tokens.astype(np.int64)},
            folder / f"{first}_{stop - 1}.safetensors",
        )
    (folder / "config.json").write_text(json.dumps({"ctx_len": tokens.shape[1], "model_name": "no/such-model"}))
    return folder


TOKENS = np.array([[0, 40, 50, 60], [70, 80, 90, 1]])
FIRED = [(1, 0, 9, 2.0), (0, 2, 9, 1.5), (0, 0, 3, 4.0), (0, 2, 200, 0.25), (1, 3, 200, 8.0), (1, 1, 3, -1.0)]


@pytest.mark.parametrize(("mask", "n_tokens", "dropped"), [(None, 8, []), ("special,first", 5, [0, 2, 4])])
def test_a_cache_of_delphi_itself(
    home: Settings,
    tmp_path: Path,
    release_dir: Path,
    model_dir: Path,
    mask: str | None,
    n_tokens: int,
    dropped: list[int],
) -> None:
    """Each row is a sample; the mask, where one is stated, keeps its tokens from firing; negative values never fire."""
    folder = write_cache(tmp_path / "latents" / "layers.2", TOKENS, FIRED, (0, 100, 256))
    report = take_in_delphi(asked(tmp_path, release_dir, model_dir, mask=mask), home)
    (pair,) = pairs_of(home, "taken")
    (profile,) = rows(home, [pair], "profiles", PROFILE)
    kept = [each for i, each in enumerate(FIRED) if i not in dropped and each[3] > 0]
    assert (report.n_samples, report.n_tokens, profile["n_tokens"]) == (2, n_tokens, n_tokens)
    for feature in range(256):
        mine = [(row, value) for row, _, latent, value in kept if latent == feature]
        assert profile["samples_any"][feature] == len({row for row, _ in mine})
        assert profile["sums"][feature] == sum(value for _, value in mine)
        assert VALUE_OF_BITS[profile["maxima"][feature]] == max((value for _, value in mine), default=0)
    tokenizer = Described(str(model_dir)).tokenizer
    records = [json.loads(row["record"]) for row in samples(home)]
    assert [record["row"] for record in records] == [0, 1]
    assert records[0]["text"] == "".join(tokenizer.pieces([40, 50, 60])), "what stands around a text is no text"
    opened = open_home(home)
    assert open_live(opened, str(model_dir)).dtype == "float32", "an unknown arithmetic is nobody's default"
    opened.close()
    assert load_file(folder / "0_99.safetensors")["tokens"].tolist() == [row["token_ids"] for row in token_rows(home)]


def samples(settings: Settings) -> Iterator[dict[str, Any]]:
    return iter(Store(settings.store_url).latest("samples").to_table(filter="key >= 0").to_pylist())


def token_rows(settings: Settings) -> Iterator[dict[str, Any]]:
    return iter(Store(settings.store_url).latest("tokens").to_table(filter="key >= 0").to_pylist())


def test_taken_in_again_nothing_is_written(home: Settings, cache: Path, release_dir: Path, model_dir: Path) -> None:
    first = take_in_delphi(asked(cache, release_dir, model_dir), home)
    before = {table: Store(home.store_url).latest(table).version for table in ("samples", "forward", "profiles")}
    again = take_in_delphi(asked(cache, release_dir, model_dir), home)
    assert (again.run, again.already, again.n_tokens) == (first.run, True, first.n_tokens)
    assert {table: Store(home.store_url).latest(table).version for table in before} == before
    with pytest.raises(InputError, match="--dtype 'fp32': one of float32"):
        take_in_delphi(asked(cache, release_dir, model_dir, dtype="fp32"), home)
    with pytest.raises(Conflict, match="in this home has tensors"):
        take_in_delphi(asked(cache, make_other(home.home.parent), model_dir), home)
    stated = take_in_delphi(asked(cache, release_dir, model_dir, dtype="bfloat16"), home)
    assert (stated.run, stated.already) == (first.run + 1, False), "another statement of how it was made, another run"


KILLED = """
import json, os, signal, sys
from pathlib import Path
import scopebase
from indexer import worker
from indexer.caches.subjects import Taking
from indexer.caches.taking import take_in_delphi
from schema.settings import Settings

at, home, folder, asked = json.loads(sys.argv[1])
staged, size = 0, worker.size

def stop(fragments):
    global staged
    staged += 1
    if staged == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return size(fragments)

worker.size = stop
take_in_delphi(Taking(Path(folder), **asked), Settings.read(Path(home), {}))
"""


@pytest.mark.parametrize("at", [3, 4] if LONG else [3])
def test_killed_in_the_middle_the_same_call_ends_the_same(
    home: Settings, tmp_path: Path, cache: Path, release_dir: Path, model_dir: Path, at: int
) -> None:
    """SIGKILL after so many shards were written, and before the ledger hears of the last one."""
    given = {"sae": str(release_dir), "dataset": "taken", "model": str(model_dir), "set_name": "tiny"}
    words = json.dumps([at, str(home.home), str(cache / "latents" / "layers.2"), given])
    killed = subprocess.run([sys.executable, "-c", KILLED, words], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    report: RunReport = take_in_delphi(asked(cache, release_dir, model_dir), home)
    undisturbed = Settings.read(tmp_path / "undisturbed", {})
    take_in_delphi(asked(cache, release_dir, model_dir), undisturbed)
    for table, columns in (("forward", FORWARD), ("profiles", PROFILE)):
        assert rows(home, pairs_of(home, "taken"), table, columns) == rows(
            undisturbed, pairs_of(undisturbed, "taken"), table, columns
        )
    assert not report.already


def broken(folder: Path, **changes: Any) -> Path:
    arrays = load_file(folder / "0_99.safetensors")
    save_file({**arrays, **changes}, folder / "0_99.safetensors")
    return folder


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"activations": np.array([np.nan] * 4, np.float16)}, "not finite"),
        ({"activations": np.ones(3, np.float16)}, "do not fit each other"),
        ({"tokens": TOKENS + 1}, "has other tokens than"),
        ({"tokens": TOKENS[0]}, "have shape"),
        ({"locations": np.array([[0, 0, 100]] * 4, np.uint16)}, "speaks of latent 100, which its name leaves out"),
        ({"locations": np.array([[7, 0, 1]] * 4, np.uint16)}, "speaks of token 28, the cache has 8"),
        ({"locations": np.array([[0, 2, i] for i in range(20, 27)], np.uint16), "activations": np.ones(7, np.float16)},
         "8 features fire on one token, the SAE has k = 6"),
    ],
)  # fmt: skip
def test_what_is_no_cache_of_the_sae_is_refused_untouched(
    home: Settings, tmp_path: Path, release_dir: Path, model_dir: Path, changes: dict[str, Any], says: str
) -> None:
    folder = broken(write_cache(tmp_path / "latents" / "layers.2", TOKENS, FIRED, (0, 100, 256)), **changes)
    with pytest.raises(InputError, match=says):
        take_in_delphi(asked(folder, release_dir, model_dir), home)
    assert not home.home.exists()


def test_caches_that_are_not_of_the_sae(
    home: Settings, tmp_path: Path, cache: Path, release_dir: Path, model_dir: Path
) -> None:
    def refused(kind: type[Exception], says: str, folder: Path, **more: Any) -> None:
        with pytest.raises(kind, match=says):
            take_in_delphi(asked(folder, release_dir, model_dir, **more), home)
        assert not home.home.exists()

    narrow = write_cache(tmp_path / "a" / "latents" / "layers.2", TOKENS, [], (0, 100))
    refused(InputError, "the SAE has 256 features", narrow)
    gap = write_cache(tmp_path / "b" / "latents" / "layers.2", TOKENS, [], (0, 100, 256))
    (gap / "0_99.safetensors").unlink()
    refused(InputError, "has no file of latents 0 to 99", gap)
    whole = write_cache(tmp_path / "c" / "latents" / "layers.2", TOKENS, FIRED, (0, 256))
    refused(Conflict, "layers.2 is of layer 2, the SAE of layer 1", whole, layer=1)
    refused(InputError, "cannot be fetched|no/such-model", whole, model=None)
    refused(InputError, "name the SAE", whole, sae=None)
    mlp = write_cache(tmp_path / "d" / "latents" / "layers.2.mlp", TOKENS, FIRED, (0, 256))
    refused(InputError, "is not what block 2 returns", mlp)
    twice = write_cache(tmp_path / "e" / "latents" / "layers.2", TOKENS, [*FIRED, FIRED[0]], (0, 256))
    with pytest.raises(InputError, match="says twice"):
        take_in_delphi(asked(twice, release_dir, model_dir), home)
    refused_home = Settings.read(tmp_path / "other", {})
    with pytest.raises(Conflict, match="activations of one say nothing of the other"):
        folder = cache / "latents" / "layers.2"
        take_in_delphi(Taking(folder, str(make_other(tmp_path)), "x", model=str(model_dir)), refused_home)


def make_other(tmp_path: Path) -> Path:
    return make_release(tmp_path / "other-L0_6", n_layers=4, d_model=32, d_sae=256, k=6, seed=9)


def test_some_features_are_no_dataset(
    indexed: Settings, home: Settings, tmp_path: Path, release_dir: Path, model_dir: Path
) -> None:
    opened = open_home(indexed)
    export_delphi(plan(Library(opened), SAE, tmp_path / "some", ["songs"], "0-9"), Shape(64, 16, 3, 1), "tiny")
    opened.close()
    with pytest.raises(InputError, match="the others would seem never to fire"):
        take_in_delphi(asked(tmp_path / "some", release_dir, model_dir), home)


def test_tokens_are_spelled_as_the_text_was(model_dir: Path) -> None:
    """Characters of several tokens stand where they stood; without a tokenizer there are the ids."""
    tokenizer = Described(str(model_dir)).tokenizer
    text = "La la 🙂🙃 naïve 語 the end"
    (tokens,) = tokenizer.encode([text], [0], Recipe())
    spelled, spans = Speller(tokenizer, Recipe()).spell(tokens.ids.tolist())
    assert spelled == text
    assert spans[0] == (0, 0)
    for (first, stop), start, end in zip(spans, tokens.starts.tolist(), tokens.ends.tolist(), strict=True):
        assert first <= start <= end <= stop or (start, end) == (first, stop)
    assert Speller(None, Recipe(mask="first")).spell([5, 17]) == ("5 17 ", [(0, 2), (2, 5)])
    with pytest.raises(InputError, match="give the model with --model, or --mask none"):
        Speller(None, Recipe())


def test_sae_of_the_release_is_that_of_the_home(
    home: Settings, cache: Path, release_dir: Path, model_dir: Path
) -> None:
    take_in_delphi(asked(cache, release_dir, model_dir), home)
    opened = open_home(home)
    with opened.database.reading() as session:
        sae = session.scalars(select(RunSae)).one().sae
        assert sae.sha256 == open_release(str(release_dir)).load(2).sha256()
        assert session.scalars(select(RunSae)).one().run.recipe["origin"].startswith("delphi ")
    opened.close()
