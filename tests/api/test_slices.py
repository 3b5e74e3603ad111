"""Slices of datasets by the samples' fields, and what their samples fire, against plain Python over the rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from api.services import firing
from api.services.library import Library
from api.services.slices import group_samples, select_samples
from schema.errors import InputError, NotFound
from schema.lookup import Subject, find_sources, segments_of
from schema.packing import value_of_code
from tests.indexer.reference import Reference, reference
from tests.making import PROBLEMS, SONGS

SAE = "tiny-qwen3/2-tiny"


@pytest.fixture
def subject(library: Library) -> Subject:
    with library.home.database.reading() as session:
        return find_sources(session, SAE, ["problems", "songs"])


@pytest.fixture(scope="module")
def fired(model_dir: Any, release_dir: Any) -> Reference:
    """Problems in layer 2, one sample at a time."""
    return reference(model_dir, release_dir, [2], [row["text"] for row in PROBLEMS], 6, max_tokens=256)[2]


@pytest.mark.parametrize(
    ("where", "meets"),
    [
        ({}, lambda row: True),
        ({"level": 1}, lambda row: row["level"] == 1),
        ({"level": "1"}, lambda row: row["level"] == 1),
        ({"level": [0, 2], "text": {"contains": "PEARS"}}, lambda row: row["level"] != 1 and "pears" in row["text"]),
        ({"answer": {"min": 50, "max": 90}}, lambda row: 50 <= row["answer"] <= 90),
        ({"answer": {"min": 1000}}, lambda row: False),
    ],
)
def test_a_condition_selects_the_rows_that_meet_it(library: Library, subject: Subject, where: Any, meets: Any) -> None:
    wanted = [i for i, row in enumerate(PROBLEMS) if meets(row)]
    assert select_samples(library, subject.sources[0], where).tolist() == wanted


def test_groups_by_a_field(library: Library, subject: Subject) -> None:
    groups = group_samples(library, subject.sources[1], "mood")
    assert {value: found.tolist() for value, found in groups.items()} == {
        mood: [i for i, row in enumerate(SONGS) if row["mood"] == mood] for mood in ("gay", "sad")
    }


def test_what_cannot_be_selected_is_said(library: Library, subject: Subject) -> None:
    with pytest.raises(NotFound, match=r"no field of dataset problems named 'levle'; did you mean level\?"):
        select_samples(library, subject.sources[0], {"levle": 1})
    with pytest.raises(InputError, match=r"where 'level': a value, a list of values"):
        select_samples(library, subject.sources[0], {"level": {"least": 1}})


@pytest.mark.parametrize("few", [0, 1000])
@pytest.mark.parametrize("pool", ["any", "last"])
def test_counts_of_a_slice_are_those_of_its_samples(
    library: Library, subject: Subject, fired: Reference, monkeypatch: pytest.MonkeyPatch, pool: Any, few: int
) -> None:
    """By keys and by scan."""
    monkeypatch.setattr(firing, "FEW", few)
    source = subject.sources[0]
    chosen = select_samples(library, source, {"level": 1})
    counts = firing.count(library.store, source.pair, 256, pool, chosen)
    matrix = fired.any if pool == "any" else fired.last
    np.testing.assert_array_equal(counts, (np.asarray(matrix)[chosen] > 0).sum(0))


@pytest.mark.parametrize("pool", ["any", "last"])
def test_postings_name_the_samples_that_fire(library: Library, subject: Subject, fired: Reference, pool: Any) -> None:
    with library.home.database.reading() as session:
        segments = segments_of(session, subject.sources[0].pair)
    found = firing.postings(library.store, segments, range(256), pool)
    matrix = np.asarray(fired.any if pool == "any" else fired.last)
    for feature, posting in found.items():
        np.testing.assert_array_equal(posting.ordinals, np.flatnonzero(matrix[:, feature] > 0))
        np.testing.assert_allclose(value_of_code(posting.codes), matrix[posting.ordinals, feature], rtol=0.04)
