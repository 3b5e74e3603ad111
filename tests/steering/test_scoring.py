"""Scores against the model's own loss, one text and one token at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from schema.errors import InputError
from steering import scoring

CPU = torch.device("cpu")
TEXTS = [[0, 5, 9, 17, 44, 3], [0, 7], [0, 300, 301, 302, 303, 304, 305, 306, 307, 308, 12], [4, 4, 4, 4]]
FIRSTS = [2, 1, 5, 4]


@pytest.fixture(scope="module")
def model(model_dir: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_dir).eval()


def by_hand(model: Any, text: list[int], first: int) -> list[float]:
    found = []
    for place in range(first, len(text)):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([text[:place]]), use_cache=False).logits[0, -1]
        found.append(float(torch.log_softmax(logits, dim=-1)[text[place]]))
    return found


@pytest.mark.parametrize("held", [1 << 25, 4 * 400, 1])
def test_scores_are_those_of_single_tokens_however_much_is_held(
    model: Any, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    monkeypatch.setattr(scoring, "BLOCK_ELEMENTS", held)
    found = scoring.score_texts(model, CPU, TEXTS, FIRSTS, 400)
    assert [len(each) for each in found] == [4, 1, 6, 0]
    for text, first, scores in zip(TEXTS, FIRSTS, found, strict=True):
        np.testing.assert_allclose(scores, by_hand(model, text, first), atol=1e-4)


@pytest.mark.parametrize(
    ("ids", "first", "sentence"),
    [
        ([1, 2], 0, "scored from token 0"),
        ([1, 2], 3, "scored from token 3"),
        ([1] * 300, 1, "reads 256 at most"),
        ([1, 400], 1, "0 to 399"),
        ([1, -1], 1, "0 to 399"),
    ],
)
def test_what_cannot_be_scored_is_refused(ids: list[int], first: int, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        scoring.check_texts([ids], [first], 400, 256)
