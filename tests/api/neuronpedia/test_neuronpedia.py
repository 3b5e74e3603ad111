"""Neuronpedia's read routes: their numbers against an independent computation, and their official client as a user."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from api.app import create_app
from api.services.exchange.examples import SampleText
from api.services.labels.book import create
from api.services.library import Library
from api.services.neuronpedia.names import cuid
from indexer.live import open_live
from schema.home import open_home
from schema.layout import feature_key
from schema.lookup import find_sae
from schema.settings import Settings
from schema.steer import SteeringVector
from schema.wire.labels import NewLabel
from tests.indexer.activations import token_activations
from tests.making import PROBLEMS, SONGS, TALES

LAYER = 2
SAE = f"tiny-qwen3/{LAYER}-tiny"
ROWS = {"problems": PROBLEMS, "songs": SONGS, "tales": TALES}
Fired = dict[tuple[str, str], tuple[list[int], np.ndarray]]


@pytest.fixture(scope="module")
def settings(indexed: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A copy of the home with three labels."""
    folder = tmp_path_factory.mktemp("neuronpedia") / "home"
    shutil.copytree(indexed.home, folder)
    copied = Settings.read(folder, {})
    home = open_home(copied)
    library = Library(home)
    for index, text, explainer in ((3, "counts of apples", None), (3, "apples and pears", "gpt-x"), (9, "songs", None)):
        body = NewLabel(
            feature=f"{SAE}/{index}", text=text, explainer=explainer, source="model" if explainer else "person"
        )
        create(library, body, "ann")
    home.close()
    return copied


@pytest.fixture(scope="module")
def client(settings: Settings, model_dir: Path) -> Iterator[TestClient]:
    home = open_home(settings)
    with TestClient(create_app(home, open_live(home, str(model_dir))), raise_server_exceptions=False) as made:
        yield made


@pytest.fixture(scope="module")
def fired(model_dir: Path, release_dir: Path) -> Fired:
    """(dataset, sample) -> its token ids and every token's activations in layer 2."""
    places = [(name, row["id"]) for name, rows in ROWS.items() for row in rows]
    texts = [row["text"] for rows in ROWS.values() for row in rows]
    return dict(zip(places, token_activations(model_dir, release_dir, LAYER, texts, 6), strict=True))


def feature(client: TestClient, index: int | str) -> Any:
    response = client.get(f"/api/feature/tiny-qwen3/{LAYER}-tiny/{index}")
    assert response.status_code == 200, response.text
    return response.json()


def busy(fired: Fired, n: int = 4) -> list[int]:
    """The features that fire in most samples, and one that hardly does."""
    counts = sum((acts > 0).any(0).astype(int) for _, acts in fired.values())
    order = np.argsort(-counts, kind="stable")
    return [*order[:n].tolist(), int(order[counts[order] > 0][-1])]


def test_counts_of_a_feature_are_those_of_all_its_samples(client: TestClient, fired: Fired) -> None:
    n_tokens = sum(len(ids) - 1 for ids, _ in fired.values())  # <s> does not count
    for index in busy(fired):
        answer = feature(client, index)
        values = np.concatenate([acts[:, index] for _, acts in fired.values()])
        assert answer["maxActApprox"] == pytest.approx(values.max(), rel=1e-3)
        assert answer["frac_nonzero"] == pytest.approx((values > 0).sum() / n_tokens)
        heights = answer["freq_hist_data_bar_heights"]
        assert sum(heights) == (values > 0).sum()
        mean = np.dot(heights, answer["freq_hist_data_bar_values"]) / sum(heights)
        assert mean == pytest.approx(values[values > 0].mean(), rel=0.2), "bars are half-octaves"
        assert (answer["modelId"], answer["layer"], answer["index"]) == ("tiny-qwen3", f"{LAYER}-tiny", str(index))
        assert answer["scopebase"]["mask"] == "special,first"


