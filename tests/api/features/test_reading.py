"""Texts to features: a new text, a stored sample, and two sets of texts, against dense matrices."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer

from api.app import create_app
from api.services.features import contrast as contrasting
from api.services.features.contrast import contrast
from api.services.features.samples import stored_sample
from api.services.library import Library
from indexer.live import Live, open_live
from schema.errors import InputError, NoModel, NotFound
from schema.home import open_home
from schema.settings import Settings
from schema.wire.contrast import ContrastRequest
from tests.making import PROBLEMS, SONGS, TALES

SAE = "tiny-qwen3/2-tiny"
OTHER = "tiny-qwen3/1-tiny"


@pytest.fixture(scope="module")
def live(indexed: Settings, model_dir: Path) -> Live:
    return open_live(open_home(indexed), str(model_dir))


@pytest.fixture(scope="module")
def client(indexed: Settings, live: Live) -> Iterator[TestClient]:
    with TestClient(create_app(open_home(indexed), live), raise_server_exceptions=False) as made:
        yield made


@pytest.fixture(scope="module")
def dense(model_dir: Path, release_dir: Path) -> Any:
    """(text, layer) -> (n_tokens, 256) activations, position 0 (the special <s>) at zero; nothing of the indexer used."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    network = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    kept: dict[int, torch.Tensor] = {}
    for layer, block in enumerate(network.model.layers):
        block.register_forward_hook(
            lambda _m, _i, out, layer=layer: kept.__setitem__(layer, (out[0] if isinstance(out, tuple) else out)[0])
        )

    def read(text: str, layer: int = 2) -> np.ndarray:
        sae = torch.load(release_dir / f"layer{layer}.sae.pt", weights_only=True)
        with torch.no_grad():
            network(input_ids=torch.tensor([tokenizer(text)["input_ids"][:256]]))
        pre = kept[layer].reshape(-1, 32) @ sae["W_enc"].T + sae["b_enc"]
        value, place = pre.topk(6, dim=1)
        acts = torch.zeros_like(pre).scatter(1, place, value.relu()).numpy()
        acts[0] = 0
        return acts

    return read


def ask(client: TestClient, **body: Any) -> Any:
    response = client.post("/v1/inspect", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def check_reading(reading: Any, acts: np.ndarray, top: int, overall: int) -> None:
    """A reading against the dense activations of its text."""
    assert reading["n_features"] == (acts > 0).any(0).sum()
    assert reading["n_activations"] == (acts > 0).sum()
    for row, found in zip(acts, reading["tokens"], strict=True):
        order = np.lexsort((np.arange(256), -row))[: min(top, int((row > 0).sum()))]
        assert [each["activation"] for each in found] == pytest.approx(row[order], rel=1e-3)
        assert {each["index"] for each in found} <= set(np.flatnonzero(row > 0))
        assert len(found) == len(order)
    best = acts.max(0)
    found = reading["features"]
    assert [f["activation"] for f in found] == pytest.approx(np.sort(best)[::-1][:overall], rel=1e-3)
    for each in found:
        column = acts[:, each["index"]]
        assert each["activation"] == pytest.approx(column.max(), rel=1e-3)
        assert column[each["position"]] == pytest.approx(column.max(), rel=1e-3)
        assert each["tokens"] == (column > 0).sum()


def test_a_new_text_in_several_saes(client: TestClient, dense: Any) -> None:
    text = "Ann sings under the moon, and the dog sleeps."
    answer = ask(client, text=text, saes=[SAE, OTHER], top=4, overall=12)
    assert [reading["sae"] for reading in answer["saes"]] == [SAE, OTHER]
    for reading, layer in zip(answer["saes"], (2, 1), strict=True):
        check_reading(reading, dense(text, layer), 4, 12)
        assert reading["provenance"]["mask"] == "special,first"
    assert answer["model"] == "tiny-qwen3"
    assert [token["counts"] for token in answer["tokens"]] == [False] + [True] * (answer["n_tokens"] - 1)
    assert "".join(token["text"] for token in answer["tokens"][1:]) == text
    assert answer["n_counting"] == answer["n_tokens"] - 1


def test_token_ids_and_a_filter(client: TestClient, dense: Any) -> None:
    text = "the moon gives five red apples"
    whole = ask(client, text=text, sae=SAE, top=6, overall=50)
    same = ask(client, token_ids=[token["id"] for token in whole["tokens"]], sae=SAE, top=6, overall=50)
    assert same["saes"][0]["tokens"] == whole["saes"][0]["tokens"]
    wanted = [each["feature"] for each in whole["saes"][0]["features"][3:5]]
    some = ask(client, text=text, sae=SAE, features=wanted)["saes"][0]
    assert {f["feature"] for f in some["features"]} == set(wanted)
    assert some["n_features"] == 2
    assert some["n_activations"] == sum(f["tokens"] for f in whole["saes"][0]["features"][3:5])


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"sae": SAE}, 422, "give either text or token_ids"),
        ({"sae": SAE, "text": "a", "token_ids": [1]}, 422, "give either text or token_ids"),
        ({"text": "a"}, 409, "name an SAE with --sae"),
        ({"text": "a", "sae": "tiny-qwen3/9-tiny"}, 404, "no SAE named"),
        ({"token_ids": [4000], "sae": SAE}, 422, "token id 4,000 is none of the model's"),
        ({"text": "a", "sae": SAE, "features": [f"{OTHER}/3"]}, 422, "is of an SAE that is not asked for"),
        ({"text": "a", "sae": SAE, "mask": "last"}, 422, "mask"),
    ],
)
def test_what_cannot_be_inspected(client: TestClient, body: Any, status: int, words: str) -> None:
    response = client.post("/v1/inspect", json=body)
    assert response.status_code == status
    assert words in response.json()["detail"]


