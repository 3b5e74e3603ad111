"""Rules against what plain Python makes of dense activations, one sample at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from api.app import create_app
from api.services.library import Library
from api.services.rules import baselines
from api.services.rules.book import list_rules, make_rule, show_rule, sign_rule
from api.services.rules.classify import classify
from api.services.rules.discovery import discover
from api.services.rules.drift import drift_of
from api.services.rules.evaluate import evaluate, evaluations
from api.services.rules.ground import saes_of
from api.services.rules.transfer import transfer
from schema.errors import Conflict, InputError, NoModel, NotFound
from schema.home import open_home
from schema.lab import AuditEntry
from schema.live import Fired, LiveText
from schema.settings import Settings
from schema.tables import Model, Sae
from schema.wire.discovery import DiscoverBody, TransferBody
from schema.wire.rules import Choice, ClassifyBody, EvaluateBody, RuleBody
from tests.api.rules.rule_home import LEFT, RIGHT, SAES, f1, labels, make_rule_home, parts, references
from tests.indexer.reference import Reference

Dense = dict[str, dict[str, Reference]]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, index_args: dict[str, Any]) -> Settings:
    return make_rule_home(tmp_path_factory.mktemp("rules"), index_args)


@pytest.fixture
def books(settings: Settings, tmp_path: Path) -> Iterator[Library]:
    """A copy of the home, to write in."""
    copy = Settings.read(tmp_path / "home", {})
    shutil.copytree(settings.home, copy.home)
    home = open_home(copy)
    yield Library(home)
    home.close()


@pytest.fixture(scope="module")
def dense(model_dir: Path, release_dir: Path) -> Dense:
    return references(model_dir, release_dir)


def pooled(found: Reference, pool: str) -> np.ndarray:
    return np.asarray(found.any if pool == "any" else found.last)


def differences(fires: np.ndarray, positive: np.ndarray, on: list[int]) -> np.ndarray:
    """Delta, by its definition."""
    yes, no = [i for i in on if positive[i]], [i for i in on if not positive[i]]
    return np.asarray(fires[yes].mean(0) - fires[no].mean(0))


def body(**changes: Any) -> DiscoverBody:
    return DiscoverBody(**{"saes": SAES, "dataset": "left", "baselines": [], **changes})


@pytest.mark.parametrize("pool", ["any", "last"])
def test_discovery_is_what_the_paper_defines(books: Library, dense: Dense, pool: Any) -> None:
    answer = discover(books, body(pool=pool, seed=3))
    discovery, held_out = parts("left", seed=3)
    positive = labels("left")
    assert (answer.split.discovery, answer.split.held_out) == (
        {"positive": 32, "negative": 32},
        {"positive": 8, "negative": 8},
    )
    assert answer.split.n_unlabelled == 2
    top1, best = {}, {}
    for layer in answer.layers:
        fires = pooled(dense["left"][layer.sae], pool) > 0
        delta = differences(fires, positive, discovery)
        order = [f for f in sorted(range(256), key=lambda f: (-delta[f], f))[:10] if delta[f] > 0]
        assert [f.index for f in layer.features] == order
        for feature in layer.features:
            assert feature.difference == pytest.approx(delta[feature.index])
            assert feature.counts["positive"] == fires[[i for i in discovery if positive[i]], feature.index].sum()
            assert feature.held_out_difference == pytest.approx(differences(fires, positive, held_out)[feature.index])
        for rule in layer.rules:
            predicted = fires[:, order[: rule.k]].any(axis=1)
            assert rule.discovery_f1 == pytest.approx(f1(predicted[discovery], positive[discovery]))
            assert rule.metrics.f1.value == pytest.approx(f1(predicted[held_out], positive[held_out]))
            assert rule.metrics.accuracy.value == pytest.approx((predicted == positive)[held_out].mean())
        assert [rule.k for rule in layer.rules] == [1, 2, 5, 10]
        top1[layer.sae], best[layer.sae] = delta.max(), order[0]
    star = max(top1, key=lambda sae: top1[sae])
    assert answer.top1_diff == star
    own = next(layer for layer in answer.layers if layer.sae == star)
    assert answer.chosen.discovery_f1 == max(rule.discovery_f1 for rule in own.rules)
    assert answer.oracle.f1 == max(r.metrics.f1.value or 0 for layer in answer.layers for r in layer.rules)
    assert answer.trivial.f1.value == pytest.approx(2 / 3)
    both = np.logical_or.reduce([pooled(dense["left"][sae], pool)[:, best[sae]] > 0 for sae in SAES])
    assert [rule.m for rule in answer.multi_layer] == [1, 2]
    assert answer.multi_layer[1].metrics.f1.value == pytest.approx(f1(both[held_out], positive[held_out]))


def test_tests_of_features_are_over_all_that_fire(books: Library, dense: Dense) -> None:
    from scipy import stats

    layer = discover(books, body()).layers[1]
    discovery, _ = parts("left")
    positive = labels("left")
    fires = dense["left"][SAES[1]].any > 0
    x = fires[[i for i in discovery if positive[i]]].sum(0)
    y = fires[[i for i in discovery if not positive[i]]].sum(0)
    tested = np.flatnonzero(x + y)
    q = stats.false_discovery_control(
        [stats.fisher_exact([[x[f], 32 - x[f]], [y[f], 32 - y[f]]]).pvalue for f in tested]
    )
    assert layer.n_tested == len(tested)
    expected = dict(zip(tested.tolist(), q, strict=True))
    assert [f.q_value for f in layer.features] == pytest.approx([expected[f.index] for f in layer.features], rel=1e-6)


def test_a_slice_is_discovered_on_alone(books: Library, dense: Dense) -> None:
    answer = discover(books, body(where={"language": "de"}, discovery_share=0.5))
    own = [i for i, row in enumerate(LEFT) if row["language"] == "de" and row["label"] is not None]
    sizes = answer.split.discovery["positive"], answer.split.held_out["positive"]
    assert sum(sizes) == sum(LEFT[i]["label"] for i in own)
    assert answer.split.discovery["negative"] + answer.split.held_out["negative"] == len(own) - sum(sizes)


def test_the_same_seed_gives_the_same_answer(books: Library) -> None:
    assert discover(books, body(seed=5)) == discover(Library(books.home), body(seed=5))
    assert discover(books, body(seed=5)).layers != discover(books, body(seed=6)).layers


def test_baselines_stand_beside_each_rule(books: Library, dense: Dense) -> None:
    """The difference of class means, by hand on the reference's activations."""
    answer = discover(books, body(baselines=["logistic", "difference_of_means"], probe_all=True))
    discovery, held_out = parts("left")
    positive = labels("left")
    for layer in answer.layers:
        for rule in layer.rules:
            assert [(b.name, b.over, b.n_features) for b in rule.baselines] == [
                ("logistic", "chosen", len(rule.features)),
                ("difference_of_means", "chosen", len(rule.features)),
            ]
        X = dense["left"][layer.sae].any[:, [f.index for f in layer.features]]
        X = X / X[discovery].max(axis=0)
        centres = [X[[i for i in discovery if positive[i] == c]].mean(0) for c in (False, True)]
        nearer = ((X - centres[1]) ** 2).sum(1) < ((X - centres[0]) ** 2).sum(1)
        assert layer.rules[-1].baselines[1].metrics.f1.value == pytest.approx(
            f1(nearer[held_out], positive[held_out]), abs=0.07
        )  # postings hold values to within 3 %, which may turn one of 16 samples
        assert {b.over for b in layer.all_features} == {"all"}
        assert layer.all_features[0].n_features > 10
        assert (layer.all_features[0].metrics.f1.value or 0) > 0.8, "songs and tales are told apart by a probe"


