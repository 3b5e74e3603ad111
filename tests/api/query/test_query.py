"""Set algebra over datasets against sets counted by hand from an independent computation."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from api.app import create_app
from api.services.gaps.gap import coverage_gap
from api.services.labels.describing import store_descriptions
from api.services.library import Library
from api.services.query.query import query_features
from api.services.questions.diff import diff
from schema.errors import InputError, NotFound
from schema.home import open_home
from schema.lab import Label
from schema.settings import Settings
from schema.tables import Sae
from schema.wire.gaps import CoverageGapQuestion
from schema.wire.query import FeatureQuery, FeatureQueryAnswer
from tests.indexer.reference import Reference, reference
from tests.making import PROBLEMS, SONGS, TALES

SAE = "tiny-qwen3/2-tiny"
D_SAE = 256
ROWS = {"problems": PROBLEMS, "songs": SONGS, "tales": TALES}
LABELS = {3: "numbers and sums", 4: "Songs of the sea", 9: "a sea of NUMBERS", 200: "100% sure"}


@pytest.fixture(scope="module")
def fired(model_dir: Path, release_dir: Path) -> dict[str, Reference]:
    """Layer 2, one sample at a time."""
    return {
        name: reference(model_dir, release_dir, [2], [row["text"] for row in rows], 6, max_tokens=256)[2]
        for name, rows in ROWS.items()
    }


@pytest.fixture(scope="module")
def labelled(indexed: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    """The indexed home with a few labels, one of them deleted."""
    copy = Settings.read(tmp_path_factory.mktemp("labelled") / "home", {})
    shutil.copytree(indexed.home, copy.home)
    home = open_home(copy)
    with home.database.writing() as session:
        sae = session.query(Sae).filter_by(name=SAE).one().id
        for feature, text in LABELS.items():
            session.add(Label(sae_id=sae, feature=feature, text=text, author="ann", source="person"))
        session.add(Label(sae_id=sae, feature=5, text="sea", author="ann", source="person", deleted_at=_now()))
        session.add(Label(sae_id=sae + 1, feature=6, text="sea", author="ann", source="person"))
    yield Library(home)
    home.close()


def _now() -> Any:
    from schema.tables import now

    return now()


def ask(library: Library, where: Any, **more: Any) -> FeatureQueryAnswer:
    return query_features(library, FeatureQuery.model_validate({"sae": SAE, "where": where, "limit": 1000, **more}))


def found(answer: FeatureQueryAnswer) -> set[int]:
    assert answer.total == len(answer.data)
    return {item.index for item in answer.data}


def counts(fired: dict[str, Reference], name: str, pool: str, chosen: Callable[[dict[str, Any]], bool]) -> np.ndarray:
    rows = [i for i, row in enumerate(ROWS[name]) if chosen(row)]
    matrix = fired[name].any if pool == "any" else fired[name].last
    return np.asarray((matrix[rows] > 0).sum(0))


Leaf = tuple[dict[str, Any], Callable[[dict[str, Reference], str], np.ndarray]]


def _leaf(name: str, least: int | None, most: int | None, share: float | None, level: int | None) -> Leaf:
    """A condition, and the same over the matrices."""
    condition: dict[str, Any] = {"dataset": name}
    if level is not None and name == "problems":
        condition["where"] = {"level": level}
    for key, bound in (("min_count", least), ("max_count", most), ("min_rate", share)):
        if bound is not None:
            condition[key] = bound
    if least is not None and most is not None and most < least:
        del condition["max_count"]

    def mask(fired: dict[str, Reference], pool: str) -> np.ndarray:
        rows = [i for i, row in enumerate(ROWS[name]) if "where" not in condition or row["level"] == level]
        m = ((fired[name].any if pool == "any" else fired[name].last)[rows] > 0).sum(0)
        kept = np.ones(D_SAE, bool)
        if not set(condition) & {"min_count", "max_count", "min_rate"}:
            return np.asarray(m >= 1)
        kept &= m >= condition.get("min_count", 0)
        kept &= m <= condition.get("max_count", 10**9)
        return np.asarray(kept & (m / len(rows) >= condition.get("min_rate", 0)))

    return condition, mask


def _label_leaf(text: str) -> Leaf:
    return {"label": text}, lambda _f, _p: np.isin(
        np.arange(D_SAE), [f for f, label in LABELS.items() if text.lower() in label.lower()]
    )


def _and(parts: list[Leaf]) -> Leaf:
    return {"and": [c for c, _ in parts]}, lambda f, p: np.logical_and.reduce([mask(f, p) for _, mask in parts])


def _or(parts: list[Leaf]) -> Leaf:
    return {"or": [c for c, _ in parts]}, lambda f, p: np.logical_or.reduce([mask(f, p) for _, mask in parts])


def _not(part: Leaf) -> Leaf:
    return {"not": part[0]}, lambda f, p: ~part[1](f, p)


LEAVES = st.one_of(
    st.builds(
        _leaf,
        st.sampled_from([*ROWS]),
        st.none() | st.integers(0, 30),
        st.none() | st.integers(0, 60),
        st.none() | st.sampled_from([0.0, 0.05, 0.1, 0.5, 1.0]),
        st.none() | st.integers(0, 2),
    ),
    st.builds(_label_leaf, st.sampled_from(["sea", "NUMBERS", "100%", "s", "_"])),
)
TREES = st.recursive(
    LEAVES,
    lambda below: st.one_of(
        st.lists(below, min_size=1, max_size=3).map(_and),
        st.lists(below, min_size=1, max_size=3).map(_or),
        below.map(_not),
    ),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=TREES, pool=st.sampled_from(["any", "last"]))
def test_the_algebra_is_that_of_sets(labelled: Library, fired: dict[str, Reference], tree: Leaf, pool: str) -> None:
    condition, mask = tree
    expected = mask(fired, pool)
    answer = ask(labelled, condition, pool=pool)
    assert found(answer) == set(np.flatnonzero(expected).tolist())
    shown = [column.name for column in answer.columns]
    never = np.ones(D_SAE, bool)
    for column in answer.columns:
        m = counts(fired, column.dataset, pool, lambda row, c=column: all(row.get(k) == v for k, v in c.where.items()))
        never &= m == 0
        for item in answer.data:
            assert item.counts[column.name] == m[item.index]
            assert item.rates[column.name] == m[item.index] / column.n_samples
    assert answer.n_never_fire == never.sum()
    assert answer.total_never_fire == (never & expected).sum()
    assert len(set(shown)) == len(shown)


def test_density_and_maximum(library: Library, fired: dict[str, Reference]) -> None:
    tokens = sum(fired[n].tokens for n in ("songs", "tales")) / sum(fired[n].n_tokens for n in ("songs", "tales"))
    both = {"and": [{"density": {"min": 0.01, "max": 0.1}}, {"or": [{"dataset": "songs"}, {"dataset": "tales"}]}]}
    fires = sum(counts(fired, n, "any", lambda row: True) for n in ("songs", "tales")) > 0
    answer = ask(library, both)
    assert found(answer) == set(np.flatnonzero((tokens >= 0.01) & (tokens <= 0.1) & fires).tolist())
    assert all(item.density == pytest.approx(tokens[item.index]) for item in answer.data)
    largest = fired["songs"].any.max(0)
    bound = float(np.median(largest[largest > 0])) * 1.001
    answer = ask(library, {"max_activation": {"min": bound}, "dataset": "songs"}, sort="max_activation")
    assert found(answer) == set(np.flatnonzero(largest >= bound).tolist())
    shown = [item.max_activation for item in answer.data]
    assert shown == sorted(shown, reverse=True)
    assert shown == pytest.approx([largest[item.index] for item in answer.data], rel=2e-3)
    everywhere = sum(fired[n].tokens for n in ROWS) / sum(fired[n].n_tokens for n in ROWS)
    assert found(ask(library, {"density": {"max": 0.001}})) == set(np.flatnonzero(everywhere <= 0.001).tolist()), (
        "a question that names no dataset is about all"
    )


def test_labelled_or_not(labelled: Library) -> None:
    assert found(ask(labelled, {"labelled": True})) == set(LABELS)
    assert found(ask(labelled, {"labelled": False})) == set(range(D_SAE)) - set(LABELS)
    assert {i.index: i.label for i in ask(labelled, {"labelled": True}).data} == LABELS


def test_the_weight_is_tf_idf(library: Library, fired: dict[str, Reference]) -> None:
    """A slice's rate against all samples of the datasets that the question names."""
    where = {"and": [{"dataset": "problems", "where": {"level": 1}}, {"not": {"dataset": "songs", "min_rate": 0.9}}]}
    answer = ask(library, where, sort="weight", pool="last")
    here = counts(fired, "problems", "last", lambda row: row["level"] == 1) / 20
    n = sum(counts(fired, name, "last", lambda row: True) for name in ("problems", "songs"))
    expected = {f: here[f] * math.log((1 + 60 + 45) / (1 + n[f])) for f in found(answer)}
    assert {item.index: item.weight for item in answer.data} == pytest.approx(expected)
    assert [expected[item.index] for item in answer.data] == sorted(expected.values(), reverse=True)
    alone = ask(library, {"dataset": "songs"}, sort="weight")
    assert all(item.weight == 0 for item in alone.data if item.rates["songs"] == 1), "what fires in all says nothing"


