"""Dossiers against the dense matrix of an independent computation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from scipy import stats

from api.app import create_app
from api.services.features import directions
from api.services.features import dossier as dossiers
from api.services.features.dossier import dossier, feature_profiles, feature_samples
from api.services.features.match import match
from api.services.features.neighbours import Question, neighbours
from api.services.library import Library
from schema.errors import Conflict, InputError, NotFound
from schema.home import open_home
from schema.settings import Settings
from tests.indexer.reference import Reference, reference
from tests.making import PROBLEMS, SONGS, TALES, make_release

SAE = "tiny-qwen3/2-tiny"
ROWS = {"problems": PROBLEMS, "songs": SONGS, "tales": TALES}
N = sum(len(rows) for rows in ROWS.values())


@pytest.fixture(scope="module")
def fired(model_dir: Path, release_dir: Path) -> dict[int, dict[str, Reference]]:
    """Layers 1 and 2, one sample at a time."""
    found: dict[int, dict[str, Reference]] = {1: {}, 2: {}}
    for name, rows in ROWS.items():
        both = reference(model_dir, release_dir, [1, 2], [row["text"] for row in rows], 6, max_tokens=256)
        for layer in found:
            found[layer][name] = both[layer]
    return found


@pytest.fixture(scope="module")
def columns(release_dir: Path) -> dict[int, np.ndarray]:
    """Layer -> unit decoder directions, (256, 32)."""
    found = {}
    for layer in range(4):
        W = torch.load(release_dir / f"layer{layer}.sae.pt", weights_only=True)["W_dec"].numpy().T
        found[layer] = W / np.linalg.norm(W, axis=1, keepdims=True)
    return found


def matrix(found: dict[str, Reference], pool: str) -> np.ndarray:
    """(155, 256) pooled activations of all datasets, in the order of their names."""
    return np.concatenate([found[name].any if pool == "any" else found[name].last for name in ROWS])


def ids() -> list[str]:
    return [row["id"] for rows in ROWS.values() for row in rows]


def common(fired: dict[int, dict[str, Reference]], pool: str = "any", n: int = 3, least: int = 15) -> list[int]:
    """Some features that fire in many samples, but not in all."""
    counts = (matrix(fired[2], pool) > 0).sum(0)
    return [int(f) for f in np.flatnonzero((counts >= least) & (counts < N - 5))[:n]]


@pytest.mark.parametrize("pool", ["any", "last"])
def test_profiles_are_counts(library: Library, fired: Any, pool: Any) -> None:
    for feature in common(fired, pool, least=3):
        answer = feature_profiles(library, f"{SAE}/{feature}", pool)
        assert [p.dataset for p in answer.data] == list(ROWS)
        for profile in answer.data:
            found = fired[2][profile.dataset]
            values = (found.any if pool == "any" else found.last)[:, feature]
            samples, tokens = int((values > 0).sum()), int(found.tokens[feature])
            assert (profile.samples, profile.n_samples) == (samples, len(values))
            assert profile.rate == samples / len(values)
            low, high = stats.binomtest(samples, len(values)).proportion_ci(method="wilson")
            assert profile.rate_interval == pytest.approx((low, high), abs=1e-9)
            assert (profile.tokens, profile.n_tokens) == (tokens, found.n_tokens)
            assert profile.density == tokens / found.n_tokens
            assert profile.max == pytest.approx(found.any[:, feature].max(), rel=1e-3)
            assert sum(profile.histogram.counts) == tokens
            assert len(profile.histogram.edges) == (len(profile.histogram.counts) + 1 if tokens else 0)
            if tokens:
                assert profile.histogram.edges[0] <= profile.mean <= profile.max
                assert profile.histogram.edges[-2] <= profile.max < profile.histogram.edges[-1]
            else:
                assert profile.mean is None


def test_the_histogram_counts_each_token_in_its_half_octave(library: Library, fired: Any) -> None:
    """Against every activation of the stored samples, one by one."""
    feature = common(fired)[0]
    whole = dossier(library, f"{SAE}/{feature}")
    every = feature_samples(library, f"{SAE}/{feature}", limit=1000)
    values = [token.activation for sample in every.data for token in sample.tokens]
    assert len(values) == whole.tokens
    assert np.histogram(values, whole.histogram.edges)[0].tolist() == whole.histogram.counts
    assert np.mean(values) == pytest.approx(whole.mean, rel=1e-6)
    assert whole.label is None
    assert f"in {whole.samples} samples" in (whole.description or "") or f"of {whole.samples} samples" in (
        whole.description or ""
    )
    ratios = np.divide(whole.histogram.edges[1:], whole.histogram.edges[:-1])
    assert set(ratios.round(3)) <= {1.333, 1.5}


@pytest.mark.parametrize("pool", ["any", "last"])
def test_top_samples_are_the_strongest(library: Library, fired: Any, pool: Any) -> None:
    dense = matrix(fired[2], pool)
    for feature in common(fired, pool, least=5):
        answer = dossier(library, f"{SAE}/{feature}", pool)
        values = dense[:, feature]
        assert answer.samples == (values > 0).sum()
        shown = [sample.activation for sample in answer.shown.top]
        assert len(shown) == min(10, answer.samples)
        assert shown == sorted(shown, reverse=True)
        assert shown == pytest.approx(np.sort(values)[::-1][: len(shown)], rel=1e-3)
        of = dict(zip(ids(), values, strict=True))
        for sample in (*answer.shown.top, *answer.shown.random, *answer.shown.quantiles):
            assert sample.activation == pytest.approx(of[sample.id], rel=1e-3)
            assert max(token.activation for token in sample.tokens) == sample.activation


def test_quantile_samples_come_from_their_part(library: Library, fired: Any) -> None:
    """Ranks by the dense matrix; codes are coarse, so a sample may lie a few ranks over the border."""
    for feature in common(fired):
        answer = feature_samples(library, f"{SAE}/{feature}", "quantiles", limit=25)
        values = matrix(fired[2], "any")[:, feature]
        firing = np.sort(values[values > 0])
        assert len(answer.data) == sum(min(5, len(part)) for part in np.array_split(firing, 5))
        spans = [sample.quantile for sample in answer.data]
        assert sorted({span[0] for span in spans if span}) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
        assert spans == sorted(spans, key=lambda span: -span[0])
        for sample, span in zip(answer.data, spans, strict=True):
            low, high = (np.quantile(firing, q, method="nearest") for q in span)
            assert 0.9 * low <= sample.activation <= 1.1 * high
        assert len({sample.id for sample in answer.data}) == len(answer.data)


def test_pages_hold_each_sample_once(library: Library, fired: Any) -> None:
    feature = f"{SAE}/{common(fired)[0]}"
    firing = {i for i, v in zip(ids(), matrix(fired[2], "any")[:, common(fired)[0]], strict=True) if v > 0}
    for by in ("top", "random"):
        seen: list[str] = []
        cursor = None
        while True:
            page = feature_samples(library, feature, by, limit=7, cursor=cursor, seed=3)  # type: ignore[arg-type]
            seen += [sample.id for sample in page.data]
            cursor = page.next_cursor
            if cursor is None:
                break
        assert len(seen) == page.total == len(firing)
        assert set(seen) == firing
    again = feature_samples(library, feature, "random", limit=7, seed=3)
    other = feature_samples(library, feature, "random", limit=7, seed=4)
    assert [s.id for s in again.data] == seen[:7] != [s.id for s in other.data]


def test_nearest_directions(library: Library, columns: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its own SAE and in other layers, from memory and streamed, against numpy."""
    for held in (directions.HELD_BYTES, 0):
        monkeypatch.setattr(directions, "HELD_BYTES", held)
        answer = neighbours(library, f"{SAE}/17", Question(layers=True, limit=9))
        for layer, found in itertools.groupby(answer.data, lambda n: int(n.sae.split("/")[1][0])):
            cosines = columns[layer] @ columns[2][17]
            if layer == 2:
                cosines[17] = -2
            near = list(found)
            order = np.argsort(-cosines)[:9]
            assert [n.index for n in near] == order.tolist()
            assert [n.cosine for n in near] == pytest.approx(cosines[order], abs=2e-3)
        assert len(answer.data) == 36


