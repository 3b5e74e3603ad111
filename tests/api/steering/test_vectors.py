"""Directions and what is made of them, against plain numpy over the SAEs' own files, the samples' own activations and the model itself."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from sqlalchemy import select

from api.app import create_app
from api.services.library import Library
from api.services.statistics import benjamini_hochberg
from api.services.steering import files
from api.services.steering.strengths import quantile
from api.services.steering.vectors import delete_vector, save_vector, show_vector
from indexer.live import open_live
from schema.errors import Conflict, InputError, NoModel, NotFound
from schema.home import open_home
from schema.lab import AuditEntry
from schema.packing import BIN_SHIFT, N_BINS, VALUE_OF_BITS
from schema.settings import Settings
from schema.steer import SteeringVector
from schema.tables import Model
from schema.wire.vectors import SavedVector, SaveVector
from tests.laboratory import make_lab
from tests.making import PROBLEMS, SONGS, TALES

K = 6
TEXTS = {"problems": PROBLEMS, "songs": SONGS, "tales": TALES}
SAE2, SAE1 = "tiny-qwen3/2-tiny", "tiny-qwen3/1-tiny"
MASKED = "special,first"


@cache
def plain(model: Path, release: Path, layer: int) -> dict[str, list[np.ndarray]]:
    """Dataset -> each sample's activations (n_counting, d_sae) after top-k, as float16, one sample at a time in dense float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model).eval()
    tensors = torch.load(release / f"layer{layer}.sae.pt", weights_only=True)
    special, found = set(tokenizer.all_special_ids), {}
    for name, rows in TEXTS.items():
        found[name] = []
        for row in rows:
            ids = tokenizer(row["text"])["input_ids"]
            keep = [p for p, token in enumerate(ids) if p and token not in special]
            with torch.no_grad():
                hidden = network(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer + 1][0][keep]
            value, place = (hidden @ tensors["W_enc"].T + tensors["b_enc"]).topk(K, dim=1)
            acts = torch.zeros(len(keep), 256).scatter(1, place, value.relu())
            found[name].append(acts.half().float().numpy())
    return found


def columns(release: Path, layer: int) -> np.ndarray:
    """(d_sae, d_model) as the home keeps them."""
    return torch.load(release / f"layer{layer}.sae.pt", weights_only=True)["W_dec"].T.half().float().numpy()


@pytest.fixture
def books(indexed: Settings, tmp_path: Path) -> Iterator[Library]:
    shutil.copytree(indexed.home, tmp_path / "home")
    home = open_home(Settings.read(tmp_path / "home", {}))
    yield Library(home)
    home.close()


@pytest.fixture
def web(books: Library) -> TestClient:
    return TestClient(create_app(books.home))


@pytest.fixture(scope="module")
def live(indexed: Settings, model_dir: Path) -> Iterator[Any]:
    home = open_home(indexed)
    yield open_live(home, str(model_dir))
    home.close()


def save(books: Library, live: Any = None, **body: Any) -> SavedVector:
    return save_vector(books, live, SaveVector.model_validate({"name": "v", **body}), "ann")


def array(saved: SavedVector, layer: int) -> np.ndarray:
    return np.array(next(v.vector for v in saved.vectors if v.layer == layer), np.float32)


def busiest(model_dir: Path, release_dir: Path) -> int:
    acts = np.concatenate([a for each in plain(model_dir, release_dir, 2).values() for a in each])
    return int((acts > 0).sum(0).argmax())