def test_baselines_say_what_they_need(books: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"need scikit-learn; install it with: pip install 'scopebase\[probe\]'"):
        discover(books, body(baselines=["logistic"]))
    assert discover(books, body()).layers[0].rules[0].baselines == []


def test_the_efficiency_curve_ends_at_the_whole(books: Library) -> None:
    answer = discover(books, body(efficiency={"shares": [1.0, 0.5, 0.1], "n_seeds": 3}))
    assert [point.share for point in answer.efficiency] == [1.0, 0.5, 0.1]
    full = answer.efficiency[0]
    assert full.f1 == pytest.approx(answer.chosen.metrics.f1.value)
    assert full.f1_oracle == pytest.approx(answer.oracle.f1)
    assert full.f1_range == (full.f1, full.f1)
    assert full.relative == 1.0
    assert [point.n for point in answer.efficiency] == [{"positive": n, "negative": n} for n in (32, 16, 3)]
    assert all(p.f1_range[0] <= p.f1 <= p.f1_range[1] and p.f1 <= p.f1_oracle + 1e-9 for p in answer.efficiency)


def test_a_small_share_is_a_discovery_of_its_own(books: Library, dense: Dense) -> None:
    """Half of the data, drawn by hand."""
    import hashlib

    point = discover(books, body(k=[2], efficiency={"shares": [0.5], "n_seeds": 1})).efficiency[0]
    discovery, held_out = parts("left")
    positive = labels("left")
    used = []
    for label in (False, True):
        own = [i for i in discovery if positive[i] == label]
        own.sort(key=lambda i: hashlib.sha256(f"0/0\n{LEFT[i]['id']}".encode()).hexdigest())
        used += own[:16]
    delta = {sae: differences(dense["left"][sae].any > 0, positive, used) for sae in SAES}
    star = max(SAES, key=lambda sae: delta[sae].max())
    order = sorted(range(256), key=lambda f: (-delta[star][f], f))[:2]
    predicted = (dense["left"][star].any[:, order] > 0).any(axis=1)
    assert point.f1 == pytest.approx(f1(predicted[held_out], positive[held_out]))
    assert point.relative is None, "the whole was not asked for"