def test_without_a_model_look_ups_work_and_texts_do_not(indexed: Settings) -> None:
    with TestClient(create_app(open_home(indexed)), raise_server_exceptions=False) as bare:
        for path, body in (
            ("/inspect", {"text": "a", "sae": SAE}),
            ("/features/contrast", {"positive": ["a"], "negative": ["b"]}),
        ):
            response = bare.post(f"/v1{path}", json=body)
            assert response.status_code == 503
            assert "scopebase serve --model M" in response.json()["detail"]
        assert bare.get("/v1/samples/songs/s3", params={"sae": SAE}).status_code == 200
        assert "model" not in bare.get("/v1/ready").json()["checks"]


def test_readiness_speaks_of_the_model(client: TestClient) -> None:
    assert client.get("/v1/ready").json()["checks"]["model"] == "ok"


def test_a_stored_sample(client: TestClient, dense: Any) -> None:
    """What the index holds of it is what its text fires."""
    answer = client.get("/v1/samples/tales/t7", params={"sae": [SAE, OTHER], "top": 6, "overall": 300}).json()
    assert answer["text"] == answer["record"]["text"] == TALES[7]["text"]
    assert (answer["dataset"], answer["version"], answer["id"]) == ("tales", 1, "t7")
    for reading, layer in zip(answer["saes"], (2, 1), strict=True):
        check_reading(
            reading, dense(TALES[7]["text"], layer), 6, int((dense(TALES[7]["text"], layer) > 0).any(0).sum())
        )
    live_answer = ask(client, text=TALES[7]["text"], sae=SAE, top=6, overall=300)
    assert [t["id"] for t in live_answer["tokens"]] == [t["id"] for t in answer["tokens"]]
    assert live_answer["n_counting"] == answer["n_counting"]
    for one, two in zip(live_answer["saes"][0]["tokens"], answer["saes"][0]["tokens"], strict=True):
        assert {f["index"] for f in one} == {f["index"] for f in two}


def test_samples_that_are_not_there(library: Library) -> None:
    with pytest.raises(NotFound, match=r"dataset tales has no sample \"t'7\"; samples are named by their id"):
        stored_sample(library, "tales", "t'7", [SAE])
    with pytest.raises(NotFound, match="did you mean tales"):
        stored_sample(library, "tale", "t7", [SAE])