def test_a_features_direction_and_how_large_its_activations_are(
    web: TestClient, model_dir: Path, release_dir: Path
) -> None:
    index = busiest(model_dir, release_dir)
    answer = web.get(f"/v1/steering-vectors/{SAE2}/{index}").json()
    every = np.concatenate([a[:, index] for each in plain(model_dir, release_dir, 2).values() for a in each])
    fired = every[every > 0].astype(np.float64)
    column = columns(release_dir, 2)[index]
    assert answer["vector"] == column.tolist()
    assert answer["sha256"] == hashlib.sha256(column.astype("<f4").tobytes()).hexdigest()
    assert (answer["layer"], answer["d_model"], answer["precision"]) == (2, 32, "float16")
    assert answer["norm"] == pytest.approx(1.0, abs=1e-6)  # the made SAEs' columns have length 1 before float16
    typical = answer["typical"]
    assert (typical["n_fired"], typical["n_tokens"]) == (len(fired), len(every))
    assert typical["mean"] == pytest.approx(fired.mean(), rel=1e-3)
    assert typical["max"] == pytest.approx(fired.max(), rel=1e-3)
    for share, value in typical["quantiles"].items():
        exact = float(np.quantile(fired, float(share)))
        assert exact / 1.42 < value < exact * 1.42
    assert sum(typical["histogram"]["counts"]) == len(fired)
    assert set(answer["provenance"]["runs"]) == {"problems", "songs", "tales"}


def test_suggested_strengths_follow_their_rule(web: TestClient, model_dir: Path, release_dir: Path) -> None:
    answer = web.get(f"/v1/steering-vectors/{SAE2}/{busiest(model_dir, release_dir)}").json()
    absolute = {s["name"]: s["strength"] for s in answer["suggested"] if s["unit"] == "absolute" and s["name"]}
    mean = answer["typical"]["mean"]
    assert absolute == {"light": mean / 2, "medium": mean, "strong": 2 * mean}
    assert [s["strength"] / mean for s in answer["suggested"] if s["unit"] == "absolute"] == [0.25, 0.5, 1, 2, 4]
    shares = {s["name"]: s["strength"] for s in answer["suggested"] if s["unit"] == "residual_norm"}
    assert shares == {"light": 0.1, "medium": 0.2, "strong": 0.35}


def test_a_feature_that_never_fires_has_no_typical_size(web: TestClient, model_dir: Path, release_dir: Path) -> None:
    acts = np.concatenate([a for each in plain(model_dir, release_dir, 2).values() for a in each])
    silent = int(np.flatnonzero(acts.max(0) == 0)[0])
    answer = web.get(f"/v1/steering-vectors/{SAE2}/{silent}").json()
    assert (answer["typical"]["n_fired"], answer["typical"]["mean"], answer["typical"]["quantiles"]) == (0, None, {})
    assert {s["unit"] for s in answer["suggested"]} == {"residual_norm"}


def test_a_quantile_lies_in_the_bin_of_the_exact_one() -> None:
    values = np.sort(np.random.default_rng(0).lognormal(0, 2, 999)).astype(np.float16).astype(np.float64)
    bins = np.bincount(np.searchsorted(VALUE_OF_BITS, values) >> BIN_SHIFT, minlength=N_BINS)
    for share in (0.01, 0.5, 0.99, 1.0):
        exact = values[max(0, int(np.ceil(share * 999)) - 1)]
        assert 1 / 1.42 <= quantile(bins, share, values[-1]) / exact <= 1.42
    assert quantile(bins, 1.0, values[-1]) == values[-1]


def test_neighbours_are_the_nearest_columns(web: TestClient, release_dir: Path) -> None:
    near = web.get(f"/v1/steering-vectors/{SAE2}/7?neighbours=3").json()["neighbours"]
    every = columns(release_dir, 2)
    cosines = (every @ every[7]) / np.linalg.norm(every, axis=1) / np.linalg.norm(every[7])
    cosines[7] = -2
    assert [n["index"] for n in near] == np.argsort(-cosines)[:3].tolist()


