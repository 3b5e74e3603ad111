"""Labels from lab to lab and back: no duplicates, no losses, every difference reported, nothing written where a line is wrong."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from api.services.exchange.label_batches import write_batches
from api.services.labels import book, importing, talk
from api.services.labels.book import Filter
from api.services.labels.export import export
from api.services.labels.importing import import_labels
from api.services.labels.search import search
from api.services.library import Library
from schema.errors import Conflict, InputError, NotFound
from schema.wire.labels import ImportReport, LabelChange, LabelItem, NewLabel
from tests.laboratory import make_lab, sha_of


@pytest.fixture
def labs(tmp_path: Path) -> Iterator[list[Library]]:
    """Three labs with the same SAEs."""
    made = [make_lab(tmp_path / name) for name in "abc"]
    yield made
    for lab in made:
        lab.home.close()


def add(lab: Library, text: str, feature: int = 1, **more: Any) -> LabelItem:
    return book.create(lab, NewLabel(feature=f"m/3-tiny/{feature}", text=text, **more), "ann")


def every(lab: Library) -> dict[str, LabelItem]:
    return {label.id: label for label in book.list_labels(lab, Filter(), 1000).data}


def texts(lab: Library) -> list[str]:
    return sorted(label.text for label in every(lab).values())


def pack(lab: Library, folder: Path, form: Any = "jsonl", **which: Any) -> Path:
    path = folder / f"pack.{form}"
    path.write_bytes(b"".join(export(lab, Filter(**which), form)))
    return path


def send(one: Library, other: Library, folder: Path, policy: Any = "skip", form: Any = "jsonl") -> ImportReport:
    return import_labels(other, pack(one, folder, form), "bob", policy=policy)


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


FULL = {
    "source": "model",
    "explainer": "gpt",
    "method": "top20",
    "score": 0.25,
    "score_method": "detection",
    "prompt": "what is it?\n«»",
    "examples": [{"dataset": "d", "id": "7"}],
    "licence": "CC0",
}


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_everything_arrives(labs: list[Library], tmp_path: Path, form: str) -> None:
    a, b, _ = labs
    add(a, "数学 'quotes' \"and\"\nlines"), add(a, "by a model", 2, **FULL)
    report = send(a, b, tmp_path, form=form)
    assert (report.read, report.created, report.n_conflicts) == (2, 2, 0)
    kept = {"origin", "updated_at"}
    for uid, mine in every(a).items():
        theirs = every(b)[uid]
        assert theirs.model_dump(exclude=kept) == mine.model_dump(exclude=kept)
        assert [(stop.home, stop.by) for stop in theirs.origin] == [(a.store.identity(), "bob")]
    assert [hit.label.text for hit in search(b, None, "model")] == ["by a model"]


def test_the_way_through_labs_is_kept(labs: list[Library], tmp_path: Path) -> None:
    a, b, c = labs
    label = add(a, "apples")
    send(a, b, tmp_path)
    send(b, c, tmp_path)
    assert [stop.home for stop in every(c)[label.id].origin] == [a.store.identity(), b.store.identity()]
    report = send(c, a, tmp_path)
    assert (report.unchanged, report.created, report.n_conflicts) == (1, 0, 0)
    assert every(a)[label.id].origin == []


STEP = st.tuples(st.sampled_from(["add", "edit", "send"]), st.integers(0, 2), st.integers(0, 2), st.integers(0, 5))


@settings(
    max_examples=8, deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(STEP, max_size=14), st.sampled_from(["skip", "update"]))
def test_rounds_of_exchange_make_no_duplicates(
    labs: list[Library], tmp_path: Path, steps: list[tuple[str, int, int, int]], policy: str
) -> None:
    """Whatever is added, edited and sent around: afterwards every lab that hears of all has each label once, and hears nothing
    new; with `update`, all say the same. The labs live through all examples, so none is shrunk."""
    made: set[str] = set.union(*(set(every(lab)) for lab in labs))
    for action, i, j, k in steps:
        lab = labs[i]
        if action == "add":
            made.add(add(lab, f"text {k}", k).id)
        elif action == "edit" and every(lab):
            label = sorted(every(lab).values(), key=lambda label: label.id)[k % len(every(lab))]
            book.change(lab, label.id, LabelChange(version=label.version, text=f"edited {k}"), "cyd")
        elif action == "send" and i != j:
            send(lab, labs[j], tmp_path, policy)
    for _ in range(3):
        for i in range(3):
            send(labs[i], labs[(i + 1) % 3], tmp_path, policy)
    for i in range(3):
        assert set(every(labs[i])) == made
        report = send(labs[i], labs[(i + 1) % 3], tmp_path, policy)
        assert (report.created, report.duplicated) == (0, 0)
    if policy == "update":
        first, *others = ({uid: label.text for uid, label in every(lab).items()} for lab in labs)
        assert all(other == first for other in others)


def diverged(labs: list[Library], folder: Path) -> LabelItem:
    """A label that both labs edited, b twice."""
    label = add(labs[0], "apples")
    send(labs[0], labs[1], folder)
    book.change(labs[0], label.id, LabelChange(version=1, text="apples, by a"), "ann")
    book.change(labs[1], label.id, LabelChange(version=1, text="apples by b"), "bob")
    book.change(labs[1], label.id, LabelChange(version=2, text="apples, by b"), "bob")
    return label


@pytest.mark.parametrize(
    ("policy", "done", "left"),
    [
        ("skip", "kept", ["apples, by a"]),
        ("update", "updated", ["apples, by b"]),
        ("duplicate", "duplicated", ["apples, by a", "apples, by b"]),
    ],
)
def test_a_conflict_is_settled_by_the_policy_and_reported(
    labs: list[Library], tmp_path: Path, policy: Any, done: str, left: list[str]
) -> None:
    label = diverged(labs, tmp_path)
    dry = import_labels(labs[0], pack(labs[1], tmp_path), "bob", policy=policy, dry_run=True)
    assert texts(labs[0]) == ["apples, by a"]
    report = import_labels(labs[0], pack(labs[1], tmp_path), "bob", policy=policy)
    assert report == dry.model_copy(update={"dry_run": False})
    conflict = report.conflicts[0]
    assert (conflict.id, conflict.mine, conflict.theirs) == (label.id, "apples, by a", "apples, by b")
    assert (conflict.my_version, conflict.their_version, conflict.done, conflict.line) == (2, 3, done, 2)
    assert texts(labs[0]) == left
    again = import_labels(labs[0], pack(labs[1], tmp_path), "bob", policy=policy)
    assert texts(labs[0]) == left
    assert (again.created, again.updated, again.duplicated) == (0, 0, 0)


def test_an_old_pack_does_not_undo_newer_words(labs: list[Library], tmp_path: Path) -> None:
    a = labs[0]
    label = add(a, "first")
    old = pack(a, tmp_path)
    book.change(a, label.id, LabelChange(version=1, text="second"), "ann")
    report = import_labels(a, old, "bob", policy="update")
    assert (report.kept, report.conflicts[0].done, texts(a)) == (1, "kept", ["second"])


def test_no_pack_moves_a_label_to_another_feature(labs: list[Library], tmp_path: Path) -> None:
    label = add(labs[0], "apples", 1)
    moved = write(tmp_path, {**GOOD, "id": label.id, "index": 2, "text": "apples", "version": 9})
    report = import_labels(labs[0], moved, "bob", policy="update")
    assert (report.kept, every(labs[0])[label.id].index) == (1, 1)


def test_an_update_can_be_undone_and_a_deletion_stays(labs: list[Library], tmp_path: Path) -> None:
    label = diverged(labs, tmp_path)
    send(labs[1], labs[0], tmp_path, "update")
    assert talk.undo(labs[0], label.id, "ann").text == "apples, by a"
    book.delete(labs[0], label.id, "ann")
    report = send(labs[1], labs[0], tmp_path, "update")
    assert (report.kept, report.conflicts[0].deleted_here, texts(labs[0])) == (1, True, [])


def test_other_tensors_are_refused(tmp_path: Path) -> None:
    a, other = make_lab(tmp_path / "a"), make_lab(tmp_path / "o", seed=1)
    add(a, "apples")
    with pytest.raises(Conflict, match="pack.jsonl, line 2: the label is for tensors .* but m/3-tiny here has"):
        import_labels(other, pack(a, tmp_path), "bob")
    with pytest.raises(Conflict, match="the label is for tensors"):
        import_labels(other, pack(a, tmp_path), "bob", sae="m/3-tiny")
    renamed = write(tmp_path, {"sae": "x/9-y", "sae_sha256": sha_of("m/4-tiny"), "index": 5, "text": "same tensors"})
    import_labels(a, renamed, "bob")
    assert [label.feature for label in every(a).values() if label.text == "same tensors"] == ["m/4-tiny/5"]


SHA = sha_of("m/3-tiny")
GOOD = {"sae_sha256": SHA, "index": 1, "text": "good"}


@pytest.mark.parametrize(
    ("bad", "error", "sentence"),
    [
        ("{", InputError, "rows.jsonl, line 3: no JSON"),
        ("7", InputError, "line 3: a label is a JSON object"),
        ({**GOOD, "text": " "}, InputError, "line 3: text: String should have at least 1 character"),
        ({**GOOD, "text": "a\x00b"}, InputError, "line 3: text: String should match"),
        ({**GOOD, "examples": ["a\x00b"]}, InputError, "line 3: examples: Value error, holds a NUL character"),
        ({**GOOD, "tezt": "x"}, InputError, "line 3: tezt: Extra inputs"),
        ({**GOOD, "index": 1000}, NotFound, "line 3: SAE m/3-tiny has features 0 to 999, and none 1,000"),
        ({**GOOD, "sae_sha256": "0" * 64}, NotFound, "line 3: no SAE here has the tensors 000000000000"),
        ({"feature": "m/3-tiny/1", "text": "x"}, InputError, "line 3: it does not say by `sae_sha256`"),
        ({"feature": "nonsense", "text": "x"}, InputError, "line 3: 'nonsense' is no feature's id"),
        ({"sae_sha256": SHA, "text": "x"}, InputError, "line 3: it names no feature"),
        ({**GOOD, "score": 1}, InputError, "line 3: a score and its score_method"),
        ({**GOOD, "source": "model"}, InputError, "line 3: source 'model' needs"),
        ({**GOOD, "id": "-; drop"}, InputError, "line 3: id: String should match"),
        (
            {"scopebase_labels": 9, "home": "x", "exported_at": "2026-01-01T00:00:00Z"},
            InputError,
            "line 3: a pack of format 9",
        ),
    ],
)
def test_one_wrong_line_and_nothing_is_written(
    labs: list[Library], tmp_path: Path, bad: Any, error: type, sentence: str
) -> None:
    with pytest.raises(error) as refused:
        import_labels(labs[0], write(tmp_path, GOOD, {**GOOD, "index": 2}, bad), "bob")
    assert sentence in str(refused.value)
    assert every(labs[0]) == {}


def test_a_pack_by_hand_needs_little(labs: list[Library], tmp_path: Path) -> None:
    rows = write(tmp_path, {"feature": "m/3-tiny/1", "text": "one"}, "", {"index": 2, "text": "two"})
    for _ in range(2):
        report = import_labels(labs[0], rows, "bob", sae="m/3-tiny")
    assert (report.created, report.unchanged) == (0, 2)
    assert {(label.index, label.text, label.author) for label in every(labs[0]).values()} == {
        (1, "one", "bob"),
        (2, "two", "bob"),
    }
    with pytest.raises(InputError, match="it speaks of m/3-tiny, and --sae says m/4-tiny"):
        import_labels(labs[0], rows, "bob", sae="m/4-tiny")


def test_an_interrupted_import_goes_on(labs: list[Library], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "BATCH", 4)
    rows = write(tmp_path, *({**GOOD, "index": i} for i in range(10)))
    done: list[int] = []

    def interrupt(n: int, total: int) -> None:
        done.append(n)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_labels(labs[0], rows, "bob", advance=interrupt)
    assert len(every(labs[0])) == 8
    report = import_labels(labs[0], rows, "bob")
    assert (report.created, report.unchanged, len(every(labs[0]))) == (2, 8, 10)


def test_an_id_twice_in_a_pack_is_a_conflict_like_any_other(labs: list[Library], tmp_path: Path) -> None:
    rows = write(
        tmp_path, {**GOOD, "id": "x1"}, {**GOOD, "id": "x1", "text": "better", "version": 2}, {**GOOD, "id": "x1"}
    )
    report = import_labels(labs[0], rows, "bob")
    assert (report.created, report.kept, report.unchanged, texts(labs[0])) == (1, 1, 1, ["good"])


def test_an_export_goes_on_behind_the_last_label_received(
    labs: list[Library], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.services.labels.export.PAGE", 3)
    a, b, _ = labs
    for i in range(10):
        add(a, f"text {i}", i)
    whole = b"".join(export(a, Filter())).splitlines(keepends=True)
    cut = whole[:5]
    rest = b"".join(export(a, Filter(), after=json.loads(cut[-1])["id"])).splitlines(keepends=True)
    assert [json.loads(line)["id"] for line in (*cut[1:], *rest[1:])] == [json.loads(line)["id"] for line in whole[1:]]
    joined = tmp_path / "joined.jsonl"
    joined.write_bytes(b"".join([*cut, *rest]))
    assert import_labels(b, joined, "bob").created == 10
    with pytest.raises(NotFound, match="no label has the id 'gone'"):
        export(a, Filter(), after="gone")


def test_filters_hold_for_packs(labs: list[Library], tmp_path: Path) -> None:
    a, b, _ = labs
    add(a, "apples"), book.create(a, NewLabel(feature="m/4-tiny/2", text="pears"), "ann")
    import_labels(b, pack(a, tmp_path, sae="m/4-tiny"), "bob")
    assert texts(b) == ["pears"]


NEURONPEDIA = {
    "id": "cm1abcdefghijklmnopqrstuv",
    "modelId": "gpt2-small",
    "layer": "9-res-jb",
    "index": "200",
    "authorId": "clkht01d40000jv08hvalcvly",
    "description": "words about money",
    "embedding": [0.5] * 4,
    "typeName": "oai_token-act-pair",
    "explanationModelName": "gpt-4o-mini",
    "umap_x": 0.0,
    "umap_y": 0.0,
    "umap_cluster": 0,
    "umap_log_feature_sparsity": 0.0,
    "createdAt": "2025-06-01 12:00:00.000",
}


def test_neuronpedias_explanations_are_read_and_written(labs: list[Library], tmp_path: Path) -> None:
    a, b, _ = labs
    folder = tmp_path / "explanations"
    folder.mkdir()
    second = {**NEURONPEDIA, "id": "cm2", "index": 201, "explanationModelName": None, "description": "by hand"}
    (folder / "batch-0.jsonl.gz").write_bytes(gzip.compress((json.dumps(NEURONPEDIA) + "\n").encode()))
    (folder / "batch-1.jsonl").write_text(
        "\n".join(map(json.dumps, [second, {**second, "id": "cm3", "description": ""}]))
    )
    report = import_labels(a, folder, "bob", sae="m/3-tiny")
    assert (report.created, report.skipped) == (2, 1)
    label = every(a)["neuronpedia:cm1abcdefghijklmnopqrstuv"]
    assert (label.index, label.text, label.source, label.explainer) == (
        200,
        "words about money",
        "model",
        "gpt-4o-mini",
    )
    assert (label.method, label.author, label.origin[0].home) == (
        "oai_token-act-pair",
        NEURONPEDIA["authorId"],
        "neuronpedia",
    )
    assert every(a)["neuronpedia:cm2"].source == "import"
    out = pack(a, tmp_path, "neuronpedia", sae="m/3-tiny")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    same = ("id", "index", "description", "typeName", "explanationModelName", "authorId")
    assert {name: rows[0][name] for name in same} == {name: NEURONPEDIA[name] for name in same}
    assert (rows[0]["modelId"], rows[0]["layer"], rows[1]["index"]) == ("m", "3-tiny", "201")
    import_labels(b, out, "bob", sae="m/3-tiny")
    assert set(every(b)) == set(every(a))
    assert import_labels(a, out, "bob", sae="m/3-tiny").unchanged == 2
    with pytest.raises(InputError, match="Neuronpedia's rows are those of one SAE"):
        export(a, Filter(), "neuronpedia")
    with pytest.raises(InputError, match="line 1: it does not say by `sae_sha256` which tensors"):
        import_labels(b, out, "bob")


def test_rows_of_two_saes_are_not_taken_for_one(labs: list[Library], tmp_path: Path) -> None:
    rows = write(tmp_path, NEURONPEDIA, {**NEURONPEDIA, "id": "x", "layer": "10-res-jb"})
    with pytest.raises(InputError, match="line 2: it is of gpt2-small/10-res-jb, those before of gpt2-small/9-res-jb"):
        import_labels(labs[0], rows, "bob", sae="m/3-tiny")


def test_parquet_that_is_none_is_said(labs: list[Library], tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match="x.parquet is no Parquet file that can be read"):
        import_labels(labs[0], path, "bob")
    pq.write_table(
        pa.table({"index": [1], "text": [None]}, schema=pa.schema([("index", pa.int64()), ("text", pa.utf8())])), path
    )
    with pytest.raises(InputError, match="x.parquet, row 1: text: Field required"):
        import_labels(labs[0], path, "bob", sae="m/3-tiny")
    broken = tmp_path / "x.jsonl.gz"
    broken.write_bytes(gzip.compress(json.dumps(GOOD).encode() * 500)[:60])
    with pytest.raises(InputError, match="cannot be read on"):
        import_labels(labs[0], broken, "bob")
    with pytest.raises(InputError, match="holds no .jsonl"):
        (tmp_path / "empty").mkdir()
        import_labels(labs[0], tmp_path / "empty", "bob")


def test_neuronpedias_batches_are_written_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,024 features a file, by their number, as they read them; here fewer, because the labs' SAEs are small."""
    monkeypatch.setattr("api.services.exchange.label_batches.FEATURES_A_BATCH", 64)
    a, b = make_lab(tmp_path / "a"), make_lab(tmp_path / "b")
    for feature in (0, 63, 64, 130, 131, 999):
        add(a, f"about {feature}", feature), add(a, "数学", feature)
    assert write_batches(a, Filter(sae="m/3-tiny"), tmp_path / "np") == (12, 4)
    files = {path.name: gzip.decompress(path.read_bytes()).splitlines() for path in (tmp_path / "np").rglob("*.gz")}
    found = {name: [int(json.loads(line)["index"]) for line in lines] for name, lines in files.items()}
    assert found == {
        "batch-0.jsonl.gz": [0, 0, 63, 63],
        "batch-1.jsonl.gz": [64, 64],
        "batch-2.jsonl.gz": [130, 130, 131, 131],
        "batch-15.jsonl.gz": [999, 999],
    }
    assert (tmp_path / "np" / "explanations" / "batch-15.jsonl.gz").exists()
    assert import_labels(a, tmp_path / "np", "bob", sae="m/3-tiny").unchanged == 12, "they come home under their ids"
    assert import_labels(b, tmp_path / "np", "bob", sae="m/3-tiny").created == 12
    one = tmp_path / "np" / "explanations" / "batch-2.jsonl.gz"
    assert import_labels(b, one, "bob", sae="m/3-tiny").unchanged == 4
    assert {(x.index, x.text) for x in every(b).values()} == {(x.index, x.text) for x in every(a).values()}
    with pytest.raises(Conflict, match="holds files already"):
        write_batches(a, Filter(sae="m/3-tiny"), tmp_path / "np")
    with pytest.raises(InputError, match="Neuronpedia's rows are those of one SAE"):
        write_batches(a, Filter(), tmp_path / "other")
    for lab in (a, b):
        lab.home.close()
