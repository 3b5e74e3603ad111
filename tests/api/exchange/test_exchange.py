"""Exports for other tools hold what an independent computation gives, go on where they stopped, and are read back."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from api.services.exchange.compare import Theirs, compare
from api.services.exchange.dashboard import export_dashboard, read_dashboard
from api.services.exchange.delphi import Shape, export_delphi
from api.services.exchange.delphi_labels import read_delphi_labels
from api.services.exchange.delphi_reading import cache_of, read_delphi
from api.services.exchange.examples import Choice
from api.services.exchange.feature_json import cantor, export_feature_json
from api.services.exchange.incoming import Taking, take_in
from api.services.exchange.plan import Plan, parse_features, plan
from api.services.exchange.tensors import Spool, map_tensors, write_tensors
from api.services.exchange.whole import Whole, find_whole
from api.services.labels.book import create
from api.services.library import Library
from api.services.neuronpedia.export import export_neuronpedia
from api.services.neuronpedia.reading import read_explanations, read_features, source_folder
from schema.errors import Conflict, InputError, NotFound
from schema.home import open_home
from schema.labels import best_labels
from schema.lookup import find_sae
from schema.settings import Settings
from schema.tables import Sae
from schema.wire.labels import NewLabel
from tests.indexer.activations import token_activations
from tests.making import PROBLEMS, SONGS, TALES

SAE = "tiny-qwen3/2-tiny"
ROWS = {"problems": PROBLEMS, "songs": SONGS, "tales": TALES}
Fired = dict[tuple[str, str], tuple[list[int], np.ndarray]]


@pytest.fixture(scope="module")
def books(indexed: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    """A copy of the home with two labels."""
    folder = tmp_path_factory.mktemp("exchange") / "home"
    shutil.copytree(indexed.home, folder)
    home = open_home(Settings.read(folder, {}))
    library = Library(home)
    create(library, NewLabel(feature=f"{SAE}/3", text="counts of apples"), "ann")
    create(library, NewLabel(feature=f"{SAE}/200", text="songs", source="model", explainer="gpt-x"), "ann")
    yield library
    home.close()


@pytest.fixture(scope="module")
def fired(model_dir: Path, release_dir: Path) -> Fired:
    places = [(name, row["id"]) for name, rows in ROWS.items() for row in rows]
    texts = [row["text"] for rows in ROWS.values() for row in rows]
    return dict(zip(places, token_activations(model_dir, release_dir, 2, texts, 6), strict=True))


def asked(books: Library, out: Path, **more: Any) -> Plan:
    return plan(books, SAE, out, **more)


def sae(books: Library, name: str = SAE) -> Sae:
    with books.home.database.reading() as session:
        return find_sae(session, name)


def whole(books: Library, *datasets: str) -> Whole:
    with books.home.database.reading() as session:
        return find_whole(session, find_sae(session, SAE), datasets)


def rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in gzip.open(path)]


def test_a_neuronpedia_export_has_every_feature_and_its_examples(books: Library, fired: Fired, tmp_path: Path) -> None:
    report = export_neuronpedia(asked(books, tmp_path))
    folder = tmp_path / "v1" / "tiny-qwen3" / "2-tiny"
    assert report.folder == str(folder)
    features = rows(folder / "features" / "batch-0.jsonl.gz")
    assert [row["index"] for row in features] == [str(i) for i in range(256)]
    values = np.concatenate([acts for _, acts in fired.values()])
    assert [row["maxActApprox"] for row in features] == pytest.approx(values.max(0).tolist(), rel=1e-3)
    assert [sum(row["freq_hist_data_bar_heights"]) for row in features] == (values > 0).sum(0).tolist()
    shown = rows(folder / "activations" / "batch-0.jsonl.gz")
    assert report.n_examples == len(shown) > 1000
    assert report.n_firing == (values.max(0) > 0).sum()
    for row in shown:
        acts = fired[row["dataSource"], row["dataIndex"]][1][:, int(row["index"])]
        assert row["maxValue"] == pytest.approx(acts.max(), rel=1e-3)
        if len(acts) <= 128:
            np.testing.assert_allclose(row["values"], acts, rtol=2e-3, atol=1e-6)
    assert "source" not in shown[0], "their table of activations has no such column"
    explanations = rows(folder / "explanations" / "batch-0.jsonl.gz")
    assert [(row["index"], row["description"]) for row in explanations] == [("3", "counts of apples"), ("200", "songs")]
    model = json.loads((folder / "model.jsonl").read_text())
    assert model["layers"] == 4, "0 breaks their graph page"
    assert json.loads((folder / "source.jsonl").read_text())["num_prompts"] == sum(map(len, ROWS.values()))
    assert {path.name for path in (tmp_path / "v1" / "config").iterdir()} >= {
        "explanation_type.jsonl",
        "eval_type.jsonl",
    }


def test_an_interrupted_export_goes_on_and_ends_the_same(books: Library, tmp_path: Path) -> None:
    def tree(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    class Stopped(Exception):
        pass

    def stop(_done: int) -> None:
        raise Stopped

    choice = Choice(n_top=2, n_intervals=1, n_each=1)
    for export in (export_neuronpedia, export_dashboard, export_feature_json):
        once, twice = tmp_path / export.__name__ / "once", tmp_path / export.__name__ / "twice"
        export(asked(books, once, choice=choice))
        with pytest.raises(Stopped):
            export(asked(books, twice, choice=choice, advance=stop))
        export(asked(books, twice, choice=choice))
        assert tree(once) == tree(twice)
        assert not [path for path in twice.rglob("*.part")]
        with pytest.raises(Conflict, match="holds another export"):
            export(asked(books, twice, choice=replace(choice, n_top=3)))


def test_a_strange_folder_is_left_alone(books: Library, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(Conflict, match="not empty"):
        export_dashboard(asked(books, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="cannot be written"):
        export_dashboard(asked(books, tmp_path / "thesis.tex" / "below"))


def test_dashboard_batches_say_what_the_index_says(books: Library, fired: Fired, tmp_path: Path) -> None:
    report = export_dashboard(asked(books, tmp_path))
    first = json.loads((tmp_path / "batch-0.json").read_text())
    assert (first["model_id"], first["layer"], first["sae_set"]) == ("tiny-qwen3", 2, "tiny")
    values = np.concatenate([acts for _, acts in fired.values()])
    skipped = json.loads((tmp_path / "skipped_indexes.json").read_text())["skipped_indexes"]
    assert skipped == np.flatnonzero(values.max(0) == 0).tolist()
    answer = compare(books, whole(books), "dashboard", read_dashboard(tmp_path))
    assert (answer.n_compared, answer.n_same_max) == (report.n_firing, report.n_firing)
    assert answer.rank_correlation_density == pytest.approx(1)
    (tmp_path / "batch-9.json").write_text('{"features": [{}]}')
    with pytest.raises(InputError, match="has no 'activations'"):
        list(read_dashboard(tmp_path))


def test_feature_json_is_what_graph_tools_read(indexed: Settings, fired: Fired, tmp_path: Path) -> None:
    shutil.copytree(indexed.home, tmp_path / "home")
    home = open_home(Settings.read(tmp_path / "home", {}))
    own, tmp_path = Library(home), tmp_path / "out"
    values = np.concatenate([acts for _, acts in fired.values()])
    firing = [i for i in range(41) if values[:, i].any()]
    create(own, NewLabel(feature=f"{SAE}/{firing[0]}", text="counts of apples"), "ann")
    report = export_feature_json(asked(own, tmp_path, features="0-40", choice=Choice(4, 3, 2, window=1000)))
    assert report.n_firing == report.files == len(firing)
    assert {path.name for path in (tmp_path / "features").iterdir()} == {
        f"{sum(range(2 + i + 1)) + i}.json" for i in firing
    }
    shown, labels = 0, {firing[0]: "counts of apples"}
    for i in firing:
        row = json.loads((tmp_path / "features" / f"{cantor(2, i)}.json").read_text())
        assert (row["index"], row["transcoder_id"], row["clerp"]) == (i, SAE, labels.get(i, ""))
        assert row["act_max"] == pytest.approx(values[:, i].max(), rel=1e-3)
        assert sum(row["histogram"]) == (values[:, i] > 0).sum()
        assert row["examples_quantiles"][0]["quantile_name"] == "Top activations"
        texts = {each["text"]: name for name, rows in ROWS.items() for each in rows}
        for example in (e for quantile in row["examples_quantiles"] for e in quantile["examples"]):
            (name, text) = texts["".join(example["tokens"])], "".join(example["tokens"])
            sample = next(each["id"] for each in ROWS[name] if each["text"] == text)
            expected = fired[name, sample][1][:, i]
            np.testing.assert_allclose(example["tokens_acts_list"], expected, rtol=2e-3, atol=1e-6)
            assert example["train_token_ind"] == int(np.argmax(example["tokens_acts_list"]))
            shown += 1
    assert shown == report.n_examples > 30
    home.close()


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 1 << 20)), unique=True, max_size=30))
def test_no_two_features_of_a_model_share_a_number(places: list[tuple[int, int]]) -> None:
    assert len({cantor(*place) for place in places}) == len(places)


@pytest.mark.parametrize(("context", "window", "splits"), [(256, 32, 5), (16, 8, 1), (48, 16, 300)])
def test_a_delphi_cache_holds_every_activation_at_its_token(
    books: Library, fired: Fired, tmp_path: Path, context: int, window: int, splits: int
) -> None:
    """Rebuilt from the cache with the `safetensors` library alone, sample by sample."""
    from safetensors.numpy import load_file

    report = export_delphi(asked(books, tmp_path), Shape(context, window, splits, pad_token=1), "tiny")
    folder = tmp_path / "latents" / "layers.2"
    files = sorted(folder.glob("*.safetensors"), key=lambda path: int(path.stem.split("_")[0]))
    assert len(files) == min(splits, 256)
    tokens = load_file(files[0])["tokens"]
    dense = np.zeros((tokens.size, 256), np.float32)
    for path in files:
        first, last = map(int, path.stem.split("_"))
        cache = load_file(path)
        row, position, latent = cache["locations"].astype(np.int64).T
        assert latent.max(initial=0) <= last - first
        assert cache["activations"].dtype == np.float16
        dense[row * context + position, latent + first] = cache["activations"]
        for one in np.unique(latent)[:3]:  # Delphi groups neighbours: windows of a latent must ascend
            assert (np.diff(row[latent == one] * context + position[latent == one]) > 0).all()
    at = 0
    for ids, acts in fired.values():
        assert tokens.reshape(-1)[at : at + len(ids)].tolist() == ids
        np.testing.assert_allclose(dense[at : at + len(ids)], acts, rtol=1e-3, atol=1e-6)
        padding = slice(at + len(ids), at + len(ids) + -len(ids) % window)
        assert (tokens.reshape(-1)[padding] == 1).all()
        assert not dense[padding].any()
        at = padding.stop
    assert report.n_examples == sum((acts > 0).sum() for _, acts in fired.values())
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_name"], config["cache_ctx_len"]) == ("tiny", context)
    answer = compare(books, whole(books), "delphi", read_delphi(cache_of(tmp_path, None, 2)))
    assert answer.n_same_max == answer.n_compared == report.n_firing


@pytest.mark.parametrize("latent", [4, -1, -(1 << 63) + 12])
def test_a_cache_that_speaks_of_latents_beside_its_name_is_refused(tmp_path: Path, latent: int) -> None:
    from safetensors.numpy import save_file

    locations = np.array([[0, 0, 1], [0, 1, latent]], np.int64)
    save_file({"locations": locations, "activations": np.ones(2, np.float32)}, tmp_path / "0_3.safetensors")
    with pytest.raises(InputError, match=r"speaks of latent -?[\d,]+, which its name leaves out"):
        list(read_delphi(tmp_path))


def test_a_delphi_cache_of_some_features_and_datasets(books: Library, tmp_path: Path) -> None:
    export_delphi(asked(books, tmp_path, datasets=["songs"], features="3,9-200"), Shape(), "tiny")
    found = {theirs.index for theirs in read_delphi(cache_of(tmp_path, None, 2))}
    assert found <= {3, *range(9, 201)}
    assert len(found) > 20
    answer = compare(books, whole(books, "songs"), "delphi", read_delphi(cache_of(tmp_path, None, 2)))
    assert answer.n_same_max == answer.n_compared == len(found)
    assert answer.provenance.runs == {"songs": 2}


def test_what_differs_is_said(books: Library) -> None:
    theirs = [Theirs(i, 1000.0 if i == 7 else 0.0, None) for i in (3, 7)]
    answer = compare(books, whole(books), "dashboard", theirs)
    assert answer.furthest[0].their_max_activation in (0.0, 1000.0)
    assert answer.n_same_max == 0
    assert answer.rank_correlation_density is None
    with pytest.raises(Conflict, match="another SAE"):
        compare(books, whole(books), "dashboard", [Theirs(256, 1.0, None)])
    with pytest.raises(InputError, match="no feature"):
        compare(books, whole(books), "dashboard", [])


def test_explanations_come_back_once(books: Library, tmp_path: Path) -> None:
    """Exported and imported again they are the same labels; those with Neuronpedia's ids are new, and bound to the SAE."""
    export_neuronpedia(asked(books, tmp_path, choice=Choice(1, 0, 0)))
    source = source_folder(tmp_path, sae(books))
    again = take_in(books, sae(books), "export", read_explanations(source, sae(books)), Taking("bob"))
    assert (again.read, again.created, again.unchanged) == (2, 0, 2)
    theirs = {"id": "c" + "a" * 24, "modelId": "gpt2", "layer": "9-x", "index": "5", "description": "dogs"}
    folder = tmp_path / "other" / "gpt2" / "9-x" / "explanations"
    folder.mkdir(parents=True)
    with gzip.open(folder / "batch-0.jsonl.gz", "wt") as file:
        file.write(json.dumps({**theirs, "explanationModelName": "gpt-4", "typeName": "oai"}) + "\n")
    labels = list(read_explanations(source_folder(tmp_path / "other", sae(books)), sae(books)))
    report = take_in(books, sae(books), "other", labels, Taking("bob", licence="CC-BY-4.0"))
    assert report.created == 1
    with books.home.database.reading() as session:
        label = best_labels(session, sae(books).id, [5])[5]
    assert (label.text, label.explainer, label.licence) == ("dogs", "gpt-4", "CC-BY-4.0")
    assert (label.uid, label.sae_id) == ("neuronpedia:c" + "a" * 24, sae(books).id)
    assert [theirs.index for theirs in read_features(source)] == list(range(256))