def test_components_are_summed_at_their_own_layers(books: Library, release_dir: Path) -> None:
    parts = [
        {"feature": f"{SAE2}/7", "weight": 2.0},
        {"feature": f"{SAE2}/9", "weight": -0.5},
        {"feature": f"{SAE1}/3"},
        {"feature": f"{SAE1}/4", "layer": 2},
    ]
    saved = save(books, components=parts)
    two, one = columns(release_dir, 2).astype(np.float64), columns(release_dir, 1).astype(np.float64)
    assert (saved.id, saved.layers, saved.made) == ("v@1", [1, 2], "components")
    np.testing.assert_array_equal(array(saved, 2), (2 * two[7] - 0.5 * two[9] + one[4]).astype(np.float32))
    np.testing.assert_array_equal(array(saved, 1), one[3].astype(np.float32))
    assert saved.norms == pytest.approx([np.linalg.norm(array(saved, 1)), np.linalg.norm(array(saved, 2))])
    assert saved.provenance["saes"].keys() == {SAE1, SAE2}
    assert saved.provenance["request"]["components"][3]["layer"] == 2


def test_a_saved_vector_is_a_component_too(books: Library, release_dir: Path) -> None:
    save(books, components=[{"feature": f"{SAE2}/7"}, {"feature": f"{SAE1}/3"}])
    again = save(
        books, name="w", components=[{"vector": "v", "weight": 3}, {"vector": "v@1", "layer": 1, "weight": -1}]
    )
    two, one = columns(release_dir, 2), columns(release_dir, 1)
    np.testing.assert_allclose(array(again, 2), 3 * two[7], rtol=1e-6)
    np.testing.assert_allclose(array(again, 1), 2 * one[3], rtol=1e-6)
    assert again.provenance["vectors"] == {"v@1": show_vector(books, "v@1").sha256}


def test_normalised_components_and_results(books: Library, release_dir: Path) -> None:
    save(books, name="long", components=[{"feature": f"{SAE2}/9", "weight": 40}])
    parts = [{"feature": f"{SAE2}/7"}, {"vector": "long", "weight": 2}]
    unit = [c / np.linalg.norm(c) for c in columns(release_dir, 2).astype(np.float64)[[7, 9]]]
    each = save(books, normalise="components", components=parts)
    np.testing.assert_allclose(array(each, 2), unit[0] + 2 * unit[1], rtol=1e-5, atol=1e-7)
    whole = save(books, normalise="result", components=parts)
    assert float(np.linalg.norm(array(whole, 2))) == pytest.approx(1.0, abs=1e-6)
    raw = columns(release_dir, 2)[7] + 80 * columns(release_dir, 2)[9]
    np.testing.assert_allclose(array(whole, 2), raw / np.linalg.norm(raw), rtol=1e-4, atol=1e-6)


def decoded(model_dir: Path, release_dir: Path, layer: int, a: str, b: str) -> tuple[np.ndarray, np.ndarray]:
    """(weights, vector) by dense sums over every token of both datasets."""
    acts = plain(model_dir, release_dir, layer)
    means = [np.concatenate(acts[name]).astype(np.float64).mean(0) for name in (a, b)]
    weights = means[0] - means[1]
    return weights, weights @ columns(release_dir, layer).astype(np.float64)


def test_decoded_means_are_those_of_every_token(books: Library, model_dir: Path, release_dir: Path) -> None:
    saved = save(books, decoded_means={"a": "songs", "b": "tales", "saes": [SAE2, SAE1]})
    for layer in (1, 2):
        weights, vector = decoded(model_dir, release_dir, layer, "songs", "tales")
        np.testing.assert_allclose(array(saved, layer), vector, rtol=1e-3, atol=2e-5)
        counted = next(each for each in saved.provenance["layers"] if each["layer"] == layer)
        strongest = int(np.abs(weights).argmax())
        assert counted["strongest"][0]["feature"] == f"tiny-qwen3/{layer}-tiny/{strongest}"
        assert counted["strongest"][0]["difference"] == pytest.approx(weights[strongest], rel=1e-3)
        assert counted["n_features"] == int(np.count_nonzero(weights))
        assert counted["n_tokens"] == [
            sum(map(len, plain(model_dir, release_dir, layer)[n])) for n in ("songs", "tales")
        ]
    assert {s.unit for s in saved.suggested} == {"absolute", "residual_norm"}