def dense_phi(fires: np.ndarray, feature: int, others: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.array([np.corrcoef(fires[:, feature], others[:, g])[0, 1] for g in range(others.shape[1])])


@pytest.mark.parametrize("pool", ["any", "last"])
@pytest.mark.parametrize("layer", [1, 2])
def test_coactivation_is_the_correlation_of_firing(library: Library, fired: Any, pool: Any, layer: int) -> None:
    """In the own SAE and across layers: phi, lift, p and q by the dense matrix and scipy."""
    feature = common(fired, pool, least=5)[0]
    here, there = matrix(fired[2], pool) > 0, matrix(fired[layer], pool) > 0
    phi = dense_phi(here, feature, there)
    if layer == 2:
        phi[feature] = np.nan
    tested = np.flatnonzero(there.any(0))
    tables = {
        g: [[(here[:, feature] & there[:, g]).sum(), (here[:, feature] & ~there[:, g]).sum()],
            [(~here[:, feature] & there[:, g]).sum(), (~here[:, feature] & ~there[:, g]).sum()]]
        for g in tested
    }  # fmt: skip
    q = dict(
        zip(tested, stats.false_discovery_control([stats.fisher_exact(t).pvalue for t in tables.values()]), strict=True)
    )
    for by, sign in (("coactivation", -1), ("rivals", 1)):
        question = Question(by=by, saes=[f"tiny-qwen3/{layer}-tiny"], pool=pool, limit=12)  # type: ignore[arg-type]
        answer = neighbours(library, f"{SAE}/{feature}", question)
        assert answer.n_read == answer.n_fired == here[:, feature].sum()
        assert answer.n_tested == {f"tiny-qwen3/{layer}-tiny": len(tested)}
        expected = np.sort((sign * phi)[sign * phi < 0])[:12] * sign
        assert [n.together.phi for n in answer.data if n.together] == pytest.approx(expected, abs=1e-9)
        for near in answer.data:
            table = tables[near.index]
            assert near.together is not None
            assert near.together.phi == pytest.approx(phi[near.index], abs=1e-9)
            assert near.together.both == table[0][0]
            assert near.together.base_rate == there[:, near.index].mean()
            assert near.together.lift == pytest.approx(
                table[0][0] * N / (here[:, feature].sum() * there[:, near.index].sum())
            )
            assert near.together.q_value == pytest.approx(q[near.index], rel=1e-6)


def test_a_part_of_the_samples_estimates_the_whole(library: Library, fired: Any) -> None:
    feature = common(fired, least=40)[0]
    whole = neighbours(library, f"{SAE}/{feature}", Question(by="coactivation", limit=256))
    part, same = (
        neighbours(library, f"{SAE}/{feature}", Question(by="coactivation", limit=256, samples=30, seed=5))
        for _ in range(2)
    )
    assert (part.n_read, part.n_fired) == (30, whole.n_fired)
    assert part.data == same.data
    exact = {n.index: n.together.phi for n in whole.data if n.together}
    errors = [n.together.phi - exact[n.index] for n in part.data if n.together and n.index in exact]
    assert len(errors) > 20
    assert 0 < np.abs(errors).mean() < 0.15


def test_one_dataset_alone(library: Library, fired: Any) -> None:
    feature = common(fired)[0]
    answer = dossier(library, f"{SAE}/{feature}", datasets=["tales"])
    assert answer.provenance.runs == {"tales": 3}
    assert answer.samples == (fired[2]["tales"].any[:, feature] > 0).sum()
    assert {sample.dataset for sample in answer.shown.top} == {"tales"}


def test_a_feature_that_never_fires(library: Library, fired: Any) -> None:
    silent = int(np.flatnonzero((matrix(fired[2], "any") > 0).sum(0) == 0)[0])
    answer = dossier(library, f"{SAE}/{silent}")
    assert (answer.samples, answer.tokens, answer.mean, answer.max) == (0, 0, None, 0.0)
    assert answer.shown.top == answer.shown.random == answer.shown.quantiles == []
    assert answer.neighbours.coactivation == answer.neighbours.rivals == []
    assert answer.neighbours.cosine
    assert answer.logits is not None


def test_the_parts_agree_with_the_whole(library: Library, fired: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    feature = f"{SAE}/{common(fired)[0]}"
    whole = dossier(library, feature)
    assert whole.profiles == feature_profiles(library, feature).data
    assert whole.neighbours.cosine == neighbours(library, feature, Question(limit=8)).data
    assert whole.neighbours.rivals == neighbours(library, feature, Question(by="rivals", limit=8)).data
    assert whole.norm == pytest.approx(1.0, abs=1e-3)
    assert sum(p.tokens for p in whole.profiles) == whole.tokens
    monkeypatch.setattr(dossiers, "READ", 5)
    assert dossier(library, feature).neighbours.n_read == 5


@pytest.mark.parametrize(
    ("feature", "error", "words"),
    [
        (f"{SAE}/256", NotFound, "SAE tiny-qwen3/2-tiny has features 0 to 255, and none 256"),
        ("tiny-qwen3/2-tin/3", NotFound, "no SAE named 'tiny-qwen3/2-tin'; did you mean tiny-qwen3/2-tiny"),
        (f"{SAE}/x", InputError, "is no feature's id; it looks like <model>/<layer>-<set>/<index>"),
        ("7", InputError, "is no feature's id"),
    ],
)
def test_unknown_features(library: Library, feature: str, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        dossier(library, feature)


@pytest.fixture(scope="module")
def two_sets(
    tmp_path_factory: pytest.TempPathFactory, index_args: dict[str, Any], data_dir: Path, indexed: Settings
) -> Iterator[tuple[Library, np.ndarray]]:
    """The home with a second set of SAEs: half of layer 2's directions turned round and shuffled, the rest new."""
    import shutil

    from indexer.config import IndexConfig
    from indexer.run import index

    folder = tmp_path_factory.mktemp("two")
    shutil.copytree(indexed.home, folder / "home")
    release = make_release(folder / "again", 4, 32, 256, 6, seed=7)
    first = torch.load(Path(index_args["sae"]) / "layer2.sae.pt", weights_only=True)
    tensors = torch.load(release / "layer2.sae.pt", weights_only=True)
    place = np.random.default_rng(1).permutation(256)
    tensors["W_dec"][:, place[:128]] = first["W_dec"][:, :128] * 3
    torch.save(tensors, release / "layer2.sae.pt")
    settings = Settings.read(folder / "home", {})
    songs = (("songs", str(data_dir / "songs.jsonl")),)
    index(IndexConfig(**{**index_args, "sae": str(release), "set_name": "again"}, datasets=songs, layers="2"), settings)
    home = open_home(settings)
    yield Library(home), place
    home.close()


def test_match_finds_what_two_saes_share(two_sets: Any, columns: Any) -> None:
    """Against one product of both matrices."""
    library, place = two_sets
    other = torch.load(library_source(library, "tiny-qwen3/2-again"), weights_only=True)["W_dec"].numpy().T
    other = other / np.linalg.norm(other, axis=1, keepdims=True)
    cosines = columns[2] @ other.T
    answer = match(library, SAE, "tiny-qwen3/2-again", threshold=0.9, limit=256)
    forth, back = cosines.argmax(1), cosines.argmax(0)
    for side, best, mutual in (
        (answer.a, cosines.max(1), back[forth] == np.arange(256)),
        (answer.b, cosines.max(0), forth[back] == np.arange(256)),
    ):
        assert side.n == 256
        assert side.mean_max_cosine == pytest.approx(best.mean(), abs=1e-3)
        assert side.matched == (best >= 0.9).sum() >= 128
        assert side.mutual == mutual.sum()
        assert side.null_mean_max_cosine < best.mean()
        assert side.null_matched_share == 0
    rng = np.random.default_rng(3)
    random = rng.standard_normal((20_000, 32))
    null = ((random / np.linalg.norm(random, axis=1, keepdims=True)) @ other.T).max(1)
    assert answer.a.null_mean_max_cosine == pytest.approx(null.mean(), abs=0.01)
    assert answer.a.null_quantile_99 == pytest.approx(np.quantile(null, 0.99), abs=0.02)
    pairs = {int(p.a.rsplit("/", 1)[1]): (int(p.b.rsplit("/", 1)[1]), p.mutual) for p in answer.data}
    assert all(pairs[f] == (place[f], True) for f in range(128))
    assert [p.cosine for p in answer.data] == sorted((p.cosine for p in answer.data), reverse=True)


def library_source(library: Library, sae: str) -> str:
    from schema.lookup import find_sae

    with library.home.database.reading() as session:
        return find_sae(session, sae).source


def test_a_part_of_the_features_estimates_the_match(two_sets: Any) -> None:
    library, _ = two_sets
    whole = match(library, SAE, "tiny-qwen3/2-again")
    part = match(library, SAE, "tiny-qwen3/2-again", features=100, seed=1, limit=30)
    assert part.a.n == part.total == 100
    assert part.a.interval[0] < whole.a.mean_max_cosine < part.a.interval[1]
    assert whole.a.interval == (whole.a.mean_max_cosine,) * 2
    rest = match(library, SAE, "tiny-qwen3/2-again", features=100, seed=1, limit=100, cursor=part.next_cursor)
    assert len({p.a for p in (*part.data, *rest.data)}) == 100


def test_what_cannot_be_matched(two_sets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    library, _ = two_sets
    with pytest.raises(InputError, match="against itself says nothing"):
        match(library, SAE, SAE)
    monkeypatch.setattr("api.services.features.match.MOST_WORK", 1e6)
    with pytest.raises(
        InputError, match="features=2048: too much work for one question on these SAEs; at most about 30"
    ):
        match(library, SAE, "tiny-qwen3/2-again")


def test_another_sae_must_have_read_the_same(two_sets: Any) -> None:
    """The second set has read the songs alone."""
    library, _ = two_sets
    question = Question(by="coactivation", saes=["tiny-qwen3/2-again"])
    with pytest.raises(Conflict, match="2-again has not read dataset problems as tiny-qwen3/2-tiny has; .*dataset="):
        neighbours(library, f"{SAE}/3", question)
    answer = neighbours(
        library, f"{SAE}/3", Question(by="coactivation", saes=["tiny-qwen3/2-again"], datasets=["songs"])
    )
    assert answer.provenance.runs == {"songs": 2}


def test_over_http(indexed: Settings, fired: Any) -> None:
    feature = f"{SAE}/{common(fired)[0]}"
    with TestClient(create_app(open_home(indexed)), raise_server_exceptions=False) as client:
        whole = client.get(f"/v1/features/{feature}").json()
        assert whole["feature"] == feature
        assert len(whole["logits"]["positive"]) == len(whole["logits"]["negative"]) == 10
        assert set(whole["provenance"]) == {"sae", "sae_sha256", "runs", "pool", "mask", "snapshot"}
        first = client.get(f"/v1/features/{feature}/samples", params={"limit": 1000}).json()
        assert [s["id"] for s in first["data"]][:10] == [s["id"] for s in whole["shown"]["top"]]
        assert client.get(f"/v1/features/{feature}/profiles").json()["data"] == whole["profiles"]
        near = client.get(f"/v1/features/{feature}/neighbours", params={"by": "rivals", "dataset": "tales"})
        assert near.json()["provenance"]["runs"] == {"tales": 3}
        assert client.get(f"/v1/features/{SAE}/9999").status_code == 404
        assert client.get("/v1/features/nothing").status_code == 422
        two = client.get("/v1/match", params={"a": SAE, "b": "tiny-qwen3/1-tiny"}).json()
        assert two["a"]["n"] == 256
        assert client.get("/v1/match", params={"a": SAE, "b": SAE}).json()["detail"].startswith(SAE)