def test_each_example_shows_the_stored_activation_at_each_token(client: TestClient, fired: Fired) -> None:
    texts = {(name, row["id"]): row["text"] for name, rows in ROWS.items() for row in rows}
    shown = 0
    for index in busy(fired):
        for row in feature(client, index)["activations"]:
            ids, acts = fired[row["dataSource"], row["dataIndex"]]
            text = texts[row["dataSource"], row["dataIndex"]]
            values = acts[:, index]
            if len(ids) <= 128:
                assert "".join(row["tokens"]) == text
                np.testing.assert_allclose(row["values"], values, rtol=2e-3, atol=1e-6)
            else:
                first = next(i for i in range(len(ids)) if np.allclose(values[i : i + 128], row["values"], rtol=2e-3))
                assert "".join(row["tokens"]) in text
                assert first <= int(values.argmax()) < first + 128
            assert row["maxValue"] == max(row["values"]) == row["values"][row["maxValueTokenIndex"]]
            assert row["minValue"] == min(row["values"])
            assert row["layer"] == row["source"] == f"{LAYER}-tiny"
            shown += 1
    assert shown > 60


def test_the_strongest_come_first_and_intervals_hold_the_rest(client: TestClient, fired: Fired) -> None:
    index = busy(fired)[0]
    rows = feature(client, index)["activations"]
    maxima = {place: float(acts[:, index].max()) for place, (_, acts) in fired.items() if acts[:, index].max() > 0}
    top = [row for row in rows if row["binMin"] == -1]
    assert [row["maxValue"] for row in rows] == sorted((row["maxValue"] for row in rows), reverse=True)
    assert [row["maxValue"] for row in top] == pytest.approx(sorted(maxima.values(), reverse=True)[:20], rel=2e-3)
    rest = [row for row in rows if row["binMin"] != -1]
    assert rest, "a feature that fires in most samples has some in the intervals"
    for row in rest:
        assert row["binMin"] <= row["maxValue"] <= row["binMax"]
        inside = [m for m in maxima.values() if row["binMin"] <= m <= row["binMax"]]
        assert row["binContains"] == pytest.approx(len(inside) / len(maxima), abs=2.5 / len(maxima))
    places = [(row["dataSource"], row["dataIndex"]) for row in rows]
    assert len(set(places)) == len(places)
    assert len({row["id"] for row in rows}) == len(rows)


def test_the_nearest_features_are_those_of_the_decoder(client: TestClient, release_dir: Path) -> None:
    decoder = torch.load(release_dir / f"layer{LAYER}.sae.pt", weights_only=True)["W_dec"].numpy()
    unit = decoder / np.linalg.norm(decoder, axis=0)
    cosines = unit.T @ unit[:, 3]
    order = [int(i) for i in np.argsort(-cosines) if i != 3][:10]
    answer = feature(client, 3)
    assert answer["topkCosSimIndices"] == order
    assert answer["topkCosSimValues"] == pytest.approx(cosines[order], abs=2e-3)


def test_logits_are_those_of_the_index(client: TestClient, settings: Settings) -> None:
    home = open_home(settings)
    with home.database.reading() as session:
        sae = find_sae(session, SAE)
    row = home.store.rows("logits", [feature_key(sae.id, 3)]).to_pylist()[0]
    home.close()
    answer = feature(client, 3)
    assert (answer["pos_str"], answer["neg_str"]) == (row["top_tokens"], row["bottom_tokens"])
    assert answer["pos_values"] == sorted(row["top_values"], reverse=True)
    assert answer["neg_values"] == sorted(row["bottom_values"])
    assert len(answer["pos_str"]) > 5


def test_a_feature_that_never_fires_is_there_and_empty(client: TestClient, fired: Fired) -> None:
    silent = np.flatnonzero(sum((acts > 0).sum(0) for _, acts in fired.values()) == 0)
    answer = feature(client, int(silent[0]))
    assert (answer["maxActApprox"], answer["frac_nonzero"], answer["activations"]) == (0, 0, [])


def test_labels_are_explanations(client: TestClient) -> None:
    found = feature(client, 3)["explanations"]
    assert [(row["description"], row["explanationModelName"]) for row in found] == [
        ("counts of apples", None),
        ("apples and pears", "gpt-x"),
    ]
    assert found[0]["triggeredByUser"] == {"id": "ann", "name": "ann"}
    assert {"modelId", "layer", "source", "index"} <= set(found[0])