def test_decoded_means_of_the_features_that_differ_most(books: Library, model_dir: Path, release_dir: Path) -> None:
    saved = save(books, decoded_means={"a": "songs", "b": "tales", "saes": [SAE2], "top": 5})
    weights, _ = decoded(model_dir, release_dir, 2, "songs", "tales")
    kept = np.argsort(-np.abs(weights))[:5]
    expected = weights[kept] @ columns(release_dir, 2)[kept].astype(np.float64)
    np.testing.assert_allclose(array(saved, 2), expected, rtol=1e-3, atol=2e-5)
    assert saved.provenance["layers"][0]["n_features"] == 5


def test_decoded_means_of_significant_features(books: Library, model_dir: Path, release_dir: Path) -> None:
    """Rates tested by scipy's own Fisher test, one feature at a time."""
    from scipy.stats import fisher_exact

    acts = plain(model_dir, release_dir, 2)
    fires = [np.array([(sample > 0).any(0) for sample in acts[name]]).sum(0) for name in ("songs", "tales")]
    tested = np.flatnonzero(fires[0] + fires[1])
    tables = [[[fires[0][f], 45 - fires[0][f]], [fires[1][f], 50 - fires[1][f]]] for f in tested]
    q = benjamini_hochberg(np.array([fisher_exact(t).pvalue for t in tables]))
    kept = tested[q <= 0.01]
    assert 0 < len(kept) < len(tested)
    weights, _ = decoded(model_dir, release_dir, 2, "songs", "tales")
    saved = save(books, decoded_means={"a": "songs", "b": "tales", "saes": [SAE2], "max_q": 0.01})
    expected = weights[kept] @ columns(release_dir, 2)[kept].astype(np.float64)
    np.testing.assert_allclose(array(saved, 2), expected, rtol=1e-3, atol=2e-5)


def residuals(model_dir: Path, texts: list[str], layer: int, last: bool = False) -> np.ndarray:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, network = (
        AutoTokenizer.from_pretrained(model_dir),
        AutoModelForCausalLM.from_pretrained(model_dir).eval(),
    )
    special, found = set(tokenizer.all_special_ids), []
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        keep = [p for p, token in enumerate(ids) if p and token not in special]
        with torch.no_grad():
            hidden = network(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer + 1][0]
        found.append(hidden[keep[-1:] if last else keep].double().numpy())
    return np.concatenate(found)


@pytest.mark.parametrize("tokens", ["all", "last"])
def test_residual_means_of_texts(books: Library, live: Any, model_dir: Path, tokens: str) -> None:
    a, b = [row["text"] for row in SONGS[:9]], [row["text"] for row in TALES[:6]]
    saved = save(books, live, residual_means={"a": a, "b": b, "layers": [0, 2], "tokens": tokens})
    for layer in (0, 2):
        one, two = (residuals(model_dir, texts, layer, tokens == "last") for texts in (a, b))
        np.testing.assert_allclose(array(saved, layer), one.mean(0) - two.mean(0), atol=1e-5)
        told = saved.provenance["mean_norms"][str(layer)]
        assert told == pytest.approx([np.linalg.norm(one.mean(0)), np.linalg.norm(two.mean(0))], rel=1e-4)
    halves = [residuals(model_dir, x[i::2], 2, tokens == "last").mean(0) for x in (a, b) for i in (0, 1)]
    one, two = halves[0] - halves[2], halves[1] - halves[3]
    cosine = one @ two / np.linalg.norm(one) / np.linalg.norm(two)
    assert saved.provenance["agreement"]["2"] == pytest.approx(cosine, abs=1e-4)