@pytest.mark.parametrize("pool", ["any", "last"])
def test_samples_prove_a_feature_where_it_fires(library: Library, fired: dict[str, Reference], pool: str) -> None:
    """Of A's slice first, else of the column with the highest rate; the strongest of it."""
    level = {"dataset": "problems", "where": {"level": 1}}
    where = {"or": [level, {"dataset": "songs"}, {"dataset": "tales"}]}
    answer = ask(library, where, pool=pool, include=["samples"], samples=3)
    matrices = {name: (found.any if pool == "any" else found.last) for name, found in fired.items()}
    places = {name: {row["id"]: i for i, row in enumerate(rows)} for name, rows in ROWS.items()}
    assert answer.comparison is not None
    assert answer.comparison.a == "problems[level=1]"
    shown_on = set()
    for item in answer.data:
        best = max(
            item.rates, key=lambda name: (item.rates[name] > 0 and name.startswith("problems"), item.rates[name])
        )
        name = best.split("[")[0]
        shown_on.add(name)
        chosen = [i for i, row in enumerate(ROWS[name]) if name != "problems" or row["level"] == 1]
        strongest = sorted(matrices[name][chosen, item.index], reverse=True)[: min(3, item.counts[best])]
        assert [sample.activation for sample in item.samples] == pytest.approx(strongest, rel=1 / 16), "see SPARE"
        for sample in item.samples:
            assert sample.dataset == name
            assert places[name][sample.id] in chosen
            assert matrices[name][places[name][sample.id], item.index] == pytest.approx(sample.activation, rel=2e-3)
        first = item.samples[0]
        assert all(first.text[t.start : t.end].strip() in first.text for t in first.tokens)
        assert set(item.firing_tokens) <= {s.text[t.start : t.end].strip() for s in item.samples for t in s.tokens}
    assert "problems" in shown_on
    assert len(shown_on) > 1
    assert all(not item.samples for item in ask(library, where, pool=pool).data), "only where asked for"


