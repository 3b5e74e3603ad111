"""A text does not depend on what else is in the batch."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from schema.generation import Choice, Condition, Sampling
from schema.wire.expressions import FeatureAbove
from schema.wire.steering import SteeringApplied, Where
from steering.batch import Prompts
from steering.engine import Limits
from steering.generator import TorchGenerator
from tests.indexer.test_subject import FAMILIES, saved
from tests.steering.asking import Heard, ask, greedy, load, prompts, random_sae, steer

SMALL = Limits(rows=5, chunk=16, prompts=64)
"""Few rows and short chunks, so that much happens: prompts of several chunks, requests that wait, padding that is cut."""


SAES = [random_sae(layer, 32) for layer in (1, 2)]


@pytest.fixture(scope="module", params=FAMILIES)
def generator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchGenerator]:
    made = load(saved(request.param, tmp_path_factory.mktemp("models") / request.param), SMALL, SAES)
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
    """9 prompts of 1 to 33 tokens, 3 to 80 generated: beyond the sliding windows of 8, over chunks of 16, in 5 rows."""
    rng = random.Random(3)
    choices = [Choice(ids, greedy(rng.randrange(3, 48))) for ids in prompts(9)]
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
        for i, ids in enumerate(prompts(8, seed=5))
    ]
    alone = [ask(generator, choice).wait().ids() for choice in choices]
    assert [heard.ids() for heard in together(generator, choices, 2)] == alone
    assert len({tuple(ids) for ids in alone}) == len(alone)
    again = [ask(generator, Choice(choices[3].ids, Sampling(max_tokens=18, seed=s))).wait().ids() for s in (1, 2, 1)]
    assert again[0] == again[2] != again[1]


def numbers(applied: SteeringApplied) -> list[float]:
    """Every number that is told."""
    told = [value for op in applied.ops for value in op.model_dump().values()]
    whole = [*told, applied.condition_tokens, applied.kl_first, applied.kl_mean]
    return [-1.0 if value is None else float(value) for value in whole if not isinstance(value, str)]


def test_steered_text_is_that_of_the_request_alone(generator: TorchGenerator) -> None:
    """Every mode and several at once, conditions, and both ways to measure the divergence, in one batch with unsteered texts."""
    low, high = SAES
    behind = Where(prompt="none", generation_window=[2, 9])
    rule = Condition("fires", FeatureAbove(feature="tiny/1-random/9", above=0.5), "after")
    mixes: list[dict[str, Any]] = [
        {},
        {"ops": (steer(low, 3, "add", 0.5, "residual_norm"),), "kl": "every"},
        {"ops": (steer(low, 5, "ablate", 1.0), steer(high, 8, "floor", 2.0, place=1))},
        {"ops": (steer(high, 7, "set", 3.0), steer(high, 2, "multiply", 2.0, place=1)), "kl": "first"},
        {"ops": (steer(high, 4, "add", 4.0, where=behind),)},
        {"ops": (replace(steer(high, 11, "add", 3.0, "unit"), sae=None, feature=None),), "when": rule, "kl": "first"},
        {"ops": (steer(low, 1, "suppress", 1.0), steer(low, 30, "cap", 0.1, place=1))},
    ]
    rng = random.Random(4)
    texts = prompts(9, seed=6, lengths=(2, 5, 11, 20, 37))
    twice = [*mixes, *mixes[:2]]
    choices = [Choice(ids, greedy(rng.randrange(4, 40)), **mix) for ids, mix in zip(texts, twice, strict=True)]
    alone = [ask(generator, choice).wait() for choice in choices]
    batched = together(generator, choices, 3)
    plain = [ask(generator, Choice(choice.ids, choice.sampling)).wait() for choice in choices]
    assert [heard.failure for heard in (*alone, *batched)] == [None] * 18
    assert [heard.ids() for heard in batched] == [heard.ids() for heard in alone]
    for choice, one, other, unsteered in zip(choices, alone, batched, plain, strict=True):
        applied, again = one.end().applied, other.end().applied
        assert (applied is None) == (not choice.ops)
        if applied is None or again is None:
            assert one.ids() == unsteered.ids()
            continue
        assert (applied.kl_first is None) == (choice.kl == "off")
        assert (applied.kl_mean is None) == (choice.kl != "every")
        assert numbers(again) == pytest.approx(numbers(applied), rel=1e-3, abs=1e-4)
    assert sum(one.ids() != unsteered.ids() for one, unsteered in zip(alone, plain, strict=True)) >= 4


def test_the_prompt_of_several_choices_is_read_once(generator: TorchGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steered under a condition, with a shadow each, short and in chunks: two choices are as each alone, from one row of the prompt."""
    high = SAES[1]
    rule = Condition("fires", FeatureAbove(feature="tiny/1-random/9", above=0.5), "after")
    vector = replace(steer(high, 11, "add", 3.0, "unit"), sae=None, feature=None)
    ops = (vector, steer(high, 3, "set", 2.0, place=1))
    read: list[int] = []
    advance = Prompts.advance
    monkeypatch.setattr(Prompts, "advance", lambda prompts: read.append(len(prompts._ids)) or advance(prompts))
    for length in (9, 37):
        ids = prompts(1, seed=length, lengths=(length,))[0]
        choices = [Choice(ids, Sampling(max_tokens=9, seed=s, ignore_end=True), ops, rule, "first") for s in (1, 2)]
        alone = [ask(generator, choice).wait() for choice in choices]
        read.clear()
        heard = ask(generator, *choices).wait()
        assert heard.failure is None
        assert set(read) == {2}  # one steered, one not
        for place, one in enumerate(alone):
            assert heard.ids(place) == one.ids()
            ours, theirs = heard.end(place).applied, one.end().applied
            assert ours is not None
            assert theirs is not None
            assert numbers(ours) == pytest.approx(numbers(theirs), rel=1e-3, abs=1e-4)