def test_residual_means_of_drawn_samples(books: Library, live: Any, model_dir: Path) -> None:
    """The first n by SHA-256 of seed and id, of those that meet the condition."""
    asked = {
        "a": {"dataset": "songs", "n": 40, "where": {"mood": "sad"}},
        "b": {"dataset": "problems", "n": 7},
        "layers": [1],
        "seed": 5,
    }
    saved = save(books, live, residual_means=asked)

    def drawn(rows: list[dict[str, Any]], n: int) -> list[str]:
        return [
            row["text"] for row in sorted(rows, key=lambda r: hashlib.sha256(f"5\n{r['id']}".encode()).digest())[:n]
        ]

    sad = [row for row in SONGS if row["mood"] == "sad"]
    one, two = residuals(model_dir, drawn(sad, 40), 1), residuals(model_dir, drawn(PROBLEMS, 7), 1)
    np.testing.assert_allclose(array(saved, 1), one.mean(0) - two.mean(0), atol=1e-5)
    sides = saved.provenance["sides"]
    assert [(s["n_texts"], s["n_tokens"], s["n_available"]) for s in sides] == [
        (len(sad), len(one), len(sad)),
        (7, len(two), 60),
    ]


def test_long_texts_are_kept_as_their_hash(books: Library, live: Any) -> None:
    long = ["a cat " * 3_000] * 9
    saved = save(books, live, residual_means={"a": long, "b": ["the moon"], "layers": [0], "max_tokens": 20})
    kept = saved.provenance["request"]["residual_means"]
    assert kept["a"] == {"n": 9, "sha256": hashlib.sha256(json.dumps(long).encode()).hexdigest()}
    assert kept["b"] == ["the moon"]


FEATURE = {"feature": f"{SAE2}/7"}
MEANS = {"a": "songs", "b": "tales"}


