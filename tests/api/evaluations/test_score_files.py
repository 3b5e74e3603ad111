"""Scores as lm-eval, Inspect and spreadsheets write them."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from api.services.evaluations import files, inspect_logs
from api.services.evaluations.files import parse_rows, read_file
from api.services.evaluations.inspect_logs import ZSTD_METHOD
from api.services.evaluations.scored import ScoreFile
from schema.errors import InputError


def scores(file: ScoreFile) -> dict[str, float]:
    return {row.shown: row.score for row in file.rows}


def lm_eval(doc_id: int, filter_: str = "none", **metrics: Any) -> dict[str, Any]:
    return {
        "doc_id": doc_id,
        "doc": {"question": f"What is {doc_id} and one more?", "answer": str(doc_id + 1)},
        "target": str(doc_id + 1),
        "arguments": [["Q", {}]],
        "resps": [["2"]],
        "filtered_resps": ["2"],
        "filter": filter_,
        "metrics": list(metrics),
        "doc_hash": "ab",
        **metrics,
    }


def inspect_sample(id_: Any, value: Any, epoch: int = 1, scorer: str = "match") -> dict[str, Any]:
    return {
        "id": id_,
        "epoch": epoch,
        "input": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Question {id_}?"}],
        "target": "2",
        "metadata": {"level": "easy"},
        "scores": {scorer: {"value": value, "answer": "2"}},
    }


HEADER = {"version": 2, "status": "success", "eval": {"task": "sums", "model": "openai/gpt-x"}}


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_lm_eval_samples(tmp_path: Path) -> None:
    rows = [lm_eval(3, acc=1.0, acc_norm=0.0), lm_eval(0, acc=0.0, acc_norm=1.0)]
    found = read_file(lines(tmp_path / "samples_sums.jsonl", rows), "acc")
    assert (found.format, scores(found)) == ("lm-eval", {"doc_id 3": 1.0, "doc_id 0": 0.0})
    assert found.rows[0].fields["answer"] == "4"
    packed = tmp_path / "samples.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "samples_sums.jsonl").read_bytes()))
    assert scores(read_file(packed, "acc_norm")) == {"doc_id 3": 0.0, "doc_id 0": 1.0}


def test_damaged_and_odd_files_are_one_sentence(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps({"doc_id": 0, "acc": 1}).encode() * 50, mtime=0)
    odd = {
        "cut.jsonl.gz": whole[:-12],
        "broken.jsonl.gz": whole[:20] + b"\xff" * 8 + whole[28:],
        "list.json": b'{"samples": [[1]]}',
        "scores.json": b'{"samples": [{"id": 1, "scores": [1]}]}',
        "deep.json": b"[" * 100_000,
    }
    for name, content in odd.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            read_file(tmp_path / name, "acc")
    with pytest.raises(InputError, match="is no finite number"):
        parse_rows([{"id": "a", "acc": 1e300}], "acc", "x")


def test_a_filter_is_chosen_as_lm_eval_names_it() -> None:
    rows = [lm_eval(0, f, exact_match=v) for f, v in (("strict-match", 0), ("flexible-extract", 1))]
    assert scores(parse_rows(rows, "exact_match,flexible-extract", "x")) == {"doc_id 0": 1.0}
    with pytest.raises(
        InputError, match="several filters; choose one: exact_match,flexible-extract or exact_match,strict"
    ):
        parse_rows(rows, "exact_match", "x")
    with pytest.raises(InputError, match="no filter 'loose'; it has flexible-extract, strict-match"):
        parse_rows(rows, "exact_match,loose", "x")


@pytest.mark.parametrize(("value", "score"), [("C", 1), ("I", 0), ("P", 0.5), ("N", 0), (0.25, 0.25), (True, 1)])
def test_inspect_values(tmp_path: Path, value: Any, score: float) -> None:
    path = tmp_path / "log.json"
    path.write_text(json.dumps({**HEADER, "samples": [inspect_sample("a", value)]}, indent=2))
    found = read_file(path, "match")
    assert (found.format, found.evaluated, scores(found)) == ("inspect", "openai/gpt-x", {"a": score})
    assert found.rows[0].fields == {"level": "easy", "input": "Question a?"}


def test_inspect_epochs_are_averaged_and_values_by_key_found(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    samples = [inspect_sample(1, {"right": "C", "polite": 0.5}, epoch) for epoch in (1, 2)]
    samples[1]["scores"]["match"]["value"]["right"] = "I"
    path.write_text(json.dumps({**HEADER, "samples": samples}))
    assert scores(read_file(path, "match.right")) == {"1": 0.5}
    assert scores(read_file(path, "polite")) == {"1": 0.5}
    assert read_file(path, "polite").rows[0].order == 0


def zstd_zip(path: Path, members: dict[str, bytes]) -> None:
    """A zip of method 93, which this Python cannot write: made as stored, then its headers are changed."""
    packed = {name: pa.Codec("zstd").compress(text, asbytes=True) for name, text in members.items()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in packed.items():
            archive.writestr(name, text)
    raw = bytearray(buffer.getvalue())
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = raw.find(signature)
        while at >= 0:
            struct.pack_into("<H", raw, at + offset, ZSTD_METHOD)
            at = raw.find(signature, at + 4)
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize("method", ["deflated", "zstd"])
def test_inspect_eval_files(tmp_path: Path, method: str) -> None:
    members = {
        "header.json": json.dumps(HEADER).encode(),
        "_journal/start.json": b"{}",
        "samples/b_epoch_1.json": json.dumps(inspect_sample("b", "I")).encode(),
        "samples/a_epoch_1.json": json.dumps(inspect_sample("a", "C")).encode(),
        "summaries.json": b"[]",
    }
    path = tmp_path / "log.eval"
    if method == "zstd":
        zstd_zip(path, members)
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in members.items():
                archive.writestr(name, text)
    found = read_file(path, "match")
    assert (found.evaluated, scores(found)) == ("openai/gpt-x", {"a": 1.0, "b": 0.0})


def test_a_member_that_claims_four_gigabytes_takes_no_more_than_the_file(tmp_path: Path) -> None:
    sample = json.dumps(inspect_sample("a", "C")).encode()
    path = tmp_path / "log.eval"
    zstd_zip(path, {"header.json": json.dumps(HEADER).encode(), "samples/a.json": sample})
    raw = bytearray(path.read_bytes())
    struct.pack_into("<I", raw, raw.rfind(b"PK\x01\x02") + 20, 0xFFFFFFFE)
    path.write_bytes(bytes(raw))
    tracemalloc.start()
    with contextlib.suppress(InputError):
        read_file(path, "match")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 << 20


def test_csv_and_plain_rows(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("id,score,acc\na,0.5,1\nb,0.25,false\n", encoding="utf-8-sig")
    assert scores(read_file(path, "f1")) == {"a": 0.5, "b": 0.25}
    assert scores(read_file(path, "acc")) == {"a": 1.0, "b": 0.0}
    rows = [{"id": 7, "score": True}, {"id": "x", "score": 0.125}]
    assert scores(read_file(lines(tmp_path / "rows.jsonl", rows), "acc")) == {"7": 1.0, "x": 0.125}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "x has no rows"),
        ([{"score": 1}], "x, row 1: no 'id'"),
        ([{"id": "a"}], "x, row 1: score='None' is no finite number"),
        ([{"id": "a", "score": "nan"}], "score='nan' is no finite number; leave such rows out"),
        ([{"id": "a", "score": float("inf")}], "score='inf' is no finite number"),
        ([{"id": "a", "score": 10**400}], "is no finite number"),
        ([{"id": "a", "score": "good"}], "score='good' is no finite number"),
        ([lm_eval(0, acc=[1, 2])], "acc=.* is no finite number"),
        ([lm_eval(0, f1=0.5)], "no metric 'acc'; it has f1"),
        ([{**lm_eval(0, acc=1), "doc_id": "a"}], "doc_id='a' is no whole number"),
    ],
)
def test_rows_that_are_no_scores_are_refused(rows: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_rows(rows, "acc", "x")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"id": "a", "score": 1}\nbroken\n', "line 2: no JSON"),
        ("a.jsonl", b'{"id": "a", "score": 1}\n[1]\n', "line 2: expected a JSON object"),
        ("a.json", b"broken", "is no JSON"),
        ("a.json", b'{\n"results": {}\n}', "an Inspect log has a list 'samples'"),
        ("a.json", b'{"samples": [\n]}', "has no samples; was the log written without them"),
        ("a.csv", b"\xff\xfe\x00", "expected lm-eval samples"),
        ("a.eval", b"PK\x03\x04 broken", "expected lm-eval samples"),
    ],
)
def test_files_that_are_no_scores_are_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        read_file(path, "acc")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing.csv cannot be read: No such file"):
        read_file(tmp_path / "nothing.csv", "acc")


def test_a_scorer_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    sample = inspect_sample("a", "C")
    sample["scores"]["judge"] = {"value": 1}
    path.write_text(json.dumps({**HEADER, "samples": [sample]}))
    with pytest.raises(InputError, match="sample a: no score 'acc'; its scorers are match, judge"):
        read_file(path, "acc")


def test_a_file_is_told_by_its_content(tmp_path: Path) -> None:
    """An upload has no name that ends in anything."""
    table = b"id,acc\r\na,1\r\nb,0\r\n"
    for content in (table, gzip.compress(table), b"\xef\xbb\xbf" + table):
        (tmp_path / "upload").write_bytes(content)
        found = read_file(tmp_path / "upload", "acc", "scores.of.ann")
        assert (found.format, found.source, scores(found)) == ("csv", "scores.of.ann", {"a": 1.0, "b": 0.0})
    log = {**HEADER, "samples": [inspect_sample("a", "C")]}
    (tmp_path / "upload").write_text(json.dumps(log, indent=1))
    assert scores(read_file(tmp_path / "upload", "match")) == {"a": 1.0}
    (tmp_path / "upload").write_text("good\nbad\n")
    with pytest.raises(InputError, match=r"^mine is no JSON and no table with a column id; expected lm-eval samples"):
        read_file(tmp_path / "upload", "acc", "mine")


def test_what_is_too_large_once_unpacked_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect_logs, "MOST_BYTES", 50_000)
    rows = json.dumps({"id": "a", "score": 1, "note": "x" * 60_000}).encode()
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(rows))
    members = {"header.json": json.dumps(HEADER).encode(), "samples/a.json": rows}
    zstd_zip(tmp_path / "packed.eval", members)
    with zipfile.ZipFile(tmp_path / "log.eval", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    for name in ("rows.jsonl.gz", "packed.eval", "log.eval"):
        with pytest.raises(
            InputError,
            match=f"{name}: larger than 50,000 bytes when unpacked, more than scores need; import it in parts",
        ):
            read_file(tmp_path / name, "acc")
    monkeypatch.setattr(inspect_logs, "MOST_BYTES", 1 << 30)
    monkeypatch.setattr(inspect_logs, "SLACK", 1000)
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(b'{"id": "a", "score": 1}' + b" " * 400_000))
    with pytest.raises(
        InputError, match="bomb.jsonl.gz: larger than [0-9]{2,3},000 bytes when unpacked, more than scores"
    ):
        read_file(tmp_path / "bomb.jsonl.gz", "acc")
    monkeypatch.setattr(files, "MOST_ROWS", 2)
    with pytest.raises(InputError, match="x has more than 2 rows"):
        parse_rows([{"id": str(i), "score": 1} for i in range(3)], "acc", "x")