def test_a_description_is_marked_and_comes_last(indexed: Settings, tmp_path: Path) -> None:
    """Query, difference and gap say who says so; a prompt asks for what samples show, not for what was described."""
    copy = Settings.read(tmp_path / "home", {})
    shutil.copytree(indexed.home, copy.home)
    library = Library(open_home(copy))
    bare = coverage_gap(library, _gap("synthesis_prompt"))
    store_descriptions(library, SAE, "ann")
    some = [item.index for item in diff(library, SAE, "tales", "songs", limit=2).data]
    with library.home.database.writing() as session:
        sae = session.query(Sae).filter_by(name=SAE).one().id
        session.add(Label(sae_id=sae, feature=some[0], text="woods", author="ann", source="person"))
    said = {0: ("woods", "person")}
    for data in (
        ask(library, {"and": [{"dataset": "tales"}, {"not": {"dataset": "songs"}}]}).data,
        diff(library, SAE, "tales", "songs", limit=1000).data,
        (gap := coverage_gap(library, _gap("synthesis_prompt"))).data,
    ):
        by_index = {item.index: item for item in data}
        assert (by_index[some[0]].label, by_index[some[0]].label_source) == said[0]
        assert by_index[some[1]].label_source == "describer"
        assert str(by_index[some[1]].label).startswith("fires on ")
    prompts = {item.index: item.synthesis_prompt for item in gap.data}
    assert prompts[some[1]] == {item.index: item.synthesis_prompt for item in bare.data}[some[1]]
    assert "It must show this property: woods" in str(prompts[some[0]])
    assert bare.data[0].label_source is None
    library.home.close()