def test_transfer_is_discovery_on_one_measured_on_the_other(books: Library, dense: Dense) -> None:
    answer = transfer(books, TransferBody(saes=SAES, datasets=["left", "right"], k=[1, 2, 5]))
    assert answer.names == ["left", "right"]
    for i, name in enumerate(answer.names):
        found = discover(books, body(dataset=name, k=[1, 2, 5]))
        chosen = answer.discovered[i].chosen
        assert chosen is not None
        assert chosen.features == found.chosen.features
        assert answer.f1[i][i] == found.chosen.metrics.f1
        assert answer.oracle_f1[i][i] == pytest.approx(found.oracle.f1)
        other = answer.names[1 - i]
        fires = [dense[other][f.rpartition("/")[0]].any[:, int(f.rpartition("/")[2])] > 0 for f in chosen.features]
        _, held_out = parts(other)
        expected = f1(np.logical_or.reduce(fires)[held_out], labels(other)[held_out])
        cell = answer.f1[i][1 - i]
        assert cell is not None
        assert cell.value == pytest.approx(expected)
        assert answer.discovered[i].macro_f1 == pytest.approx(expected)
        assert answer.discovered[i].macro_trivial_f1 == answer.trivial_f1[1 - i]
    assert all(matrix[0][0] == 1.0 for matrix in answer.top_shared.values())


def test_transfer_between_the_values_of_a_field(books: Library) -> None:
    answer = transfer(books, TransferBody(saes=SAES[:1], datasets=["left"], group_by="language", k=[1]))
    assert answer.names == ["de", "en"]
    for i, language in enumerate(answer.names):
        alone = discover(books, body(saes=SAES[:1], where={"language": language}, k=[1]))
        assert answer.f1[i][i] == alone.chosen.metrics.f1


def discovered(books: Library, name: str = "toxic", **changes: Any) -> Any:
    return make_rule(books, RuleBody(name=name, discovery=body(**changes)), "ann")