def test_several_features_keep_their_order_and_pass_over_unknown_ones(client: TestClient) -> None:
    def one(index: Any, layer: str = "2-tiny", **more: Any) -> dict[str, Any]:
        return {"modelId": "tiny-qwen3", "layer": layer, "index": index, **more}

    asked = [one(9, maxActsToReturn=1), one("3"), one(3, "1-tiny"), one(999_999), one(1, "no-such")]
    rows = client.post("/api/features", json=asked).json()
    assert [(row["layer"], row["index"]) for row in rows] == [("2-tiny", "9"), ("2-tiny", "3"), ("1-tiny", "3")]
    assert len(rows[0]["activations"]) <= 1
    page = client.post("/api/features-offset", json={"modelId": "tiny-qwen3", "layer": "2-tiny", "offset": 250}).json()
    assert [row["index"] for row in page] == ["250", "251", "252", "253", "254", "255"]
    got = client.post("/api/activation/get", json={"modelId": "tiny-qwen3", "source": "2-tiny", "index": "3"}).json()
    assert got == feature(client, 3)["activations"]


@pytest.mark.parametrize(
    ("route", "body", "expected"),
    [
        ("search", {"modelId": "tiny-qwen3", "layers": ["2-tiny"], "query": "apples"}, 2),
        ("search", {"modelId": "tiny-qwen3", "layers": ["1-tiny"], "query": "apples"}, 0),
        ("search-model", {"modelId": "tiny-qwen3", "query": "songs"}, 1),
        ("search-release", {"releaseName": "sae-res-tiny-w256-l0_6", "query": "songs"}, 1),
        ("search-all", {"query": "pears"}, 1),
    ],
)
def test_explanations_are_searched(client: TestClient, route: str, body: dict[str, Any], expected: int) -> None:
    answer = client.post(f"/api/explanation/{route}", json=body).json()
    assert answer["resultsCount"] == len(answer["results"]) == expected
    assert (answer["hasMore"], answer["nextOffset"]) == (False, None)
    assert all(row["cosine_similarity"] is None and row["layer"] == "2-tiny" for row in answer["results"])


def test_explanations_are_exported_in_bulk(client: TestClient) -> None:
    rows = client.get("/api/explanation/export", params={"modelId": "tiny-qwen3", "saeId": "2-tiny"}).json()
    assert [(row["index"], row["description"]) for row in rows] == [
        ("3", "counts of apples"),
        ("3", "apples and pears"),
        ("9", "songs"),
    ]
    assert client.get("/api/explanation/export", params={"modelId": "tiny-qwen3", "saeId": "1-tiny"}).json() == []


def test_models_sets_and_what_their_pages_ask_first(client: TestClient) -> None:
    model = client.get("/api/model/tiny-qwen3").json()
    assert (model["layers"], [s["name"] for s in model["sourceSets"]]) == (4, ["tiny"])
    found = client.get("/api/source-set/tiny-qwen3/tiny").json()
    assert [source["id"] for source in found["sources"]] == [f"{layer}-tiny" for layer in range(4)]
    everything = client.post("/api/global").json()
    assert list(everything["models"]) == ["tiny-qwen3"]
    assert [kind["name"] for kind in everything["explanationModels"]] == ["gpt-x"]


