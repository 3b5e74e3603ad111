"""A text does not depend on what else is in the batch."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest
import torch

from schema.generation import Choice, Sampling
from steering.engine import Limits
from steering.generator import TorchGenerator
from tests.indexer.test_subject import FAMILIES, saved
from tests.steering.asking import Heard, ask, greedy, load, prompts

SMALL = Limits(rows=5, chunk=16, prompts=64)
"""Few rows and short chunks, so that much happens: prompts of several chunks, requests that wait, padding that is cut."""


@pytest.fixture(scope="module", params=FAMILIES)
def generator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchGenerator]:
    made = load(saved(request.param, tmp_path_factory.mktemp("models") / request.param), SMALL)
    yield made
    made.close()


def one_by_one(generator: TorchGenerator, choice: Choice) -> list[int]:
    """transformers' own greedy text."""
    ids = torch.tensor([choice.ids])
    with torch.inference_mode():
        out = generator._subject.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=choice.sampling.max_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=1,
        )
    return list(out[0, len(choice.ids) :].tolist())


def together(generator: TorchGenerator, choices: list[Choice], seed: int) -> list[Heard]:
    """All of them, joining at random moments."""
    rng = random.Random(seed)
    heard = []
    for choice in choices:
        heard.append(ask(generator, choice))
        time.sleep(rng.choice([0, 0, 0.002, 0.01]))
    return [each.wait() for each in heard]


def test_greedy_text_is_that_of_the_model_alone(generator: TorchGenerator) -> None:
    """14 prompts of 1 to 33 tokens, 3 to 80 generated: beyond the sliding windows of 8, over chunks of 16, in 5 rows."""
    rng = random.Random(3)
    choices = [Choice(ids, greedy(rng.randrange(3, 80))) for ids in prompts(14)]
    for choice, heard in zip(choices, together(generator, choices, 1), strict=True):
        assert heard.failure is None
        assert heard.ids() == one_by_one(generator, choice)
        assert heard.text() == generator._described.tokenizer.fast.decode(heard.ids(), skip_special_tokens=True)
        assert heard.end().finish == "length"


def test_drawn_text_is_that_of_the_seed_alone(generator: TorchGenerator) -> None:
    choices = [
        Choice(
            ids,
            Sampling(
                max_tokens=15 + i,
                temperature=0.5 + 0.1 * i,
                seed=i,
                top_p=0.9 if i % 2 else 1.0,
                top_k=20 * (i % 3),
                presence_penalty=0.5 * (i % 4 == 0),
                ignore_end=True,
            ),
        )
        for i, ids in enumerate(prompts(10, seed=5))
    ]
    alone = [ask(generator, choice).wait().ids() for choice in choices]
    assert [heard.ids() for heard in together(generator, choices, 2)] == alone
    assert len({tuple(ids) for ids in alone}) == len(alone)
    again = [ask(generator, Choice(choices[3].ids, Sampling(max_tokens=18, seed=s))).wait().ids() for s in (1, 2, 1)]
    assert again[0] == again[2] != again[1]