def test_rules_have_versions_and_remember_how_they_were_made(books: Library) -> None:
    first = discovered(books, seed=1)
    assert (first.id, first.author, first.signed_by) == ("toxic@1", "ann", None)
    answer = discover(books, body(seed=1))
    assert first.expression == answer.chosen.expression
    made = first.provenance
    assert (made["made"], made["request"]["dataset"], made["request"]["seed"]) == ("discovery", "left@1", 1)
    assert made["held_out"]["f1"]["value"] == answer.chosen.metrics.f1.value
    second = make_rule(
        books, RuleBody(name="toxic", discovery=body(seed=1), choice=Choice(m=2), description="two layers"), "bob"
    )
    assert (second.id, second.expression) == ("toxic@2", answer.multi_layer[1].expression)
    assert set(second.saes) == set(answer.multi_layer[1].saes)
    by_hand = make_rule(
        books,
        RuleBody.model_validate({"name": "hand", "expression": {"not": {"feature": f"{SAES[0]}/3", "above": 0.5}}}),
        "ann",
    )
    assert by_hand.provenance["made"] == "by hand"
    assert [rule.id for rule in list_rules(books).data] == ["hand@1", "toxic@2"]
    assert [rule.id for rule in list_rules(books, "toxic").data] == ["toxic@1", "toxic@2"]
    assert [rule.id for rule in list_rules(books, limit=1).data] == ["hand@1"]
    assert show_rule(books, "toxic", 1) == first
    signed = sign_rule(books, "toxic", 1, "eve")
    assert (signed.signed_by, signed.version) == ("eve", 1)
    with pytest.raises(Conflict, match="toxic@1 was signed by eve"):
        sign_rule(books, "toxic", 1, "bob")
    with books.home.database.reading() as session:
        entries = session.execute(select(AuditEntry.actor, AuditEntry.action, AuditEntry.target)).all()
    assert [tuple(entry) for entry in entries] == [
        ("ann", "rule.create", "toxic@1"),
        ("bob", "rule.create", "toxic@2"),
        ("ann", "rule.create", "hand@1"),
        ("eve", "rule.sign", "toxic@1"),
    ]


def test_measuring_leaves_out_what_was_discovered_on(books: Library, dense: Dense) -> None:
    rule = discovered(books)
    answer = evaluate(books, "toxic", EvaluateBody(datasets=["left", "right"]), "ann")
    left, right = answer.data
    assert (left.part, left.metrics.n, left.n_unlabelled) == ("held_out", 16, 2)
    assert left.metrics.f1.value == rule.provenance["held_out"]["f1"]["value"]
    assert (right.part, right.metrics.n) == ("all", len(RIGHT))
    fires = [
        dense["right"][f.rpartition("/")[0]].any[:, int(f.rpartition("/")[2])] > 0 for f in rule.provenance["features"]
    ]
    predicted, positive = np.logical_or.reduce(fires), labels("right")
    assert right.metrics.true_positive == (predicted & positive).sum()
    assert right.metrics.precision.value == pytest.approx((predicted & positive).sum() / predicted.sum())
    assert right.trivial.accuracy.value == pytest.approx(positive.mean())
    assert answer.macro.f1 == pytest.approx(np.mean([left.metrics.f1.value, right.metrics.f1.value]))
    assert answer.warnings == []
    everything = evaluate(books, "toxic", EvaluateBody(datasets=["left"], include_discovery=True), "ann")
    assert (everything.data[0].part, everything.data[0].metrics.n) == ("all_with_discovery", 80)
    groups = evaluate(books, "toxic", EvaluateBody(datasets=["right"], group_by="language"), "ann")
    assert [(row.group, row.metrics.n) for row in groups.data] == [("de", 40), ("en", 20)]
    kept = evaluations(books, "toxic")
    assert [each.id for each in kept.data] == [groups.id, everything.id, answer.id]
    assert kept.data[-1] == answer