@pytest.mark.parametrize(
    ("body", "error", "sentence"),
    [
        ({"components": [{"feature": f"{SAE2}/256"}]}, NotFound, "has features 0 to 255, and none 256"),
        ({"components": [{"vector": "w"}]}, NotFound, "no vector named 'w'"),
        ({"components": [FEATURE, {**FEATURE, "weight": -1}]}, Conflict, "at layer 2 nothing is left"),
        ({"components": [{**FEATURE, "weight": 0}]}, Conflict, "at layer 2 nothing is left"),
        (
            {"components": [{**FEATURE, "layer": 4}]},
            InputError,
            r"components\.0: layer 4, but tiny-qwen3 has layers 0 to 3",
        ),
        ({"decoded_means": MEANS}, Conflict, "name an SAE with --sae"),
        ({"decoded_means": {"a": "songs", "b": "songs", "saes": [SAE2]}}, Conflict, "are the same dataset; name two"),
        ({"decoded_means": {"a": "songs", "b": "talse", "saes": [SAE2]}}, NotFound, "did you mean tales"),
        (
            {"decoded_means": {**MEANS, "saes": [SAE2], "max_q": 1e-300}},
            Conflict,
            "no feature of tiny-qwen3/2-tiny tells",
        ),
        ({"residual_means": {"a": ["x"], "b": ["y"], "layers": [0]}}, NoModel, "no model is loaded, so residuals"),
    ],
)
def test_what_cannot_be_saved(books: Library, body: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        save(books, **body)
    with books.home.database.reading() as session:
        assert session.scalars(select(SteeringVector)).all() == []


@pytest.mark.parametrize(
    ("asked", "error", "sentence"),
    [
        ({"a": ["x y"], "b": ["z"], "layers": [4]}, InputError, "layer 4, but tiny-qwen3 has layers 0 to 3"),
        ({"a": {"dataset": "song"}, "b": ["z"], "layers": [0]}, NotFound, "did you mean songs"),
        (
            {"a": ["x y"], "b": ["z"], "layers": [0], "max_tokens": 1},
            InputError,
            "residual_means.a: none of its tokens counts",
        ),
        (
            {"a": {"dataset": "songs"}, "b": {"dataset": "songs", "where": {"mood": "sad"}}, "layers": [0]},
            Conflict,
            "samples of songs in common",
        ),
        (
            {"a": {"dataset": "songs", "where": {"mood": "odd"}}, "b": ["z"], "layers": [0]},
            InputError,
            "no sample of songs meets",
        ),
    ],
)
def test_residuals_that_cannot_be_compared(
    books: Library, live: Any, asked: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        save(books, live, residual_means=asked)


def test_versions_pages_filters_and_deletion(web: TestClient, books: Library) -> None:
    for name, index in (("b", 1), ("a", 2), ("b", 3), ("c", 4)):
        made = web.post("/v1/steering-vectors", json={"name": name, "components": [{"feature": f"{SAE2}/{index}"}]})
        assert made.status_code == 201
    assert made.json()["author"] == "local"
    web.post(
        "/v1/steering-vectors", json={"name": "d", "description": "A Moon", "components": [{"feature": f"{SAE1}/1"}]}
    )

    def ids(**params: Any) -> list[str]:
        return [item["id"] for item in web.get("/v1/steering-vectors", params=params).json()["data"]]

    assert ids() == ["a@1", "b@2", "c@1", "d@1"]
    assert ids(name="b") == ["b@1", "b@2"]
    assert ids(layer=1) == ["d@1"]
    assert ids(text="moon") == ["d@1"]
    assert ids(made="import") == ids(author="eve") == []
    first = web.get("/v1/steering-vectors", params={"limit": 3}).json()
    assert ids(limit=3, cursor=first["next_cursor"]) == ["d@1"]
    assert web.get("/v1/steering-vectors", params={"model": "x"}).status_code == 404
    assert [v["id"] for v in web.delete("/v1/steering-vectors/b").json()["data"]] == ["b@1", "b@2"]
    assert ids() == ["a@1", "c@1", "d@1"]
    assert ids(deleted=True) == ["a@1", "b@2", "c@1", "d@1"]
    gone = web.get("/v1/steering-vectors/b")
    assert (gone.status_code, "b@2" in gone.json()["detail"]) == (404, True)
    assert web.get("/v1/steering-vectors/b@1").json()["deleted_at"] is not None
    assert web.delete("/v1/steering-vectors/b@1").status_code == 409
    use = web.post("/v1/steering-vectors", json={"name": "e", "components": [{"vector": "b@1"}]})
    assert (use.status_code, "was deleted on" in use.json()["detail"]) == (409, True)
    again = web.post("/v1/steering-vectors", json={"name": "b", "components": [{"feature": f"{SAE2}/5"}]})
    assert again.json()["id"] == "b@3"
    with books.home.database.reading() as session:
        noted = session.execute(select(AuditEntry.action, AuditEntry.target).where(AuditEntry.action.like("vector.%")))
        assert [tuple(row) for row in noted][-3:] == [
            ("vector.delete", "b@1"), ("vector.delete", "b@2"), ("vector.create", "b@3"),
        ]  # fmt: skip


def test_who_names_the_version_they_know_is_told_of_a_newer_one(books: Library) -> None:
    def based_on(version: int) -> int:
        return save(books, components=[{"feature": f"{SAE2}/3"}], based_on=version).version

    with pytest.raises(Conflict, match="vector v is not there, you saw 1: somebody changed it; read it again"):
        based_on(1)
    assert [based_on(0), based_on(1)] == [1, 2]
    for known in (0, 1, 3):
        with pytest.raises(
            Conflict, match=f"vector v is at version 2, you saw {known}: somebody changed it; read it again"
        ):
            based_on(known)
    delete_vector(books, "v@2", "ann")  # what `v` means by now is its version 1
    with pytest.raises(Conflict, match="vector v is at version 1, you saw 2"):
        based_on(2)
    assert based_on(1) == 3


def test_versions_count_up_whoever_saves_at_once(books: Library) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda i: save(books, components=[{"feature": f"{SAE2}/{i}"}]).version, range(12)))
    assert sorted(made) == list(range(1, 13))


