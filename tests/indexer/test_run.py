"""The whole job on a small model: counts against an independent computation, and every way of coming back to it."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from indexer import fold, seal, worker
from indexer.config import IndexConfig
from indexer.estimate import estimate
from indexer.run import index
from schema import upkeep
from schema.errors import Conflict, InputError, WorkFailed
from schema.home import open_home
from schema.layout import FENCE, directions_table, feature_key, flat_column, sample_key
from schema.ledger import Ledger
from schema.packing import VALUE_OF_BITS, accumulate, read_detail, value_of_code
from schema.settings import Settings
from schema.store import Store
from schema.tables import Dataset, Run, RunSae, Sae, Segment, Shard
from tests.indexer.reference import reference
from tests.making import PROBLEMS, SONGS, TALES, make_model, make_release, sae_tensors, write_jsonl

D_SAE, K = 256, 6
TEXTS = {"problems": PROBLEMS, "songs": SONGS, "tales": TALES}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.read(tmp_path / "home", {})


def pairs_of(settings: Settings) -> dict[tuple[str, int], int]:
    """(dataset, layer) -> pair"""
    with open_home(settings).database.reading() as session:
        return {(pair.run.dataset.name, pair.sae.layer): pair.id for pair in session.query(RunSae)}


def everything(settings: Settings) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table but the parts, for comparison byte by byte."""
    store = Store(settings.store_url)
    tables = ["samples", "tokens", "forward", "profiles", "postings", directions_table(32)]
    return {
        name: sorted(store.latest(name).to_table(filter="key >= 0").to_pylist(), key=lambda row: row["key"])
        for name in tables
    }


def test_counts_equal_an_independent_computation(indexed: Settings, model_dir: Path, release_dir: Path) -> None:
    store, pairs = Store(indexed.store_url), pairs_of(indexed)
    differing = total = 0
    for name, rows in TEXTS.items():
        expected = reference(model_dir, release_dir, [0, 1, 2, 3], [row["text"] for row in rows], K, max_tokens=256)
        for layer, want in expected.items():
            row = store.rows("profiles", [sample_key(pairs[name, layer])])
            got = {column: row.column(column)[0].as_py() for column in row.column_names}
            assert (got["n_samples"], got["n_tokens"]) == (len(rows), want.n_tokens)
            for column, counts in (
                ("samples_any", (want.any > 0).sum(0)),
                ("samples_last", (want.last > 0).sum(0)),
                ("tokens", want.tokens),
            ):
                differing += int((np.array(got[column]) != counts).sum())
                total += D_SAE
            np.testing.assert_allclose(VALUE_OF_BITS[got["maxima"]], want.any.max(0), rtol=2e-3, atol=1e-4)
            assert sum(got["histogram"]) == sum(got["tokens"])
    assert differing / total < 1e-3