@pytest.mark.parametrize("pool", ["any", "last"])
def test_a_value_between_two_samples_of_one_code_is_settled_exactly(books: Library, dense: Dense, pool: Any) -> None:
    """Postings hold values to within 3 %; the rule compares the stored float16 values."""
    values = pooled(dense["left"][SAES[1]], pool)
    feature = int((values > 0).sum(0).argmax())
    fired = np.sort(values[values[:, feature] > 0, feature].astype(np.float16).astype(np.float64))
    gaps = [(b / a, (a + b) / 2) for a, b in pairwise(fired) if 1.001 < b / a < 1.02]
    assert gaps, "two samples closer than a code is wide"
    for n, (_, bound) in enumerate(sorted(gaps)[:6]):
        leaf = {"feature": f"{SAES[1]}/{feature}", "above": bound}
        make_rule(books, RuleBody.model_validate({"name": f"t{n}", "expression": leaf, "pool": pool}), "ann")
        answer = classify(books, f"t{n}", ClassifyBody(dataset="left", limit=1000))
        assert [item.positive for item in answer.data] == (values[:, feature] > bound).tolist()
        assert all(bool(item.features) == item.positive for item in answer.data)


def test_stored_samples_come_with_the_tokens_that_decided(books: Library, dense: Dense) -> None:
    rule = discovered(books)
    answer = classify(books, "toxic", ClassifyBody(dataset="right", limit=1000))
    texts = {row["id"]: row["text"] for row in RIGHT}
    assert (answer.n, answer.total, answer.n_positive) == (60, 60, sum(item.positive for item in answer.data))
    for i, item in enumerate(answer.data):
        own = {
            f: dense["right"][f.rpartition("/")[0]].any[i, int(f.rpartition("/")[2])]
            for f in rule.provenance["features"]
        }
        assert {f.feature: pytest.approx(f.activation, rel=2e-3) for f in item.features} == {
            f: value for f, value in own.items() if value > 0
        }
        assert item.positive == bool(item.features)
        assert item.text == texts[item.id or ""][item.offset : item.offset + len(item.text)]
        for feature in item.features:
            assert len(feature.tokens) == feature.n_tokens
            assert max(token.activation for token in feature.tokens) == feature.activation
            assert all(0 <= token.start < token.end <= len(item.text) for token in feature.tokens)
    only = classify(books, "toxic", ClassifyBody(dataset="right", only=True, limit=3))
    following = classify(books, "toxic", ClassifyBody(dataset="right", only=True, limit=1000, cursor=only.next_cursor))
    assert [i.id for i in only.data + following.data] == [i.id for i in answer.data if i.positive]
    two = classify(books, "toxic", ClassifyBody(dataset="right", ids=["r7", "r2"]))
    assert [item.id for item in two.data] == ["r7", "r2"]
    assert two.data[1] == answer.data[2]


class FakeLive:
    """Hands over the reference's activations as a loaded model would, one token a character."""

    name = "tiny-qwen3"

    def __init__(self, dense: Dense, tokenizer: str) -> None:
        self.dense, self.tokenizer_sha256 = dense["right"], tokenizer
        self.asked: dict[str, Any] = {}

    def read(self, texts: Any, saes: Any, *, mask: str, max_tokens: int) -> list[LiveText]:
        self.asked = {"mask": mask, "max_tokens": max_tokens}
        places = [next(i for i, row in enumerate(RIGHT) if row["text"] == text) for text in texts]
        return [self._read(text, place, saes) for text, place in zip(texts, places, strict=True)]

    def _read(self, text: str, place: int, saes: Any) -> LiveText:
        n = len(text)
        fired = {}
        for sae in saes:
            row = self.dense[sae].any[place]
            feature = np.flatnonzero(row > 0)
            fired[sae] = Fired(np.full(len(feature), n - 1), feature, row[feature].astype(np.float32))
        at = np.arange(n)
        counts = at > 0
        return LiveText(text, np.zeros(n, np.int64), list(text), at, at + 1, counts, fired)