def test_a_request_says_one_thing(web: TestClient) -> None:
    both = {"name": "v", "components": [FEATURE], "decoded_means": MEANS}
    for body in ({"name": "v"}, both, {"name": "a/b", "components": [FEATURE]}, {"name": "v", "components": [{}]}):
        assert web.post("/v1/steering-vectors", json=body).status_code == 422
    for weight in ("NaN", "Infinity", "1e999", "null"):
        raw = f'{{"name": "v", "components": [{{"feature": "{SAE2}/7", "weight": {weight}}}]}}'
        sent = web.post("/v1/steering-vectors", content=raw, headers={"content-type": "application/json"})
        assert sent.status_code == 422, weight


@pytest.mark.parametrize("format", ["json", "safetensors", "gguf", "easysteer"])
def test_files_out_and_in_keep_every_bit(web: TestClient, books: Library, format: str) -> None:
    save(
        books,
        components=[{"feature": f"{SAE2}/7", "weight": 1 / 3}, {"feature": "tiny-qwen3/0-tiny/3", "weight": -7.1}],
    )
    for name in ("v", "v@1", f"{SAE2}/7"):
        out = web.get(f"/v1/steering-vectors/{name}", params={"format": format})
        assert out.status_code == 200
        back = web.post("/v1/steering-vectors/import?name=w&file=x", content=out.content)
        assert back.status_code == 201, back.text
        expected = web.get(f"/v1/steering-vectors/{name}").json()
        assert back.json()["sha256"] == expected["sha256"]
        assert (back.json()["model"], back.json()["made"]) == ("tiny-qwen3", "import")
        made = back.json()["provenance"]
        assert (made["format"], made["file_sha256"]) == (format, hashlib.sha256(out.content).hexdigest())


def test_a_file_says_its_name(web: TestClient, books: Library) -> None:
    save(books, name="calm", components=[FEATURE])
    data = web.get("/v1/steering-vectors/calm?format=gguf").content
    assert web.post("/v1/steering-vectors/import", content=data).json()["id"] == "calm@2"
    unnamed = web.get(f"/v1/steering-vectors/{SAE2}/7?format=gguf").content
    assert "give one of letters" in web.post("/v1/steering-vectors/import", content=unnamed).json()["detail"]


def test_a_file_of_cvector_generator_is_shifted(web: TestClient) -> None:
    data = files.write(files.VectorFile({1: np.ones(32, np.float32)}), "gguf")
    shifted = web.post("/v1/steering-vectors/import?name=w&layer_shift=-1", content=data)
    assert shifted.json()["layers"] == [0]
    below = web.post("/v1/steering-vectors/import?name=w&layer_shift=-2", content=data)
    assert "its layers shifted by -2: layer -1, but tiny-qwen3 has layers 0 to 3" in below.json()["detail"]


def test_a_file_must_fit_a_model(web: TestClient, books: Library) -> None:
    def sent(width: int, said: str | None = None, **params: str) -> tuple[int, str]:
        data = files.write(files.VectorFile({1: np.ones(width, np.float32)}, said), "safetensors")
        answer = web.post("/v1/steering-vectors/import", params={"name": "w", **params}, content=data)
        return answer.status_code, answer.json().get("detail", "")

    assert sent(31) == (422, "the file's vectors have 31 numbers, and the home has tiny-qwen3 (32)")
    assert sent(31, "tiny-qwen3")[1] == "the file's vectors have 31 numbers, and tiny-qwen3 has 32"
    assert sent(31, model="tiny-qwen3")[0] == 422
    assert sent(32)[0] == 201
    assert sent(32, "gpt2") == (
        409,
        "the file fits tiny-qwen3 and says that it is for 'gpt2'; name the model that it is for",
    )
    assert sent(32, model="gpt2")[0] == 404
    with books.home.database.writing() as session:
        session.add(Model(name="twin", source="t", revision="1", family="x", n_layers=1, d_model=32, context=None,
                          tokenizer_sha256="0" * 64))  # fmt: skip
    assert sent(32) == (409, "the file fits tiny-qwen3 or twin; name the model that it is for")
    assert sent(32, model="twin")[1] == "the file: layer 1, but twin has layers 0 to 0"
    assert sent(32, "tiny-qwen3")[0] == 201