def test_sources_go_by_their_other_names(client: TestClient) -> None:
    for source in ("2-tiny", "SAE-Res-Tiny-W256-L0_6#layer2", "tiny-qwen3@2-tiny"):
        body = {"modelId": "tiny-qwen3", "source": source, "index": "3"}
        assert client.post("/api/activation/get", json=body).status_code == 200, source


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("GET", "/feature/tiny-qwen3/7-tiny/0", None, 404, "did you mean"),
        ("GET", "/feature/other/2-tiny/0", None, 404, "no model named 'other'"),
        ("GET", "/feature/tiny-qwen3/2-tiny/256", None, 404, "its features are 0 to 255"),
        ("GET", "/feature/tiny-qwen3/2-tiny/-1", None, 404, "no feature '-1'"),
        ("GET", "/source-set/tiny-qwen3/nope", None, 404, "no source set of tiny-qwen3"),
        ("POST", "/explanation/search-all", {"query": "ab"}, 400, "query"),
        ("POST", "/explanation/search", {"query": "abc"}, 400, "name the model"),
        ("POST", "/explanation/search", {"query": "abc", "modelId": "tiny-qwen3"}, 400, "name the sources"),
        ("POST", "/explanation/search-release", {"query": "abc", "releaseName": "x"}, 404, "no release"),
        ("POST", "/activation/get", {"modelId": "tiny-qwen3", "index": 1}, 400, "name the source"),
        ("POST", "/features", [{"modelId": "m"}], 400, "index"),
    ],
)
def test_refusals_have_the_shape_their_clients_read(
    client: TestClient, method: str, path: str, body: Any, status: int, says: str
) -> None:
    response = client.request(method, f"/api{path}", json=body)
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error", "message"}
    assert says in response.json()["message"]


def test_without_a_model_texts_are_refused(settings: Settings) -> None:
    with TestClient(create_app(open_home(settings))) as bare:
        body = {"modelId": "tiny-qwen3", "source": "2-tiny", "customText": "hello"}
        response = bare.post("/api/activation/source", json=body)
    assert response.status_code == 503
    assert "serve --model" in response.json()["error"]


def test_a_text_of_ones_own_fires_what_the_index_holds(client: TestClient, fired: Fired) -> None:
    ids, acts = fired["problems", "p3"]
    text = PROBLEMS[3]["text"]
    asked = {"modelId": "tiny-qwen3", "source": "2-tiny", "customText": text}
    active = client.post("/api/activation/source", json=asked).json()["results"][0]["activeFeatures"]
    dense = np.zeros_like(acts)
    for index, pairs in active.items():
        for position, value in pairs:
            dense[position, int(index)] = value
    np.testing.assert_allclose(dense, acts, rtol=2e-3, atol=1e-6)
    strongest = int(acts.max(0).argmax())
    one = {"feature": {"modelId": "tiny-qwen3", "layer": "2-tiny", "index": strongest}, "customText": [text, "La la"]}
    computed = client.post("/api/activation/new", json=one).json()
    assert len(computed) == 2
    np.testing.assert_allclose(computed[0]["values"], acts[:, strongest], rtol=2e-3, atol=1e-6)
    assert len(computed[0]["tokens"]) == len(ids)
    without = client.post("/api/activation/new", json={**one, "customText": text, "ignoreBos": True}).json()
    assert without["values"] == computed[0]["values"][1:]
    everything = client.post("/api/activation/new", json={**one, "customText": text, "ignoreBos": False}).json()
    assert everything["values"][1:] == pytest.approx(computed[0]["values"][1:], rel=2e-3)


def test_search_by_a_text_ranks_features(client: TestClient, fired: Fired) -> None:
    _, acts = fired["problems", "p3"]
    asked = {
        "modelId": "tiny-qwen3",
        "sourceSet": "tiny",
        "selectedLayers": ["2-tiny"],
        "text": PROBLEMS[3]["text"],
        "numResults": 7,
    }
    answer = client.post("/api/search-all", json=asked).json()
    assert [row["maxValue"] for row in answer["result"]] == pytest.approx(
        sorted(acts.max(0).tolist(), reverse=True)[:7], rel=2e-3
    )
    at = client.post("/api/search-all/", json={**asked, "sortIndexes": [5]}).json()
    strongest = sorted(acts[5][acts[5] > 0].tolist(), reverse=True)
    assert [row["values"][5] for row in at["result"]] == pytest.approx(strongest, rel=2e-3)
    assert client.post("/api/search-all", json={**asked, "sortIndexes": [999]}).status_code == 400
    rare = client.post("/api/search-all", json={**asked, "densityThreshold": 0.02}).json()["result"]
    assert all(row["neuron"]["frac_nonzero"] <= 0.02 for row in rare)
    top = {"modelId": "tiny-qwen3", "source": "2-tiny", "text": PROBLEMS[3]["text"], "numResults": 2}
    tokens = client.post("/api/search-topk-by-token", json={**top, "densityThreshold": 0}).json()["results"]
    assert len(tokens) == len(acts) - 1, "<s> is left out"
    for token in tokens:
        best = np.sort(acts[token["position"]])[::-1][:2]
        assert [f["activationValue"] for f in token["topFeatures"]] == pytest.approx(best[best > 0], rel=2e-3)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=12), st.data())