def test_live_texts_are_judged_as_stored_ones_are(books: Library, dense: Dense) -> None:
    discovered(books)
    with books.home.database.reading() as session:
        tokenizer = session.scalars(select(Model)).one().tokenizer_sha256
    live = FakeLive(dense, tokenizer)
    texts = [row["text"] for row in RIGHT]
    answer = classify(books, "toxic", ClassifyBody(texts=texts), live)
    stored = classify(books, "toxic", ClassifyBody(dataset="right", limit=1000))
    assert live.asked == {"mask": "special,first", "max_tokens": 256}, "as the rule's samples were read"
    assert [i.positive for i in answer.data] == [i.positive for i in stored.data]
    assert [[(f.feature, f.activation) for f in i.features] for i in answer.data] == [
        [(f.feature, pytest.approx(f.activation, rel=2e-3)) for f in i.features] for i in stored.data
    ]
    assert answer.warnings == []
    assert answer.provenance.runs == {}
    other = classify(books, "toxic", ClassifyBody(texts=texts[:1]), FakeLive(dense, "f" * 64))
    assert other.warnings == ["model tiny-qwen3 was read with another tokenizer than the rule was made with"]
    with pytest.raises(NoModel, match="start the service with 'scopebase serve --model M'"):
        classify(books, "toxic", ClassifyBody(texts=texts[:1]))


def test_drift_is_seen_and_another_sae_refused(books: Library) -> None:
    rule = discovered(books)
    assert drift_of(books, "toxic").data == []
    with books.home.database.writing() as session:
        session.scalars(select(Model)).one().revision = "e" * 40
    found = drift_of(books, "toxic")
    assert (found.usable, {item.what for item in found.data}) == (True, {"model_revision"})
    assert "another model revision than when the rule was made" in found.data[0].sentence
    assert classify(books, "toxic", ClassifyBody(dataset="right")).warnings == [i.sentence for i in found.data]
    with books.home.database.writing() as session:
        session.scalars(select(Sae).where(Sae.name == next(iter(rule.saes)))).one().sha256 = "d" * 64
    found = drift_of(books, "toxic")
    assert (found.usable, {item.what for item in found.data}) == (False, {"sae_sha256", "model_revision"})
    with pytest.raises(Conflict, match=r"toxic@1 cannot be applied: .* another SHA-256 of its tensors"):
        classify(books, "toxic", ClassifyBody(dataset="right"))
    warnings = evaluate(books, "toxic", EvaluateBody(datasets=["right"]), "ann").warnings
    assert any("another SHA-256" in warning for warning in warnings)


def test_without_an_sae_all_of_the_dataset_are_read(books: Library) -> None:
    assert saes_of(books, ["left", "right"]) == SAES
    with pytest.raises(InputError, match="no SAE has all of left, nothing"):
        saes_of(books, ["left", "nothing"])


def expression(value: Any) -> RuleBody:
    return RuleBody.model_validate({"name": "x", "expression": value})


