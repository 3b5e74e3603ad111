from __future__ import annotations

import pytest

from schema.errors import InputError
from schema.recipe import Recipe, check_template, unescape


def test_the_text_field_is_the_text() -> None:
    assert Recipe(text_field="q").render({"q": "Why?"}) == "Why?"


def test_a_template_joins_fields_and_takes_numbers() -> None:
    recipe = Recipe(template=unescape("{question}\\nAnswer: {answer} {{x}}"))
    assert recipe.render({"question": "1+1?", "answer": 2}) == "1+1?\nAnswer: 2 {x}"


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"body": "x"}, "has no field 'text'.*--text-field"),
        ({"text": None}, "is null, not text"),
        ({"text": 3}, "is a number, not text"),
        ({"text": ["a"]}, "is a list, not text"),
    ],
)
def test_what_holds_no_text_is_refused_in_words(record: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Recipe().render(record)


@pytest.mark.parametrize("template", ["", "no field", "{", "{0}", "{}", "{a.b!r}", "{a:>10}"])
def test_a_broken_template_is_refused(template: str) -> None:
    with pytest.raises(InputError, match="template"):
        check_template(template)


def test_fields_are_names_not_paths_into_objects() -> None:
    with pytest.raises(InputError, match="has no field 'a.__class__'"):
        Recipe(template="{a.__class__}").render({"a": "x"})


@pytest.mark.parametrize("changes", [{"mask": "last"}, {"max_tokens": 0}, {"max_tokens": 70_000}])
def test_contradictions_are_refused_at_once(changes: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Recipe(**changes)  # type: ignore[arg-type]


def test_a_recipes_hash_changes_with_every_field() -> None:
    hashes = {
        Recipe(**change).sha256
        for change in ({}, {"mask": "none"}, {"max_tokens": 9}, {"dtype": "bfloat16"}, {"template": "{a}"})
    }  # type: ignore[arg-type]
    assert len(hashes) == 5