def test_lm_evals_table(tmp_path: Path) -> None:
    """Of SAEs that SAELens knows by a name; the home is made without activations."""
    import pyarrow as pa

    from schema.layout import directions_table, feature_key, schema_of
    from schema.tables import Sae

    books = make_lab(tmp_path)
    with books.home.database.writing() as session:
        for sae in session.scalars(select(Sae)):
            sae.release = "Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_100"
        (first, second) = [sae.id for sae in session.scalars(select(Sae).order_by(Sae.layer))]
    books.home.ensure_table(directions_table(4))
    table, rng = directions_table(4), np.random.default_rng(0)
    import lance

    keys = [feature_key(first, 5), feature_key(second, 8)]
    rows = [{"key": k, "norm": 1.0, "vector": rng.standard_normal(4).astype(np.float16).tolist()} for k in keys]
    lance.write_dataset(pa.Table.from_pylist(rows, schema_of(table)), books.store.uri(table), mode="append")
    books.store.refresh()
    web = TestClient(create_app(books.home))
    parts = [{"feature": "m/3-tiny/5", "weight": 2.5}, {"feature": "m/4-tiny/8", "weight": -1.0}]
    saved = web.post("/v1/steering-vectors", json={"name": "v", "components": parts}).json()
    out = web.get("/v1/steering-vectors/v?format=lm-eval")
    assert out.headers["content-type"].startswith("text/csv")
    assert out.text.splitlines() == [
        "loader,action,sparse_model,hookpoint,feature_index,steering_coefficient,sae_id,description",
        "sae_lens,add,qwen-scope-3-8b-base-w64k-l100,layers.3,5,2.5,layer3,m/3-tiny/5",
        "sae_lens,add,qwen-scope-3-8b-base-w64k-l100,layers.4,8,-1.0,layer4,m/4-tiny/8",
    ]
    back = web.post("/v1/steering-vectors/import?name=w", content=out.content)
    assert back.json()["sha256"] == saved["sha256"]
    clamped = out.content.replace(b"add", b"clamp")
    assert "only `add` is read" in web.post("/v1/steering-vectors/import?name=w", content=clamped).json()["detail"]
    web.post("/v1/steering-vectors", json={"name": "u", "normalise": "result", "components": parts})
    assert "is no plain sum of features" in web.get("/v1/steering-vectors/u?format=lm-eval").json()["detail"]
    books.home.close()


def test_vectors_are_kept_alike_in_either_database(tmp_path: Path, database_url: str) -> None:
    """Bytes, versions, filters and deletion on SQLite and PostgreSQL, without activations: the vectors come as files."""
    books = make_lab(tmp_path, database_url)
    web = TestClient(create_app(books.home))
    vector = np.array([0.1, -2.5, 1e-30, 3e38], np.float32)
    for layers in ({3: vector}, {3: vector, 4: -vector}):
        data = files.write(files.VectorFile(layers, "m"), "safetensors")
        assert web.post("/v1/steering-vectors/import?name=v&description=calm", content=data).status_code == 201
    assert [i["id"] for i in web.get("/v1/steering-vectors?name=v").json()["data"]] == ["v@1", "v@2"]
    assert [i["id"] for i in web.get("/v1/steering-vectors?layer=4&made=import&text=CALM").json()["data"]] == ["v@2"]
    shown = web.get("/v1/steering-vectors/v").json()
    assert np.array(shown["vectors"][1]["vector"], np.float32).tobytes() == (-vector).tobytes()
    mixed = {"name": "w", "components": [{"vector": "v@1", "weight": 2}, {"vector": "v@2", "layer": 4}]}
    refused = web.post("/v1/steering-vectors", json=mixed)
    assert "beyond what float32 holds" in refused.json()["detail"]
    web.delete("/v1/steering-vectors/v@2")
    assert web.get("/v1/steering-vectors/v").json()["id"] == "v@1"
    books.home.close()