def nested(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"feature": f"{SAES[0]}/1"}
    for _ in range(depth):
        inner = {"not": inner}
    return inner


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda b: discover(b, body(label_field="lable")), NotFound, "no field of dataset left named 'lable'"),
        (lambda b: discover(b, body(positive=7)), InputError, "no sample of left has label = 7; its values are 0, 1"),
        (lambda b: discover(b, body(discovery_share=0.99)), InputError, "has 40 negative samples, too few"),
        (lambda b: discover(b, body(saes=["tiny-qwen3/9-tiny"])), NotFound, "no SAE named"),
        (lambda b: discover(b, body(dataset="lefd")), NotFound, "did you mean left?"),
        (lambda b: transfer(b, TransferBody(saes=SAES, datasets=["left"])), InputError, "compares 2 to 50"),
        (
            lambda b: transfer(b, TransferBody(saes=SAES, datasets=["left", "right"], group_by="language")),
            InputError,
            "group_by takes one dataset",
        ),
        (lambda b: make_rule(b, expression({"feature": "songs"}), "a"), InputError, "'songs' is no feature's id"),
        (lambda b: make_rule(b, expression({"feature": f"{SAES[0]}/256"}), "a"), InputError, "features are 0 to 255"),
        (lambda b: make_rule(b, expression({"feature": "m/1-x/2"}), "a"), NotFound, "no SAE named 'm/1-x'"),
        (lambda b: make_rule(b, expression(nested(20)), "a"), InputError, "nested deeper than 20"),
        (
            lambda b: make_rule(b, RuleBody(name="x", discovery=body(), choice=Choice(m=9)), "a"),
            InputError,
            "the discovery made no such rule",
        ),
        (lambda b: show_rule(b, "toxic"), NotFound, "no rule named 'toxic'"),
        (lambda b: (discovered(b), show_rule(b, "toxic", 2)), NotFound, "no version 2; its newest is 1"),
        (
            lambda b: (discovered(b), classify(b, "toxic", ClassifyBody(dataset="right", ids=["r700"]))),
            NotFound,
            "no sample of right named 'r700'",
        ),
        (
            lambda b: (discovered(b), evaluate(b, "toxic", EvaluateBody(datasets=["left"], where={"id": "no"}), "a")),
            InputError,
            "no labelled sample is left",
        ),
    ],
)
def test_wrong_calls_are_refused_in_words(books: Library, call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as refused:
        call(books)
    assert words in str(refused.value)


@pytest.fixture
def client(books: Library) -> Iterator[TestClient]:
    with TestClient(create_app(books.home), raise_server_exceptions=False) as made:
        yield made


def test_the_routes(client: TestClient) -> None:
    request = {"saes": SAES, "dataset": "left", "label_field": "label", "positive": 1, "k": [1, 2], "baselines": []}
    found = client.post("/v1/rules/discover", json=request).json()
    assert set(found["provenance"]) == {"sae", "sae_sha256", "saes", "runs", "pool", "mask", "snapshot"}
    made = client.post("/v1/rules", json={"name": "toxic", "expression": found["chosen"]["expression"]})
    assert (made.status_code, made.json()["author"]) == (201, "local")
    assert made.json()["expression"] == found["chosen"]["expression"]
    negated = {"name": "clean", "expression": {"not": found["chosen"]["expression"]}}
    assert client.post("/v1/rules", json=negated).json()["expression"] == negated["expression"], "the word is `not`"
    assert [r["id"] for r in client.get("/v1/rules").json()["data"]] == ["clean@1", "toxic@1"]
    assert client.get("/v1/rules/toxic", params={"version": 1}).json()["id"] == "toxic@1"
    assert client.post("/v1/rules/toxic/sign", json={}).json()["signed_by"] == "local"
    measured = client.post("/v1/rules/toxic/evaluate", json={"datasets": ["right"]}).json()
    assert client.get("/v1/rules/toxic/evaluations").json()["data"] == [measured]
    assert client.get("/v1/rules/toxic/drift").json() == {"rule": "toxic", "version": 1, "usable": True, "data": []}
    both = [
        client.post(f"/v1/rules/{name}/classify", json={"dataset": "right"}).json()["n_positive"]
        for name in ("toxic", "clean")
    ]
    assert sum(both) == len(RIGHT)
    matrix = client.post("/v1/rules/transfer", json={"saes": SAES, "datasets": ["left", "right"], "k": [1]})
    assert len(matrix.json()["f1"]) == 2
    refused = client.post("/v1/rules/toxic/classify", json={"texts": ["a"]})
    assert (refused.status_code, refused.headers["content-type"]) == (503, "application/problem+json")


@pytest.mark.parametrize(
    ("path", "sent", "status", "words"),
    [
        ("/rules", {"name": "x", "expression": {"some": []}}, 422, "an expression is one of"),
        ("/rules", {"name": "x", "expression": {"any": []}}, 422, "at least 1 item"),
        ("/rules", {"name": "x y", "expression": {"feature": "m/1-a/2"}}, 422, "name"),
        ("/rules", {"name": "x"}, 422, "give an expression or a discovery, and not both"),
        ("/rules/discover", {"saes": [], "dataset": "left"}, 422, "saes"),
        ("/rules/discover", {"saes": SAES, "dataset": "left", "k": [1, 1]}, 422, "each number once"),
        ("/rules/none/classify", {"dataset": "left", "texts": ["a"]}, 422, "give texts or a dataset, and not both"),
        ("/rules/none/classify", {"dataset": "left"}, 404, "no rule named 'none'"),
    ],
)
def test_wrong_requests(client: TestClient, path: str, sent: Any, status: int, words: str) -> None:
    response = client.post(f"/v1{path}", json=sent)
    assert response.status_code == status
    assert words in response.json()["detail"]