def _gap(*include: str) -> CoverageGapQuestion:
    body = {"sae": SAE, "datasets": ["songs"], "target": {"dataset": "tales"}, "include": list(include), "limit": 1000}
    return CoverageGapQuestion.model_validate(body)


def test_groups_are_columns_and_conditions(library: Library, fired: dict[str, Reference]) -> None:
    moods = {mood: counts(fired, "songs", "any", lambda row, m=mood: row["mood"] == m) for mood in ("gay", "sad")}
    n = {mood: sum(row["mood"] == mood for row in SONGS) for mood in moods}
    answer = ask(library, {"dataset": "songs", "group_by": "mood"})
    assert [c.name for c in answer.columns] == ["songs", "songs[mood=gay]", "songs[mood=sad]"]
    assert [c.n_samples for c in answer.columns] == [45, n["gay"], n["sad"]]
    for item in answer.data:
        for mood, m in moods.items():
            assert item.counts[f"songs[mood={mood}]"] == m[item.index]
    rates = {mood: m / n[mood] for mood, m in moods.items()}
    for how, join in (("any", np.logical_or), ("every", np.logical_and)):
        where = {"dataset": "songs", "group_by": "mood", "min_rate": 0.2, "in_groups": how}
        assert found(ask(library, where)) == set(
            np.flatnonzero(join(rates["gay"] >= 0.2, rates["sad"] >= 0.2)).tolist()
        )
    both = ask(library, {"or": [{"dataset": "songs"}, {"dataset": "tales"}]}, group_by="mood")
    assert [c.name for c in both.columns] == ["songs", "tales", "songs[mood=gay]", "songs[mood=sad]"]
    sad = {"dataset": "songs", "where": {"mood": "sad"}}
    inside = ask(library, {**sad, "group_by": "mood"})
    assert [c.name for c in inside.columns] == ["songs[mood=sad]"], "a slice of one value has one group, itself"


def test_comparisons(library: Library, fired: dict[str, Reference]) -> None:
    """A slice against the rest of its dataset: rates, interval, lift and q-values."""
    level = {"dataset": "problems", "where": {"level": 1}}
    rest = {"dataset": "problems", "where_not": {"level": 1}}
    answer = ask(library, {"or": [level, rest]}, compare=[level, rest], sort="q_value")
    x = counts(fired, "problems", "any", lambda row: row["level"] == 1)
    y = counts(fired, "problems", "any", lambda row: row["level"] != 1)
    tested = np.flatnonzero(x + y)
    p = np.array([stats.fisher_exact([[x[f], 20 - x[f]], [y[f], 40 - y[f]]]).pvalue for f in tested])
    q = dict(zip(tested.tolist(), stats.false_discovery_control(p), strict=True))
    assert answer.comparison is not None
    assert (answer.comparison.a, answer.comparison.b) == ("problems[level=1]", "problems[not level=1]")
    assert answer.comparison.n_tested == len(tested) == answer.total
    for item in answer.data:
        assert item.q_value == pytest.approx(q[item.index], rel=1e-6)
        assert item.rate_difference == x[item.index] / 20 - y[item.index] / 40
        assert item.lift == pytest.approx((x[item.index] + 0.5) / 21 / ((y[item.index] + 0.5) / 41))
        assert item.lift_interval is not None
        assert item.lift_interval[0] < item.lift < item.lift_interval[1]
    s, t = (counts(fired, name, "any", lambda row: True) for name in ("songs", "tales"))
    tested = np.flatnonzero(s + t)
    p = np.array([stats.fisher_exact([[s[f], 45 - s[f]], [t[f], 50 - t[f]]]).pvalue for f in tested])
    q = dict(zip(tested.tolist(), stats.false_discovery_control(p), strict=True))
    expected = {f for f in q if q[f] <= 0.05 and s[f] / 45 >= t[f] / 50}
    assert expected
    where = {"compare": ["songs", "tales"], "max_q_value": 0.05, "min_rate_difference": 0}
    assert found(ask(library, where)) == expected
    ratio = (x + 0.5) / 21 / ((y + 0.5) / 41)
    where = {"compare": [level, rest], "min_lift": 1.2, "max_lift": 2}
    assert found(ask(library, where)) == set(np.flatnonzero((ratio >= 1.2) & (ratio <= 2)).tolist())