def test_profile_postings_and_detail_all_tell_the_same(indexed: Settings) -> None:
    """What is derived equals what it was derived from."""
    home = open_home(indexed)
    store = home.store
    with home.database.reading() as session:
        segments = {segment.run_sae_id: segment.id for segment in session.query(Segment)}
    for (name, _layer), pair in pairs_of(indexed).items():
        n = len(TEXTS[name])
        rows = store.rows("forward", [sample_key(pair, i) for i in range(n)])
        assert len(rows) == n
        differing, offsets = flat_column(rows.column("features"))
        features = accumulate(differing.astype(np.int64), offsets)
        samples, tokens = np.zeros(D_SAE, int), np.zeros(D_SAE, int)
        sums, maxima, last = np.zeros(D_SAE), np.zeros(D_SAE), np.zeros(D_SAE, int)
        fired: dict[int, dict[int, float]] = {}
        for i in range(n):
            own = features[offsets[i] : offsets[i + 1]]
            detail = read_detail(rows.column("detail")[i].as_py(), own)
            samples[own] += 1
            np.add.at(tokens, detail.feature, 1)
            np.add.at(sums, detail.feature, detail.value.astype(np.float64))
            np.maximum.at(maxima, detail.feature, detail.value)
            for feature in own:
                fired.setdefault(int(feature), {})[i] = float(detail.value[detail.feature == feature].max())
            last[np.cumsum(rows.column("last_features")[i].as_py(), dtype=int)] += 1
            codes = rows.column("maxima")[i].values.to_numpy()
            np.testing.assert_allclose(value_of_code(codes), [fired[int(f)][i] for f in own], rtol=0.032)
        profile = store.rows("profiles", [sample_key(pair)])
        for column, values in (("samples_any", samples), ("samples_last", last), ("tokens", tokens), ("sums", sums)):
            assert profile.column(column)[0].as_py() == values.tolist(), column
        assert VALUE_OF_BITS[profile.column("maxima")[0].as_py()].tolist() == maxima.tolist()
        posting = store.rows("postings", [feature_key(segments[pair], feature) for feature in range(D_SAE)])
        assert len(posting) == D_SAE
        for feature in range(D_SAE):
            assert np.cumsum(posting.column("samples")[feature].as_py(), dtype=int).tolist() == sorted(
                fired.get(feature, {})
            )
            assert len(posting.column("last_samples")[feature]) == last[feature]


def test_directions_are_the_decoders_columns(indexed: Settings, release_dir: Path) -> None:
    home = open_home(indexed)
    with home.database.reading() as session:
        saes = {sae.layer: sae.id for sae in session.query(Sae)}
    W_dec = torch.load(release_dir / "layer2.sae.pt")["W_dec"]
    rows = home.store.rows(directions_table(32), [feature_key(saes[2], 7), feature_key(saes[2], 255)])
    np.testing.assert_allclose(rows.column("vector").to_pylist(), W_dec[:, [7, 255]].T, atol=1e-3)
    np.testing.assert_allclose(rows.column("norm").to_pylist(), [1.0, 1.0], rtol=1e-5)


def test_all_fields_of_a_row_are_kept(indexed: Settings) -> None:
    home = open_home(indexed)
    with home.database.reading() as session:
        dataset = session.query(Dataset).filter_by(name="problems").one()
    rows = home.store.rows("samples", [sample_key(dataset.id, i) for i in range(len(PROBLEMS))])
    assert [json.loads(record) for record in rows.column("record").to_pylist()] == PROBLEMS
    assert rows.column("id").to_pylist() == [row["id"] for row in PROBLEMS]


def config(index_args: dict[str, Any], data_dir: Path, **changes: Any) -> IndexConfig:
    names = changes.pop("names", ("songs",))
    return IndexConfig(**{**index_args, "datasets": tuple((n, str(data_dir / f"{n}.jsonl")) for n in names), **changes})


def test_a_second_call_says_so_and_writes_nothing(
    settings: Settings, index_args: dict[str, Any], data_dir: Path
) -> None:
    first = index(config(index_args, data_dir), settings)[0]
    before = {
        path: path.stat().st_mtime_ns
        for path in settings.home.rglob("*")
        if path.is_file() and "scopebase.db-" not in path.name
    }
    again = index(config(index_args, data_dir), settings)[0]
    after = {
        path: path.stat().st_mtime_ns
        for path in settings.home.rglob("*")
        if path.is_file() and "scopebase.db-" not in path.name
    }
    assert (first.already, again.already, again.run) == (False, True, first.run)
    assert {str(p) for p in after} == {str(p) for p in before}
    assert {p for p in after if after[p] != before[p]} <= {settings.home / "scopebase.db"}