def test_explanations_of_other_tensors_are_refused(books: Library, tmp_path: Path) -> None:
    export_neuronpedia(asked(books, tmp_path, features="3", choice=Choice(1, 0, 0)))
    other = sae(books, "tiny-qwen3/1-tiny")
    with pytest.raises(Conflict, match="labels of one say nothing of the other"):
        source_folder(tmp_path, other)
    with pytest.raises(InputError, match="no export of Neuronpedia"):
        source_folder(tmp_path / "nothing", other)
    wrong = tmp_path / "wrong" / "gpt2" / "9-x" / "explanations" / "batch-0.jsonl"
    wrong.parent.mkdir(parents=True)
    wrong.write_text('{"description": "dogs", "index": "many"}\n')
    with pytest.raises(InputError, match=r"batch-0.jsonl, line 1: no explanation of Neuronpedia \(index: "):
        list(read_explanations(wrong.parents[1], other))
    for name in ("a", "b"):
        (tmp_path / "two" / "gpt2" / name / "explanations").mkdir(parents=True)
    with pytest.raises(Conflict, match="several sources"):
        source_folder(tmp_path / "two", other)


def delphi_result(folder: Path, scores: list[dict[str, Any]]) -> Path:
    (folder / "explanations").mkdir(parents=True)
    (folder / "scores" / "detection").mkdir(parents=True)
    (folder / "explanations" / "layers.2_latent17.txt").write_text('"words of songs"')
    (folder / "explanations" / "layers.3_latent17.txt").write_text('"another layer"')
    (folder / "scores" / "detection" / "layers.2_latent17.txt").write_text(json.dumps(scores))
    (folder / "run_config.json").write_text('{"explainer_model": "llama", "explainer": "default"}')
    return folder


