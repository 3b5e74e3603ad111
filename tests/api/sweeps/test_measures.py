"""What is measured of a text, against plain Python that tries everything."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.services.sweeps.measures import has_words, is_endless, longest_repeat, repetition, script_share
from schema.errors import InputError

IDS = st.lists(st.integers(0, 3), max_size=40)


def grams(ids: list[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]


@given(IDS, st.integers(1, 6))
def test_repetition_counts_n_grams_that_stood_there_before(ids: list[int], n: int) -> None:
    all_ = grams(ids, n)
    again = sum(gram in all_[:i] for i, gram in enumerate(all_))
    assert repetition(ids, n) == (pytest.approx(again / len(all_)) if all_ else None)


@given(IDS)
def test_the_longest_repeat_is_the_longest(ids: list[int]) -> None:
    best = max((n for n in range(1, len(ids)) if len(set(grams(ids, n))) < len(grams(ids, n))), default=0)
    assert longest_repeat(ids) == (pytest.approx(best / len(ids)) if ids else None)


@given(IDS, st.integers(2, 12), st.integers(2, 4), st.integers(1, 6))
def test_endless_is_a_periodic_tail(ids: list[int], tail: int, times: int, period: int) -> None:
    def periodic(p: int) -> bool:
        length = max(tail, times * p)
        end = ids[len(ids) - length :]
        return length <= len(ids) and all(end[i] == end[i + p] for i in range(length - p))

    assert is_endless(ids, False, tail, times, period) == any(periodic(p) for p in range(1, period + 1))
    assert not is_endless(ids, True, tail, times, period)


@given(st.text(alphabet="aé漢字ЖщΩ 1!。ー", max_size=30))
def test_a_script_s_share_is_of_letters(text: str) -> None:
    letters = [char for char in text if unicodedata.category(char).startswith("L")]
    for script, prefix in (("Han", "CJK"), ("Cyrillic", "CYRILLIC"), ("Latin", "LATIN"), ("Greek", "GREEK")):
        own = [char for char in letters if unicodedata.name(char).startswith(prefix)]
        assert script_share(text, script) == (pytest.approx(len(own) / len(letters)) if letters else None)


def test_words_are_whole_and_in_any_case() -> None:
    assert has_words("A Dog ran.", ["dog"])
    assert not has_words("A hotdog and dogs", ["dog"])
    assert has_words("他说明月出", ["明月"])
    assert has_words("naïve cafe\u0301", ["CAFÉ"])
    assert has_words("50 % (of it)", ["%"])


def test_an_unknown_script_is_refused_in_a_sentence() -> None:
    for script in ("Klingon", "Han}|.", ""):
        with pytest.raises(InputError, match="not a Unicode script"):
            script_share("a", script)