def test_more_layers_later_index_only_those(settings: Settings, index_args: dict[str, Any], data_dir: Path) -> None:
    index(config(index_args, data_dir, layers="1"), settings)
    reports = index(config(index_args, data_dir), settings)
    layers = [(each.run, each.already, [name.split("/")[1] for name in each.saes]) for each in reports]
    assert layers == [(1, True, ["1-tiny"]), (2, False, ["0-tiny", "2-tiny", "3-tiny"])]
    assert len(pairs_of(settings)) == 4
    again = index(config(index_args, data_dir), settings)
    assert [(each.run, each.already, each.saes) for each in again] == [(r.run, True, r.saes) for r in reports]
    some = index(config(index_args, data_dir, layers="2"), settings)
    assert [each.run for each in some] == [2], "only the runs with an SAE that was asked for"


def test_layers_together_or_apart_give_the_same_rows(
    tmp_path: Path, index_args: dict[str, Any], data_dir: Path
) -> None:
    """And so do datasets in one command or in several."""
    together, apart = Settings.read(tmp_path / "a", {}), Settings.read(tmp_path / "b", {})
    index(config(index_args, data_dir, names=("songs", "tales"), layers="1,2"), together)
    for name in ("songs", "tales"):
        index(config(index_args, data_dir, names=(name,), layers="1,2"), apart)
    assert everything(together) == everything(apart)


def test_a_changed_file_is_a_new_version_and_mixes_with_nothing(
    tmp_path: Path, settings: Settings, index_args: dict[str, Any]
) -> None:
    path = write_jsonl(tmp_path / "data" / "songs.jsonl", SONGS)
    index(config(index_args, path.parent, layers="0"), settings)
    write_jsonl(path, SONGS[:-5])
    report = index(config(index_args, path.parent, layers="0"), settings)[0]
    assert (report.version, report.n_samples) == (2, len(SONGS) - 5)
    with open_home(settings).database.reading() as session:
        assert [(d.version, d.n_samples) for d in session.query(Dataset).order_by(Dataset.version)] == [
            (1, 45),
            (2, 40),
        ]


@pytest.mark.parametrize("mask", ["none", "special", "first"])
def test_masks_change_what_counts(
    settings: Settings, index_args: dict[str, Any], data_dir: Path, model_dir: Path, release_dir: Path, mask: str
) -> None:
    report = index(config(index_args, data_dir, layers="1", mask=mask), settings)[0]
    want = reference(model_dir, release_dir, [1], [row["text"] for row in SONGS], K, max_tokens=256, mask=mask)[1]
    row = Store(settings.store_url).rows("profiles", [sample_key(1)])
    assert report.n_tokens == want.n_tokens
    assert np.mean(np.array(row.column("samples_any")[0].as_py()) != (want.any > 0).sum(0)) < 0.01


def test_a_sample_without_a_token_that_counts_has_no_feature(
    settings: Settings, index_args: dict[str, Any], tmp_path: Path
) -> None:
    rows = [{"id": "a", "text": "the moon"}, {"id": "b", "text": "</s></s>"}]
    report = index(config(index_args, write_jsonl(tmp_path / "d" / "songs.jsonl", rows).parent, layers="0"), settings)[
        0
    ]
    assert (report.n_samples, report.n_empty) == (2, 1)
    forward = Store(settings.store_url).rows("forward", [sample_key(1, 1)]).to_pylist()[0]
    assert (forward["n_tokens"], forward["features"], forward["last_features"]) == (0, [], [])