def test_delphis_explanations_become_labels_with_their_scores(books: Library, tmp_path: Path) -> None:
    """3 of 4 firing examples and 1 of 2 silent ones are told right; the failed call does not count."""
    told = [(True, True)] * 3 + [(True, False), (False, False), (False, True)]
    scores = [{"activating": a, "prediction": p} for a, p in told] + [{"activating": True, "prediction": None}]
    folder = delphi_result(tmp_path / "run", scores)
    report = take_in(books, sae(books), "run", read_delphi_labels(folder, None, 2), Taking("bob"))
    assert report.created == 1
    with books.home.database.reading() as session:
        label = best_labels(session, sae(books).id, [17])[17]
    assert (label.text, label.explainer, label.score) == ("words of songs", "llama", pytest.approx((3 / 4 + 1 / 2) / 2))
    assert label.score_method == "delphi detection, balanced accuracy"
    again = take_in(books, sae(books), "run", read_delphi_labels(folder, None, 2), Taking("bob"))
    assert (again.created, again.unchanged) == (0, 1)
    only_one_kind = delphi_result(tmp_path / "one", [{"activating": True, "prediction": True}])
    assert next(read_delphi_labels(only_one_kind, None, 2)).score is None
    with pytest.raises(Conflict, match="--hookpoint"):
        list(read_delphi_labels(folder, None, 9))
    (folder / "explanations" / "layers.2_latent17.txt").write_text("no JSON")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        list(read_delphi_labels(folder, None, 2))
    with pytest.raises(InputError, match="no explanations of Delphi"):
        list(read_delphi_labels(tmp_path, None, 2))