def test_pieces_of_a_text_join_to_it(steps: list[tuple[int, int]], data: st.DataObject) -> None:
    """Whatever lies between tokens, and wherever tokens share a character."""
    starts, ends, at = [], [], 0
    for gap, length in steps:
        begin = max(0, at + gap - 1)  # one may begin inside the one before
        starts.append(begin)
        ends.append(max(at, begin + length))
        at = ends[-1]
    text = "".join(
        chr(97 + i % 26) for i in range(max((e for s, e in zip(starts, ends, strict=True) if e > s), default=0))
    )
    sample = SampleText("d", "s", text, np.array(starts, np.int32), np.array(ends, np.int32))
    stop = data.draw(st.integers(0, len(steps)))
    first = data.draw(st.integers(0, stop))
    assert len(sample.pieces(first, stop)) == stop - first
    assert "".join(sample.pieces(0, first) + sample.pieces(first, len(steps))) == text


def test_a_shared_character_goes_to_the_last_of_its_tokens() -> None:
    """<s>, the space put before a text, Q, two bytes of one character, and an end of text."""
    starts, ends = np.array([0, 0, 0, 2, 2, 0], np.int32), np.array([0, 1, 1, 3, 3, 0], np.int32)
    assert SampleText("d", "s", "Q é", starts, ends).pieces(0, 6) == ["", "", "Q", " ", "é", ""]


@given(st.text(), st.text())
def test_ids_have_their_form_and_tell_contents_apart(a: str, b: str) -> None:
    assert len(cuid(a)) == 25
    assert cuid(a).isalnum()
    assert cuid(a) == cuid(a)
    assert (cuid(a, "x") == cuid(b, "x")) == (a == b)


@pytest.fixture(scope="module")
def address(settings: Settings, model_dir: Path) -> Iterator[str]:
    """The service on a port, as `scopebase serve` runs it."""
    import uvicorn

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = open_home(settings)
    server = uvicorn.Server(
        uvicorn.Config(create_app(home, open_live(home, str(model_dir))), port=port, log_level="error")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}/api"
    server.should_exit = True
    thread.join(10)