def test_blocks_of_features_merging_and_folding_on_the_way_change_no_row(
    tmp_path: Path, index_args: dict[str, Any], data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = config(index_args, data_dir, layers="1,2", batch_tokens=16)
    plain, cut = (Settings.read(tmp_path / name, {}) for name in ("plain", "cut"))
    index(asked, plain)
    monkeypatch.setattr(seal, "BLOCK_POSTINGS", 50)
    monkeypatch.setattr(worker, "MERGE_EVERY", 1)
    monkeypatch.setattr(upkeep, "MANY_FRAGMENTS", 2)
    monkeypatch.setattr(fold, "FAN_IN", 2)
    monkeypatch.setattr(worker, "FAN_IN", 2)
    folded: list[int] = []
    monkeypatch.setattr(worker, "fold", lambda *given: folded.append(fold.fold(*given)))
    merged: list[str] = []
    monkeypatch.setattr(
        worker, "merge", lambda store, table, staged: merged.append(table) or upkeep.merge(store, table, staged)
    )
    index(asked, cut)
    assert everything(cut) == everything(plain)
    assert "forward" in merged
    assert sum(folded)


def test_an_interruption_right_after_staging_loses_no_file(
    settings: Settings, tmp_path: Path, index_args: dict[str, Any], data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C is delivered when the ledger's commit has just returned: the files are the ledger's by then."""
    plan, undisturbed = config(index_args, data_dir, layers="1"), Settings.read(tmp_path / "undisturbed", {})
    index(plan, undisturbed)
    stage, calls = Ledger.stage, itertools.count()

    def interrupted(self: Ledger, shard: Shard, staged: Any, stats: Any) -> None:
        stage(self, shard, staged, stats)
        if next(calls) % 2 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(Ledger, "stage", interrupted)
    for _ in range(10):
        with contextlib.suppress(KeyboardInterrupt):
            index(plan, settings)
            break
    assert next(calls) > 3
    assert everything(settings) == everything(undisturbed)


def test_small_batches_and_shards_give_the_same_counts(
    tmp_path: Path, index_args: dict[str, Any], data_dir: Path
) -> None:
    large, small = Settings.read(tmp_path / "a", {}), Settings.read(tmp_path / "b", {})
    index(config(index_args, data_dir, names=("tales",), layers="2"), large)
    index(config(index_args, data_dir, names=("tales",), layers="2", batch_tokens=40), small)
    a, b = everything(large), everything(small)
    assert a["tokens"] == b["tokens"]
    counts = [np.array(rows["profiles"][0]["samples_any"]) for rows in (a, b)]
    assert (counts[0] != counts[1]).mean() < 0.01  # float32 products differ in the last bit with their shape


def test_other_weights_under_a_known_name_are_refused(
    settings: Settings, index_args: dict[str, Any], data_dir: Path, tmp_path: Path
) -> None:
    index(config(index_args, data_dir, layers="0"), settings)
    before = everything(settings)
    other_saes = make_release(tmp_path / "SAE-Res-Tiny-W256-L0_6", 4, 32, D_SAE, K, seed=9)
    with pytest.raises(
        Conflict, match="SAE tiny-qwen3/0-tiny in this home has tensors .* index it under another name with --set"
    ):
        index(config(index_args, data_dir, layers="0", sae=str(other_saes)), settings)
    other_model = make_model(tmp_path / "tiny-qwen3", seed=5)
    with pytest.raises(Conflict, match="model 'tiny-qwen3' in this home has other weights .* --model-name"):
        index(config(index_args, data_dir, layers="0", model=str(other_model)), settings)
    same_other_k = shutil.copytree(index_args["sae"], tmp_path / "SAE-Res-Tiny-W256-L0_5")
    (same_other_k / "config.json").unlink()
    with pytest.raises(Conflict, match="was indexed with k=6, this call says k=5"):
        index(config(index_args, data_dir, layers="0", sae=str(same_other_k)), settings)
    assert everything(settings) == before
    index(config(index_args, data_dir, layers="0", sae=str(other_saes), set_name="other"), settings)


def test_a_model_that_overflows_leaves_the_run_to_be_taken_up(
    settings: Settings, index_args: dict[str, Any], data_dir: Path, tmp_path: Path
) -> None:
    bad = make_model(tmp_path / "overflowing")
    from safetensors.torch import load_file, save_file

    weights = load_file(bad / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"] *= float("inf")
    save_file(weights, bad / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WorkFailed, match="after block 0 is not finite"):
        index(config(index_args, data_dir, model=str(bad)), settings)
    with open_home(settings).database.reading() as session:
        assert session.query(Run).one().finished is None
    assert Store(settings.store_url).latest("forward").to_table(columns=["key"]).column("key").to_pylist() == [FENCE]


def test_saelens_saes_are_indexed_too(
    settings: Settings, index_args: dict[str, Any], data_dir: Path, tmp_path: Path
) -> None:
    """A jumprelu fires as often as it likes."""
    from safetensors.torch import save_file

    tensors = sae_tensors(1, 32, D_SAE)
    folder = tmp_path / "lens"
    folder.mkdir()
    save_file(
        {
            "W_enc": tensors["W_enc"].T.contiguous(),
            "W_dec": tensors["W_dec"].T.contiguous(),
            "b_enc": tensors["b_enc"],
            "b_dec": tensors["b_dec"],
            "threshold": torch.full((D_SAE,), 0.3),
        },
        folder / "sae_weights.safetensors",
    )
    (folder / "cfg.json").write_text(
        json.dumps(
            {
                "architecture": "jumprelu",
                "apply_b_dec_to_input": False,
                "metadata": {"hook_name": "blocks.1.hook_resid_post"},
            }
        )
    )
    report = index(config(index_args, data_dir, sae=str(folder), set_name="jump"), settings)[0]
    assert report.saes == ["tiny-qwen3/1-jump"]
    assert report.n_activations != report.n_tokens * K


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": "7"}, "has no SAE of layer 7"),
        ({"datasets": ()}, "name at least one dataset"),
        ({"datasets": (("a", "x"), ("a", "y"))}, "dataset 'a' is given twice"),
        ({"limit": 0}, "--limit 0"),
        ({"batch_tokens": 0}, "--batch-tokens 0"),
        ({"bad_rows": "ignore"}, "--bad-rows 'ignore'"),
        ({"mask": "everything"}, "--mask 'everything'"),
        ({"set_name": "Bad Name"}, "--set 'Bad Name'"),
        ({"max_tokens": 0}, "--max-tokens 0"),
        ({"template": "{nothing}"}, "has no field 'nothing'"),
        ({"device": "toaster"}, "--device 'toaster' cannot be used"),
    ],
)
def test_wrong_calls_are_refused_before_anything_is_written(
    settings: Settings, index_args: dict[str, Any], data_dir: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        index(config(index_args, data_dir, **changes), settings)
    assert not settings.home.exists()


def test_saes_of_another_model_are_refused(
    settings: Settings, index_args: dict[str, Any], data_dir: Path, tmp_path: Path
) -> None:
    wide = make_release(tmp_path / "wide-L0_4", 4, 48, 96, 4)
    with pytest.raises(
        InputError, match="reads residuals of width 48, model .* has width 32: they do not belong together"
    ):
        index(config(index_args, data_dir, sae=str(wide)), settings)
    deep = make_release(tmp_path / "deep-L0_4", 6, 32, 96, 4)
    with pytest.raises(InputError, match="has an SAE of layer 4, but model .* has 4 blocks, 0 to 3"):
        index(config(index_args, data_dir, sae=str(deep)), settings)
    assert not settings.home.exists()


def test_a_dry_run_tells_and_writes_nothing(settings: Settings, index_args: dict[str, Any], data_dir: Path) -> None:
    plan = config(index_args, data_dir, names=("problems", "songs", "tales"))
    told = estimate(plan, settings)
    assert not settings.home.exists()
    reports = index(plan, settings)
    assert told.n_tokens == sum(r.n_tokens + r.n_masked for r in reports)
    assert told.datasets[0].n_tokens_interval == (told.datasets[0].n_tokens,) * 2
    assert told.n_activations == pytest.approx(sum(r.n_activations for r in reports), rel=0.15)
    assert told.tokens_per_second > 0
    again = estimate(plan, settings)
    assert all(dataset.finished for dataset in again.datasets)
    assert again.n_tokens == 0