def test_questions_that_cannot_be_exported(books: Library, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="did you mean"):
        asked(books, tmp_path, datasets=["song"])
    for wrong, says in (("5-1", "like 0,5-9"), ("a", "like 0,5-9"), ("", "like 0,5-9"), ("256", "0 to 255")):
        with pytest.raises(InputError, match=says):
            asked(books, tmp_path, features=wrong)
    with pytest.raises(InputError, match="no whole number of windows"):
        Shape(256, 100)
    assert not list(tmp_path.iterdir())


@given(st.sets(st.integers(0, 99), min_size=1))
def test_features_are_read_as_written(chosen: set[int]) -> None:
    assert parse_features(",".join(f"{i}-{i}" if i % 2 else str(i) for i in chosen), 100) == sorted(chosen)


KINDS = st.sampled_from(["uint16", "uint32", "int64", "float16", "float32"])


@settings(deadline=None)
@given(KINDS.flatmap(lambda kind: arrays.arrays(kind, st.tuples(st.integers(0, 20), st.just(3)))))
def test_spooled_tensors_are_safetensors(values: np.ndarray) -> None:
    import tempfile

    from safetensors.numpy import load_file

    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder, "spool"), values.dtype.name, 3)
        with spool.path.open("wb") as file:
            for row in values:
                spool.append(file, row)
        write_tensors(Path(folder, "t.safetensors"), {"a": (spool, values.dtype.name), "b": (spool, "float64")})
        loaded = load_file(Path(folder, "t.safetensors"))
        np.testing.assert_array_equal(loaded["a"], values)
        np.testing.assert_array_equal(loaded["b"], values.astype("float64"))
        mapped = map_tensors(Path(folder, "t.safetensors"))
        np.testing.assert_array_equal(mapped["a"], values)


def test_what_is_no_safetensors_file_is_refused(tmp_path: Path) -> None:
    for i, content in enumerate((b"", b"\xff" * 20, b"\x02" + b"\0" * 7 + b"{}x")):
        path = tmp_path / f"{i}_9.safetensors"
        path.write_bytes(content)
        with pytest.raises(InputError, match="no safetensors file|no file of a Delphi cache"):
            list(read_delphi(tmp_path))
        path.unlink()
