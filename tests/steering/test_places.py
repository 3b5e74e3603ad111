"""Which tokens `where` names, against a plain reading of it token by token."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schema.errors import InputError
from schema.wire.steering import Where
from steering.places import Place

SPECIAL = frozenset({0, 1})
IDS = st.lists(st.integers(0, 6), min_size=1, max_size=12)
POSITIONS = st.lists(st.integers(-14, 14), max_size=4)
COUNTED = st.lists(st.integers(0, 14), max_size=4)
TOKENS = st.lists(st.integers(0, 6), max_size=4)


@st.composite
def wheres(draw: st.DrawFn) -> Where:
    made: dict[str, Any] = {"skip_special": draw(st.booleans())}
    for phase, number in (("prompt", st.integers(-14, 14)), ("generation", st.integers(0, 14))):
        kind = draw(
            st.sampled_from(["all", "last" if phase == "prompt" else "all", "none", "window", "positions", "both"])
        )
        if kind in ("all", "last", "none"):
            made[phase] = kind
        if kind in ("window", "both"):
            made[f"{phase}_window"] = [draw(number), draw(number)]
        if kind in ("positions", "both"):
            made[f"{phase}_positions"] = draw(POSITIONS if phase == "prompt" else COUNTED)
    made["tokens"] = draw(st.none() | TOKENS)
    made["exclude_tokens"] = draw(TOKENS)
    made["exclude_prompt_positions"] = draw(POSITIONS)
    made["exclude_generation_positions"] = draw(COUNTED)
    return Where(**made)


def plainly(where: Where, prompt: list[int], generated: list[int], position: int) -> bool:
    """Whether a token is touched, read off the words of `Where`."""
    in_prompt = position < len(prompt)
    token = (prompt + generated)[position]
    number = position if in_prompt else position - len(prompt)
    names = {number, number - len(prompt)} if in_prompt else {number}
    window = where.prompt_window if in_prompt else where.generation_window
    positions = where.prompt_positions if in_prompt else where.generation_positions
    phase: str = where.prompt if in_prompt else where.generation
    if window is not None or positions is not None:
        held = list(range(len(prompt) if in_prompt else 100))
        included = (window is not None and number in held[window[0] : window[1]]) or bool(names & set(positions or []))
    else:
        included = phase == "all" or (phase == "last" and number == len(prompt) - 1)
    excluded = names & set(where.exclude_prompt_positions if in_prompt else where.exclude_generation_positions)
    special = where.skip_special and (token in SPECIAL or position == 0)
    wanted = where.tokens is None or token in where.tokens
    return included and wanted and not excluded and not special and token not in where.exclude_tokens


@given(where=wheres(), prompt=IDS, generated=st.lists(st.integers(0, 6), max_size=6), data=st.data())
def test_the_tokens_that_are_touched(
    where: Where, prompt: list[int], generated: list[int], data: st.DataObject
) -> None:
    place = Place(where, prompt, SPECIAL)
    whole = prompt + generated
    want = [position for position in range(len(whole)) if plainly(where, prompt, generated, position)]
    assert place.columns(whole, 0) == want
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=4)))
    pieces = zip([0, *cuts], [*cuts, len(whole)], strict=True)
    assert [a + column for a, b in pieces for column in place.columns(whole[a:b], a)] == want
    if want:
        assert place.can_touch(len(generated) + 1)  # the last one, which is not fed, comes after these


@given(first=wheres(), second=wheres(), prompt=IDS, generated=st.lists(st.integers(0, 6), min_size=1, max_size=6))
def test_places_that_share_a_token_overlap(
    first: Where, second: Where, prompt: list[int], generated: list[int]
) -> None:
    """`overlaps` knows no generated token beforehand, so that it may be True without one; False it is only where none can be."""
    one, other = Place(first, prompt, SPECIAL), Place(second, prompt, SPECIAL)
    whole = prompt + generated
    shared = set(one.columns(whole, 0)) & set(other.columns(whole, 0))
    overlap = one.overlaps(other, len(generated) + 1)
    assert overlap == other.overlaps(one, len(generated) + 1)
    if shared:
        assert overlap
    in_prompt = {position for position in range(len(prompt)) if one.prompt[position] and other.prompt[position]}
    if overlap and not in_prompt:
        possible = [
            (number, token)
            for number in range(len(generated))
            for token in range(-1, 7)
            if one.generated(number, token) and other.generated(number, token)
        ]
        assert possible


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ({"prompt": "none", "prompt_window": [0, 2]}, "where says prompt 'none' and names positions of the prompt too"),
        ({"prompt": "last", "prompt_positions": [1]}, "where says prompt 'last'"),
        ({"generation": "none", "generation_positions": [1]}, "where says generation 'none'"),
        ({"generation_positions": [-1]}, "position -1 of what is generated, but its end is not known; count from 0"),
        ({"generation_window": [-3, 4]}, "position -3 of what is generated"),
        ({"exclude_generation_positions": [-2]}, "position -2 of what is generated"),
    ],
)
def test_a_where_that_contradicts_itself(where: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Place(Where(**where), [3, 4, 5], SPECIAL)