def sides(dense: Any, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(n, 256) token means over counting tokens, and whether each text fires each feature."""
    found = [dense(text) for text in texts]
    return np.stack([a[1:].mean(0) for a in found]), np.stack([(a > 0).any(0) for a in found])


def check_contrast(answer: Any, dense: Any, positive: list[str], negative: list[str], sort: str) -> None:
    (mean_a, fires_a), (mean_b, fires_b) = sides(dense, positive), sides(dense, negative)
    tested = np.flatnonzero(fires_a.any(0) | fires_b.any(0))
    difference = mean_a.mean(0) - mean_b.mean(0) if sort == "mean_difference" else fires_a.mean(0) - fires_b.mean(0)
    found = answer.data[0]
    assert found.n_tested == len(tested)
    assert answer.n == (len(positive), len(negative))
    values = [getattr(item, sort) for item in found.data]
    assert values == pytest.approx(np.sort(difference[tested])[::-1][: len(values)], abs=1e-4)
    a, b = fires_a.sum(0), fires_b.sum(0)
    if sort == "mean_difference":
        p = stats.ttest_ind(mean_a[:, tested], mean_b[:, tested], equal_var=False).pvalue
        p = np.maximum(p, 2 / math.comb(len(positive) + len(negative), len(positive)))  # what a permutation could give
    else:
        p = np.array(
            [stats.fisher_exact([[a[f], len(positive) - a[f]], [b[f], len(negative) - b[f]]]).pvalue for f in tested]
        )
    q = dict(zip(tested, stats.false_discovery_control(p), strict=True))
    for item in found.data:
        assert item.means == pytest.approx((mean_a[:, item.index].mean(), mean_b[:, item.index].mean()), abs=1e-4)
        assert item.counts == (a[item.index], b[item.index])
        assert item.rates == (a[item.index] / len(positive), b[item.index] / len(negative))
        assert item.q_value == pytest.approx(q[item.index], rel=0.02, abs=1e-12)


@pytest.mark.parametrize("sort", ["mean_difference", "rate_difference"])
def test_contrast_of_texts(
    library: Library, live: Live, dense: Any, monkeypatch: pytest.MonkeyPatch, sort: Any
) -> None:
    """In several pieces, so that sums over pieces are tried too."""
    monkeypatch.setattr(contrasting, "AT_ONCE", 4)
    positive, negative = ([row["text"] for row in rows[:10]] for rows in (PROBLEMS, SONGS))
    request = ContrastRequest(positive=positive, negative=negative, sae=SAE, sort=sort, limit=30)
    check_contrast(contrast(library, live, request), dense, positive, negative, sort)


@pytest.mark.parametrize("sort", ["mean_difference", "rate_difference"])
def test_contrast_of_stored_slices(library: Library, dense: Any, sort: Any) -> None:
    request = ContrastRequest(
        positive={"dataset": "songs", "where": {"mood": "sad"}},
        negative={"dataset": "tales"},
        sae=SAE,
        sort=sort,  # type: ignore[arg-type]
    )
    answer = contrast(library, None, request)
    sad = [row["text"] for row in SONGS if row["mood"] == "sad"]
    check_contrast(answer, dense, sad, [row["text"] for row in TALES], sort)
    assert answer.data[0].provenance.runs == {"songs": 2, "tales": 3}


def test_stored_samples_are_drawn_by_the_seed(library: Library) -> None:
    body = {"positive": {"dataset": "songs"}, "negative": {"dataset": "tales"}, "sae": SAE, "samples": 20}
    one, two, other = (contrast(library, None, ContrastRequest(**body, seed=seed)) for seed in (1, 1, 2))  # type: ignore[arg-type]
    assert one == two
    assert (one.n, one.n_available) == ((20, 20), (45, 50))
    assert one.data[0].data != other.data[0].data


def test_few_texts_have_no_p_value_of_a_mean(library: Library, live: Live) -> None:
    request = ContrastRequest(positive=["a cat"], negative=["the sun"], saes=[SAE, OTHER])
    answer = contrast(library, live, request)
    assert [each.sae for each in answer.data] == [SAE, OTHER]
    assert all(item.p_value is None and item.q_value is None for item in answer.data[0].data)


def test_no_p_value_lies_below_what_a_permutation_could_give(library: Library, live: Live) -> None:
    """Six times the same text a side: no spread at all."""
    request = ContrastRequest(positive=["a cat"] * 6, negative=["the sun"] * 6, sae=SAE)
    p = [item.p_value for item in contrast(library, live, request).data[0].data]
    assert min(p) == pytest.approx(2 / 924)  # type: ignore[type-var]


def test_what_cannot_be_contrasted(library: Library) -> None:
    with pytest.raises(ValueError, match="give texts for both, or a dataset for both"):
        ContrastRequest(positive=["a"], negative={"dataset": "songs"})  # type: ignore[arg-type]
    with pytest.raises(NoModel, match="no model is loaded"):
        contrast(library, None, ContrastRequest(positive=["a"], negative=["b"], sae=SAE))
    nobody = {"dataset": "songs", "where": {"mood": "angry"}}
    with pytest.raises(InputError, match="no sample of songs is left by"):
        contrast(library, None, ContrastRequest(positive=nobody, negative={"dataset": "tales"}, sae=SAE))  # type: ignore[arg-type]
    sad, songs = {"dataset": "songs", "where": {"mood": "sad"}}, {"dataset": "songs"}
    with pytest.raises(InputError, match=r"both sides have \d+ samples of songs in common and cannot be compared"):
        contrast(library, None, ContrastRequest(positive=sad, negative=songs, sae=SAE))  # type: ignore[arg-type]
    rest = {**songs, "where_not": {"mood": "sad"}}
    answer = contrast(library, None, ContrastRequest(positive=sad, negative=rest, sae=SAE))  # type: ignore[arg-type]
    assert sum(answer.n.values() if isinstance(answer.n, dict) else answer.n) == 45
