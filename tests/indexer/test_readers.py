"""Each kind of source, whole and broken."""

from __future__ import annotations

import datetime
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from indexer.readers import Row, read_rows
from schema.errors import InputError

ROWS = [{"id": "a", "text": "ein Satz"}, {"id": "b", "text": "zwei\nZeilen, „Komma“"}]


def records(source: Path | str) -> list[dict[str, Any]]:
    rows = list(read_rows(str(source)))
    assert all(row.fault is None for row in rows)
    return [row.record for row in rows]


def faults(source: Path) -> list[Row]:
    return [row for row in read_rows(str(source)) if row.fault]


def jsonl(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "X.JSONL"])
def test_jsonl(tmp_path: Path, name: str) -> None:
    assert records(jsonl(tmp_path / name)) == ROWS


def test_jsonl_with_a_byte_order_mark_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"a": 1}\n\n  \n{"a": 2}\n')
    assert records(path) == [{"a": 1}, {"a": 2}]
    assert [row.where for row in read_rows(str(path))] == ["x.jsonl line 1", "x.jsonl line 4"]


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('id,text\na,"ein, Satz"\nb,"zwei\nZeilen ""so"""\n')
    assert records(path) == [{"id": "a", "text": "ein, Satz"}, {"id": "b", "text": 'zwei\nZeilen "so"'}]


def test_parquet_with_kinds_that_json_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    table = pa.table(
        {"id": ["a"], "n": [3], "when": [datetime.date(2026, 1, 2)], "raw": [b"\x00\xff"], "parts": [[1, 2]]}
    )
    pq.write_table(table, path)
    assert records(path) == [{"id": "a", "n": 3, "when": "2026-01-02", "raw": "AP8=", "parts": [1, 2]}]


def test_a_directory_is_its_files_in_order(tmp_path: Path) -> None:
    jsonl(tmp_path / "d" / "2.jsonl", ROWS[1:])
    jsonl(tmp_path / "d" / "1.jsonl.gz", ROWS[:1])
    (tmp_path / "d" / "notes.txt").write_text("not read")
    assert records(tmp_path / "d") == ROWS


def test_hub_datasets_by_directory(tmp_path: Path) -> None:
    """The loading code of `datasets`, over local files: the hub itself cannot be asked in a test."""
    datasets = pytest.importorskip("datasets")
    jsonl(tmp_path / "plain" / "test.jsonl")
    jsonl(tmp_path / "plain" / "train.jsonl", ROWS * 2)
    assert records(f"hub:{tmp_path / 'plain'}") == ROWS, "the test split is taken where none is named"
    assert len(records(f"hub:{tmp_path / 'plain'}::train")) == 4
    assert len(records(f"hub:{tmp_path / 'plain'}:train")) == 4
    made = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
    made.save_to_disk(tmp_path / "saved")
    assert records(f"hub:{tmp_path / 'saved'}:train") == ROWS
    made["train"].save_to_disk(tmp_path / "one")
    assert records(f"hub:{tmp_path / 'one'}") == ROWS
    with pytest.raises(InputError, match="has no config or split 'validation'; its splits: train, test"):
        records(f"hub:{tmp_path / 'plain'}::validation")
    with pytest.raises(InputError, match="cannot be loaded"):
        records("hub:no/such-dataset")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.txt", b"text", "is none of .jsonl"),
        ("x.jsonl.gz", b"not gzip", "is a broken gzip file"),
        ("x.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 1000, mtime=0)[:-30], "is a broken gzip file .* after line"),
        ("x.csv", b'a,b\n"1,2\n', "is not CSV"),
        ("x.csv", b"a,a\n1,2\n", "two columns have the same name"),
        ("x.csv", b"a\n\xff\xfe\n", "is not UTF-8"),
        ("x.parquet", b"PAR1 no", "is no readable Parquet file"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        list(read_rows(str(tmp_path / name)))


def test_what_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match="there is no file or directory 'gsm8k'; a dataset of the Hugging Face hub is written 'hub:gsm8k'",
    ):
        list(read_rows("gsm8k"))
    with pytest.raises(InputError, match="holds no .jsonl"):
        list(read_rows(str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "bad", "words"),
    [
        ("x.jsonl", b'{"a": ', "is not JSON"),
        ("x.jsonl", b"[1, 2]", "is a JSON list, not an object"),
        ("x.jsonl", b'{"a": "\xff"}', "is not UTF-8"),
        ("x.jsonl", b"[" * 100_000, "is not JSON"),
        ("x.jsonl", b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
        ("x.csv", b"1,2", "has more fields than the header"),
    ],
)
def test_a_broken_row_leaves_those_after_it_readable(tmp_path: Path, name: str, bad: bytes, words: str) -> None:
    good = b'{"a": 1}' if name.endswith("jsonl") else b"1"
    head = b"" if name.endswith("jsonl") else b"a\n"
    (tmp_path / name).write_bytes(head + good + b"\n" + bad + b"\n" + good + b"\n")
    rows = list(read_rows(str(tmp_path / name)))
    assert [row.fault is None for row in rows] == [True, False, True]
    assert words in (rows[1].fault or "")
    assert faults(tmp_path / name)[0].where == f"{name} line {3 if head else 2}"