def test_what_is_compared_unless_asked(library: Library) -> None:
    def pair(where: Any, **more: Any) -> tuple[str, str] | None:
        comparison = ask(library, where, **more).comparison
        return comparison and (comparison.a, comparison.b)

    songs, tales, problems = ({"dataset": name} for name in ("songs", "tales", "problems"))
    assert pair({"and": [songs, {"not": tales}]}) == ("songs", "tales")
    assert pair({"and": [{"not": tales}, songs]}) == ("songs", "tales")
    assert pair({"or": [problems, songs, {"not": {"not": tales}}]}) == ("problems", "songs")
    assert pair({"not": {"or": [{"not": songs}, tales]}}) == ("songs", "tales")
    assert pair(songs) is None
    assert pair(songs, datasets=["tales"]) == ("songs", "tales")
    sad = {"dataset": "songs", "where": {"mood": "sad"}}
    assert pair({"and": [sad, {"not": songs}]}) is None, "a slice is not tested against what holds it"


@pytest.mark.parametrize(
    "sort",
    ["rate_difference", "controlled_difference", "lift", "weight", "rate", "count", "q_value", "density", "index"],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_pages_cover_the_answer_in_order(library: Library, sort: str, reverse: bool) -> None:
    where = {"and": [{"dataset": "tales"}, {"not": {"dataset": "songs", "min_rate": 0.5}}]}

    def value(item: Any) -> float:
        if sort == "controlled_difference":
            return float(item.controlled.rate_difference)
        return float({"rate": item.rates["tales"], "count": item.counts["tales"]}.get(sort) or getattr(item, sort, 0))

    seen, cursor = [], None
    while True:
        page = ask(library, where, sort=sort, reverse=reverse, limit=7, cursor=cursor)
        seen += page.data
        cursor = page.next_cursor
        if cursor is None:
            break
    assert len({item.index for item in seen}) == len(seen) == page.total > 14
    values = [value(item) for item in seen]
    assert values == sorted(values, reverse=reverse == (sort in ("q_value", "index")))


def test_pages_stay_consistent_while_labels_and_runs_are_added(
    labelled: Library, index_args: dict[str, Any], data_dir: Path
) -> None:
    from indexer.config import IndexConfig
    from indexer.run import index
    from tests.making import write_jsonl

    where = {"and": [{"dataset": "songs"}, {"labelled": False}]}
    whole = [item.index for item in ask(labelled, where).data]
    first = ask(labelled, where, limit=10)
    new, gone = whole[5], whole[30]
    with labelled.home.database.writing() as session:
        sae = session.query(Sae).filter_by(name=SAE).one().id
        for feature in (new, gone):
            session.add(Label(sae_id=sae, feature=feature, text="new", author="ann", source="person"))
    songs = write_jsonl(labelled.home.settings.home.parent / "songs.jsonl", SONGS[:20])
    index(IndexConfig(**{**index_args, "layers": "2", "datasets": (("songs", str(songs)),)}), labelled.home.settings)
    labelled.refresh()
    rest = ask(labelled, where, cursor=first.next_cursor)
    assert [item.index for item in first.data] + [i.index for i in rest.data] == [f for f in whole if f != gone]
    assert rest.provenance == first.provenance
    assert ask(labelled, where).columns[0].n_samples == 20
    assert ask(labelled, where, as_of=first.provenance.snapshot).columns[0].n_samples == 45


@pytest.mark.parametrize(
    ("question", "error", "words"),
    [
        ({"where": {"dataset": "song"}}, NotFound, "did you mean songs?"),
        ({"where": {"dataset": "songs", "where": {"moood": "sad"}}}, NotFound, "did you mean mood?"),
        ({"where": {"dataset": "songs", "group_by": "moood"}}, NotFound, "did you mean mood?"),
        ({"where": {"dataset": "songs"}, "group_by": "moood"}, NotFound, "did you mean mood?"),
        ({"where": {"dataset": "songs", "where": {"mood": "wild"}}}, InputError, r"no sample of songs is in the slice \[mood=wild\]"),
        ({"where": {"dataset": "songs"}, "sort": "lift"}, InputError, "sort='lift' needs two datasets or slices to compare"),
        ({"where": {"dataset": "songs"}, "compare": ["songs", "songs@1"]}, InputError, "share 45 samples and cannot be compared"),
        ({"where": {"dataset": "songs"}, "cursor": "x"}, InputError, "cursor: not one that this server gave"),
        ({"where": {"dataset": "songs"}, "as_of": 99}, InputError, "as_of=99: snapshots so far are 1 to 3"),
        ({"where": {"or": [{"dataset": "songs"}] * 200 + [{"label": "x"}]}}, InputError, "201 conditions, at most 200"),
        ({"where": {"label": "\x00"}}, InputError, "NUL"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_said(library: Library, question: Any, error: type[Exception], words: str) -> None:
    if len(question["where"].get("or", [])) > 200:
        question = {"where": {"or": [{"and": [{"dataset": "songs"}] * 100}] * 2 + [{"label": "x"}]}}
    with pytest.raises(error, match=words):
        query_features(library, FeatureQuery.model_validate({"sae": SAE, **question}))


def test_kept_answers_are_bounded(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these holds 800 bytes; with room for 2,000 the third puts the longest unused one out."""
    monkeypatch.setattr("api.services.library.ANSWERS_BYTES", 2000)
    made: list[int] = []
    books = Library(library.home)

    def ask_for(number: int) -> None:
        books.remembered(("kept", number), lambda: made.append(number) or {"of": [np.zeros(100)]})  # type: ignore[func-returns-value]

    for number in (1, 2, 1, 3, 1, 2):
        ask_for(number)
    assert made == [1, 2, 3, 2]


@pytest.fixture(scope="module")
def client(indexed: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(open_home(indexed)), raise_server_exceptions=False) as made:
        yield made


def test_over_http(client: TestClient) -> None:
    where = {"and": [{"dataset": "tales", "min_rate": 0.1}, {"not": {"dataset": "songs", "min_rate": 0.1}}]}
    question = {"sae": SAE, "where": where, "length_control": True, "limit": 3}
    response = client.post("/v1/features/query", json=question)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert set(answer["provenance"]) == {"sae", "sae_sha256", "runs", "pool", "mask", "snapshot"}
    item = answer["data"][0]
    assert item["feature"] == f"{SAE}/{item['index']}"
    assert item["rates"]["tales"] >= 0.1 > item["rates"]["songs"]
    assert set(item["controlled"]) == {"rate_difference", "interval", "lift", "p_value", "q_value"}
    control = answer["comparison"]["length_control"]
    assert control["n_a"] <= 50
    assert control["n_b"] <= 45
    assert answer["next_cursor"]


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ({}, "a condition has one of: and, or, not, compare"),
        ({"and": []}, "at least 1 item"),
        ({"not": {"or": [{"dataset": "songs", "min_rat": 1}]}}, "min_rat: Extra inputs are not permitted"),
        ({"dataset": "songs", "min_rate": 1.5}, "less than or equal to 1"),
        ({"dataset": "songs", "min_rate": 0.5, "max_rate": 0.1}, "min_rate is larger than max_rate"),
        ({"dataset": "songs", "min_count": 1, "min_samples": 1}, "min_count and min_samples mean the same"),
        ({"dataset": "songs", "in_groups": "any"}, "in_groups needs group_by"),
        ({"density": {}}, "give min, max or both"),
        ({"compare": ["songs", "tales"]}, "compare needs a bound"),
    ],
)
def test_a_condition_that_is_none_is_refused(client: TestClient, where: Any, words: str) -> None:
    response = client.post("/v1/features/query", json={"sae": SAE, "where": where})
    assert response.status_code == 422
    assert words in response.json()["detail"]


def test_half_characters_and_deep_trees_are_refused(client: TestClient) -> None:
    half = '{"where": {"dataset": "songs", "where": {"mood": "\\ud800"}}}'
    deep = '{"where": ' + '{"not": ' * 5000 + '{"dataset": "songs"}' + "}" * 5001
    for body, status in ((half, 422), (deep, 422)):
        response = client.post("/v1/features/query", content=body, headers={"content-type": "application/json"})
        assert response.status_code in (400, status), response.text
        assert len(response.content) < 3000