def test_the_official_client_works(address: str, monkeypatch: pytest.MonkeyPatch, fired: Fired) -> None:
    """Every call of the package `neuronpedia` that reads."""
    pytest.importorskip("neuronpedia", reason="the official client is not installed: pip install 'scopebase[peers]'")
    monkeypatch.setenv("NEURONPEDIA_API_KEY", "any")
    from neuronpedia.np_feature import Feature
    from neuronpedia.np_sae_feature import SAEFeature
    from neuronpedia.np_source_set import SourceSet
    from neuronpedia.requests.activation_request import ActivationRequest
    from neuronpedia.requests.base_request import NPRequest
    from neuronpedia.requests.source_activation_request import SourceActivationRequest
    from neuronpedia.requests.topk_by_token_request import TopKByTokenRequest
    from requests.exceptions import HTTPError

    monkeypatch.setattr(NPRequest, "BASE_URL", address)
    found = Feature.get("tiny-qwen3", "2-tiny", 3)
    assert (found.source, found.index, found.density) == ("2-tiny", "3", pytest.approx(density(fired, 3)))
    assert [each.text for each in found.explanations or []] == ["counts of apples", "apples and pears"]
    strong = Feature.get("tiny-qwen3", "2-tiny", busy(fired)[0])
    assert max(strong.activations[0].values) == pytest.approx(
        max(acts[:, int(strong.index)].max() for _, acts in fired.values()), rel=2e-3
    )
    assert all(0 <= each.quantileFraction <= 1 for each in strong.activations)
    assert '"maxActApprox"' in SAEFeature.get("tiny-qwen3", "2-tiny", "3").jsonData
    sources = SourceSet.get("tiny-qwen3", "tiny")
    assert sources.get_source_for_layer_number(2).id == "2-tiny"
    text = PROBLEMS[3]["text"]
    activations = ActivationRequest()
    acts = fired["problems", "p3"][1]
    one = activations.compute_activation_for_text("tiny-qwen3", "2-tiny", "3", text)
    np.testing.assert_allclose(one.values, acts[:, 3], rtol=2e-3, atol=1e-6)
    assert len(activations.compute_activation_for_texts("tiny-qwen3", "2-tiny", "3", [text, "La"])) == 2
    assert activations.compute_all_source_activations_for_text("tiny-qwen3", "2-tiny", text)[0]["activeFeatures"]
    searched = SourceActivationRequest()
    top = searched.compute_top_features_for_text("tiny-qwen3", "2-tiny", text)
    assert max(top[0].values) == pytest.approx(acts.max(), rel=2e-3)
    assert len(searched.compute_top_features_for_texts("tiny-qwen3", ["1-tiny", "2-tiny"], [text, "La"])) == 2
    tokens = TopKByTokenRequest()
    assert tokens.compute_top_features_by_token_for_text("tiny-qwen3", "2-tiny", text)[0].topFeatures
    assert len(tokens.compute_top_features_by_token_for_texts("tiny-qwen3", "2-tiny", [text, "La"])) == 2
    with pytest.raises(HTTPError, match="not found"):
        Feature.get("tiny-qwen3", "9-tiny", 3)


def density(fired: Fired, index: int) -> float:
    return sum((acts[:, index] > 0).sum() for _, acts in fired.values()) / sum(len(i) - 1 for i, _ in fired.values())


def official_calls(text: str) -> dict[str, Any]:
    """Every call of the official client that is not in the test above: name -> the call."""
    from neuronpedia.np_activation import Activation
    from neuronpedia.np_feature import Feature, SteerFeature
    from neuronpedia.np_list import NPList
    from neuronpedia.np_model import Model
    from neuronpedia.np_source_set import SourceSet
    from neuronpedia.np_vector import NPVector
    from neuronpedia.requests.activation_request import ActivationRequest
    from neuronpedia.requests.feature_request import FeatureRequest
    from neuronpedia.requests.graph_request import GraphRequest
    from neuronpedia.requests.list_request import ListRequest
    from neuronpedia.requests.steer_request import SteerChatRequest, SteerCompletionRequest
    from neuronpedia.requests.vector_request import VectorRequest

    where = ("tiny-qwen3", "2-tiny", "3")
    shown = Activation(*where, tokens=["a"], values=[1.0])
    made = NPVector("calm", *where, [0.0], "blocks.2.hook_resid_post", 10.0)
    graph = '{"metadata": {"prompt": "a", "prompt_tokens": ["a"], "scan": "tiny-qwen3", "slug": "s"}}'
    return {
        "model.new": lambda: Model.new("m", 4),
        "source_set.new": lambda: SourceSet.new("s", "tiny-qwen3"),
        "feature.upload_batch": lambda: FeatureRequest().upload_batch("tiny-qwen3", "2-tiny", [Feature(*where)]),
        "activation.upload_batch": lambda: ActivationRequest().upload_batch(*where, [shown]),
        "list.get_owned": lambda: NPList.get_owned(),
        "list.new": lambda: NPList.new("l"),
        "list.get": lambda: NPList.get("l"),
        "list.add_items": lambda: ListRequest().add_items(NPList("l", "l", "", []), []),
        "vector.new": lambda: NPVector.new("v", "tiny-qwen3", 2, "hook_resid_post", [0.0] * 32),
        "vector.delete": lambda: VectorRequest().delete(made),
        "steer.features": lambda: SteerCompletionRequest().steer_features("tiny-qwen3", [SteerFeature(*where)], "La"),
        "steer.vectors": lambda: SteerCompletionRequest().steer("tiny-qwen3", [made], "La"),
        "steer.chat": lambda: SteerChatRequest().steer("tiny-qwen3", [made]),
        "graph.upload": lambda: GraphRequest().upload(graph),
        "graph.get": lambda: GraphRequest().get("tiny-qwen3", "s"),
        "graph.list_owned": lambda: GraphRequest().list_owned(),
        "graph.generate": lambda: GraphRequest().generate("tiny-qwen3", text, "s"),
        "graph.delete": lambda: GraphRequest()._delete("tiny-qwen3", "s"),
    }


