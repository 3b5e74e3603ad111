"""The first reading of a dataset: what is refused, counted and hashed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.survey import DatasetSpec, ShardSize, _Shards, read_again, survey
from schema.errors import InputError
from schema.recipe import Recipe
from schema.records import Survey
from tests.making import write_jsonl

SIZE = ShardSize(samples=10, chars=10_000)


def look(path: Path, **options: Any) -> Survey:
    return survey(DatasetSpec("d", str(path), options.pop("recipe", Recipe()), **options), SIZE)


def test_a_dataset_is_counted_and_hashed(tmp_path: Path) -> None:
    rows = [{"id": f"r{i}", "text": "word " * (i + 1), "n": i, "tags": None} for i in range(25)]
    found = look(write_jsonl(tmp_path / "x.jsonl", rows))
    assert (found.n_samples, found.id_field, found.skipped) == (25, "id", 0)
    assert found.fields == {"id": "text", "text": "text", "n": "number", "tags": "null"}
    assert [(s.first, s.stop) for s in found.shards] == [(0, 10), (10, 20), (20, 25)]
    same = look(write_jsonl(tmp_path / "y.jsonl", rows))
    assert same.sha256 == found.sha256


def test_a_changed_row_is_another_dataset(tmp_path: Path) -> None:
    rows = [{"id": f"r{i}", "text": "word"} for i in range(5)]
    first = look(write_jsonl(tmp_path / "x.jsonl", rows))
    assert look(write_jsonl(tmp_path / "a.jsonl", rows[::-1])).sha256 != first.sha256
    assert (
        look(write_jsonl(tmp_path / "b.jsonl", [*rows[:4], {"id": "r4", "text": "word", "answer": 1}])).sha256
        != first.sha256
    )
    assert look(write_jsonl(tmp_path / "x.jsonl", rows), limit=4).sha256 != first.sha256


def test_rows_without_ids_are_numbered(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [{"text": "a"}, {"text": "b"}])
    assert look(path).id_field is None
    assert [sample.id for sample in read_again(DatasetSpec("d", str(path), Recipe()), look(path).sha256)] == ["0", "1"]


def row(**changes: Any) -> dict[str, Any]:
    return {"id": "x", "text": "fine", **changes}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"id": "x", "body": "no text"}, "has no field 'text'"),
        (row(text=7), "is a number, not text"),
        (row(text=None), "is null, not text"),
        (row(text=""), "empty or only white space"),
        (row(text=" \n\t\u3000 "), "empty or only white space"),
        (row(text="a" * 1_000_000), "has 1,000,000 characters, the limit is 999,999"),
        (row(text="a\x00b"), "holds a NUL character"),
        (row(text="a\ud800b"), r"holds a lone surrogate \(U\+D800 at 1\)"),
        ({"text": "no id"}, "has no id field 'id'"),
        (row(id=None), "its id is None"),
        (row(id=1.5), "its id is 1.5"),
        (row(id=True), "its id is True"),
        (row(id=""), "its id is ''"),
        (row(id="\ud800"), "holds a NUL or a lone surrogate"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, bad: dict[str, Any], words: str) -> None:
    good = {"id": "ok", "text": "fine"}
    path = write_jsonl(tmp_path / "x.jsonl", [good, bad])
    with pytest.raises(InputError, match=f"line 2.*{words}"):
        look(path)
    found = look(write_jsonl(tmp_path / "y.jsonl", [good, bad, row(id="z")]), skip_bad=True)
    assert (found.n_samples, found.skipped) == (2, 1)
    assert "line 2" in found.faults[0]


def test_the_same_id_twice_is_refused_with_both_places(tmp_path: Path) -> None:
    rows = [{"id": f"r{i % 7000}", "text": "x"} for i in range(7001)]  # beyond one block of ids
    with pytest.raises(InputError, match="id 'r0' comes twice, at x.jsonl line 1 and x.jsonl line 7001"):
        look(write_jsonl(tmp_path / "x.jsonl", rows))
    assert look(tmp_path / "x.jsonl", id_field="").n_samples == 7001


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_dataset_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(InputError, match="has no row; give a source with at least one"):
        look(tmp_path / "x.jsonl")


def test_a_dataset_of_bad_rows_only_is_refused_even_when_they_are_skipped(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [row(text=1), row(text=2)])
    with pytest.raises(InputError, match="has no usable row; the first fault: .* not text"):
        look(path, skip_bad=True)


def test_a_source_that_changes_under_the_reader_is_noticed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [row()])
    found = look(path)
    write_jsonl(path, [row(text="other")])
    with pytest.raises(InputError, match="changed while it was read"):
        list(read_again(DatasetSpec("d", str(path), Recipe()), found.sha256))


def test_every_field_is_kept_as_it_came(tmp_path: Path) -> None:
    record = row(answer={"deep": [1, None, "ü", "\ud83c"]}, score=1.5)
    path = write_jsonl(tmp_path / "x.jsonl", [record])
    kept = next(read_again(DatasetSpec("d", str(path), Recipe()), look(path).sha256))
    assert json.loads(kept.record) == record


@given(st.lists(st.integers(1, 400), min_size=1, max_size=60), st.integers(1, 12), st.integers(1, 900))
def test_shards_cover_every_sample_once_and_keep_their_size(lengths: list[int], samples: int, chars: int) -> None:
    cut = _Shards(ShardSize(samples, chars), most_chars=200)
    for length in lengths:
        cut.add(length)
    shards = cut.finish()
    assert [s.first for s in shards] == [0, *(s.stop for s in shards[:-1])]
    assert shards[-1].stop == len(lengths)
    for shard in shards:
        work = sum(min(length, 200) for length in lengths[shard.first : shard.stop])
        assert shard.stop - shard.first <= samples
        assert work == shard.n_chars
        assert work <= chars or shard.stop - shard.first == 1
