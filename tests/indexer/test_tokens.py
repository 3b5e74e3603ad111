from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from indexer.tokens import Tokenizer, counting, load_tokenizer
from schema.errors import InputError
from schema.recipe import Recipe


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path) -> Tokenizer:
    return load_tokenizer(model_dir, "tiny", 400)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [("none", [1, 1, 1, 1]), ("special", [0, 1, 0, 1]), ("first", [0, 1, 1, 1]), ("special,first", [0, 1, 0, 1])],
)
def test_masks(mask: str, expected: list[int]) -> None:
    ids = np.array([0, 7, 1, 8], np.int32)
    assert counting(ids, np.array([0, 1], np.int32), mask).tolist() == [bool(e) for e in expected]


def test_position_0_is_masked_even_where_no_special_token_stands_there() -> None:
    assert counting(np.array([5, 6], np.int32), np.array([0], np.int32), "special,first").tolist() == [False, True]


def test_offsets_cut_the_text_into_its_tokens(tokenizer: Tokenizer) -> None:
    text = "Ann has 12 pears – naïve café 🍐!"
    tokens = tokenizer.encode([text], [3], Recipe())[0]
    assert tokens.ordinal == 3
    assert "".join(dict.fromkeys(text[s:e] for s, e in zip(tokens.starts, tokens.ends, strict=True) if s < e)) != ""
    covered = np.zeros(len(text), bool)
    for start, end in zip(tokens.starts, tokens.ends, strict=True):
        covered[start:end] = True
    assert covered.all()
    assert tokens.ids[0] == 0
    assert (tokens.starts[0], tokens.ends[0]) == (0, 0)
    assert not tokens.truncated
    assert tokens.last == len(tokens.ids) - 1


def test_long_texts_are_cut_and_said_to_be(tokenizer: Tokenizer) -> None:
    short, long = tokenizer.encode(["moon", "the moon " * 50], [0, 1], Recipe(max_tokens=10))
    assert (len(long.ids), long.truncated) == (10, True)
    assert not short.truncated


def test_the_tokenizers_identity_does_not_depend_on_its_last_call(model_dir: Path) -> None:
    first = load_tokenizer(model_dir, "tiny", 400)
    first.encode(["x" * 100], [0], Recipe(max_tokens=4))
    assert Tokenizer(first._tokenizer, 400).sha256 == load_tokenizer(model_dir, "tiny", 400).sha256


def test_a_sample_of_masked_tokens_has_no_last_one(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(["</s>"], [0], Recipe())[0].last == -1


def test_another_models_tokenizer_is_refused(model_dir: Path) -> None:
    with pytest.raises(
        InputError, match="makes token [0-9]+, but the model knows 300: it is another model's tokenizer"
    ):
        load_tokenizer(model_dir, "tiny", 300).encode(["Once upon a time. How many apples has she now?"], [0], Recipe())