def test_what_is_not_served_says_so_to_the_official_client(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("neuronpedia", reason="the official client is not installed: pip install 'scopebase[peers]'")
    monkeypatch.setenv("NEURONPEDIA_API_KEY", "any")
    from neuronpedia.requests.base_request import NPRequest
    from requests.exceptions import HTTPError

    monkeypatch.setattr(NPRequest, "BASE_URL", address)
    for name, ask in official_calls("La la").items():
        with pytest.raises(HTTPError, match="is not served: ") as refused:
            ask()
        assert "status 403" in str(refused.value), name


def test_vectors_are_decoder_columns_and_saved_ones(
    address: str, settings: Settings, release_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("neuronpedia", reason="the official client is not installed: pip install 'scopebase[peers]'")
    monkeypatch.setenv("NEURONPEDIA_API_KEY", "any")
    from neuronpedia.np_vector import NPVector
    from neuronpedia.requests.base_request import NPRequest
    from requests.exceptions import HTTPError

    monkeypatch.setattr(NPRequest, "BASE_URL", address)
    tensors = torch.load(release_dir / "layer2.sae.pt", weights_only=True)
    found = NPVector.get("tiny-qwen3", "2-tiny", "3")
    np.testing.assert_allclose(found.values, tensors["W_dec"][:, 3].numpy(), atol=1e-3)
    assert (found.source, found.index, found.label) == ("2-tiny", "3", "counts of apples")
    assert found.hook_name == "blocks.2.hook_resid_post"
    save_vector(settings, "calm", [1, 3], np.arange(64, dtype="<f4"))
    owned = NPVector.get_owned()
    assert [(each.source, each.index) for each in owned] == [("1-vectors", "calm"), ("3-vectors", "calm")]
    assert NPVector.get("tiny-qwen3", "3-vectors", "calm").values == list(range(32, 64))
    with pytest.raises(HTTPError, match="not found"):
        NPVector.get("tiny-qwen3", "2-vectors", "calm")


def save_vector(settings: Settings, name: str, layers: list[int], values: np.ndarray) -> None:
    home = open_home(settings)
    with home.database.writing() as session:
        model = find_sae(session, SAE).model_id
        row = {"layers": layers, "d_model": 32, "data": values.tobytes(), "sha256": "0" * 64, "author": "ann"}
        session.add(SteeringVector(name=name, version=1, model_id=model, **row))
    home.close()


def test_cosines_between_sources(client: TestClient, release_dir: Path) -> None:
    asked = {"modelId": "tiny-qwen3", "source": "2-tiny", "index": 3}
    answer = client.post(
        "/api/cossim", json={**asked, "targetModelId": "tiny-qwen3", "targetSourceId": "1-tiny"}
    ).json()
    one, other = (
        torch.load(release_dir / f"layer{layer}.sae.pt", weights_only=True)["W_dec"].T.numpy() for layer in (2, 1)
    )
    cosine = other @ one[3] / np.linalg.norm(other, axis=1) / np.linalg.norm(one[3])
    near = answer["topk_decoder_cossim_features"]
    assert [each["feature"]["index"] for each in near] == np.argsort(-cosine)[:10].tolist()
    assert [each["cosine_similarity"] for each in near] == pytest.approx(sorted(cosine, reverse=True)[:10], abs=2e-3)
    itself = client.post(
        "/api/cossim", json={**asked, "targetModelId": "tiny-qwen3", "targetSourceId": "2-tiny"}
    ).json()
    assert 3 not in [each["feature"]["index"] for each in itself["topk_decoder_cossim_features"]]
