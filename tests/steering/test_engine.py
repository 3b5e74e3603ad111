"""What the engine promises besides equal texts: limits, cancelling, failures that stay where they are, and an orderly end."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from schema.errors import InputError, TooMany, WorkFailed
from schema.generation import Choice, Condition, Event, Sampling
from schema.wire.expressions import FeatureAbove
from schema.wire.steering import SteeringApplied, Where
from steering.engine import Limits
from tests.steering.asking import Heard, Unlisted, ask, greedy, load, name_of, prompts, random_sae, steer

LONG = Choice((2, 3, 4, 5), greedy(200))
SHORT = Choice((9, 8, 7), greedy(5))
SAE = random_sae(1, 32)
EVERY = Where(skip_special=False)


@pytest.fixture(scope="module")
def generator(model_dir: Path) -> Iterator[Unlisted]:
    made = load(model_dir, Limits(rows=4, queue=3, chunk=16, prompts=64), [SAE])
    yield made
    made.close()


@pytest.fixture
def own(model_dir: Path) -> Iterator[Unlisted]:
    """One that a test may break."""
    made = load(model_dir, Limits(rows=2, queue=3, chunk=16, prompts=64), [SAE])
    yield made
    made.close(0)


@pytest.fixture
def paused(generator: Unlisted) -> Iterator[threading.Event]:
    """The model's thread stands still until the event is set."""
    go, there = threading.Event(), threading.Event()
    done = generator._engine.run(lambda: (there.set(), go.wait(20)))
    assert there.wait(20)
    yield go
    go.set()
    done.result(20)


def test_a_full_queue_refuses_and_says_when_to_come_back(generator: Unlisted, paused: threading.Event) -> None:
    taken = [ask(generator, SHORT) for _ in range(7)]  # as many as there are rows, and as may wait for them
    with pytest.raises(
        TooMany, match="7 requests wait for the model, which is as many as may; try again later"
    ) as error:
        ask(generator, SHORT)
    assert 1 <= error.value.retry_after <= 60
    paused.set()
    assert {tuple(heard.wait().ids()) for heard in taken} == {tuple(ask(generator, SHORT).wait().ids())}


def test_what_was_cancelled_leaves_at_once_and_is_silent(generator: Unlisted) -> None:
    """Four long texts hold all four rows; the fifth begins as soon as one of them is cancelled."""
    tickets, heards = [], []
    for _ in range(4):
        heards.append(Heard().expect(1))
        tickets.append(generator.submit([LONG], heards[-1]))
    for heard in heards:
        heard.wait_for_pieces(1)
    waiting = ask(generator, SHORT)
    tickets[0].cancel()
    cancelled = len(heards[0].events)
    waiting.wait()
    assert len(heards[1].pieces(0)) < 200, "the fifth waited for the others' ends"
    assert [len(heard.wait().ids()) for heard in heards[1:]] == [200] * 3
    assert len(heards[0].events) <= cancelled + 1
    assert not heards[0].ended.is_set()


def test_a_request_that_waits_can_be_cancelled(generator: Unlisted, paused: threading.Event) -> None:
    heard = Heard().expect(1)
    generator.submit([SHORT], heard).cancel()
    after = [ask(generator, SHORT) for _ in range(7)]  # it holds no place of the queue any more
    paused.set()
    for each in after:
        each.wait()
    assert heard.events == []


def test_a_receiver_that_fails_has_its_request_cancelled(generator: Unlisted) -> None:
    calls: list[Event] = []

    def broken(event: Event) -> None:
        calls.append(event)
        raise RuntimeError("nobody listens")

    generator.submit([LONG], broken)
    assert len(ask(generator, SHORT).wait().ids()) == 5
    assert len(calls) == 1


def test_texts_are_read_between_steps(generator: Unlisted) -> None:
    """The same thread and the same model: what a text fires does not change while others are generated with steering."""
    steered = replace(LONG, ops=(steer(SAE, 3, "add", 5.0),))
    quiet = generator.read(["a cat sleeps"], [], mask="none", max_tokens=64)[0]
    heard = ask(generator, steered)
    heard.wait_for_pieces(1)
    residual: dict[int, torch.Tensor] = {}
    busy = generator.read(["a cat sleeps"], [], mask="none", max_tokens=64)[0]
    generator._engine.run(
        generator._subject.read, torch.tensor([[5, 6, 7]]), {2: lambda h: residual.update({0: h})}
    ).result(20)
    assert not heard.ended.is_set(), "it was read after the text, not between its steps"
    heard.wait()
    generator._engine.run(
        generator._subject.read, torch.tensor([[5, 6, 7]]), {2: lambda h: residual.update({1: h})}
    ).result(20)
    assert busy.ids.tolist() == quiet.ids.tolist()
    torch.testing.assert_close(residual[0], residual[1], rtol=0, atol=0)


def test_a_row_that_is_not_finite_fails_alone(own: Unlisted) -> None:
    """One request's prompt ends in a token whose embedding is NaN; its neighbour's text is what it was."""
    expected = ask(own, SHORT).wait().ids()
    with torch.inference_mode():
        own._subject.model.get_input_embeddings().weight[17] = torch.nan
    failing, fine = ask(own, Choice((3, 17), greedy(9))), ask(own, SHORT)
    assert isinstance(failing.wait().failure, WorkFailed)
    assert (
        str(failing.failure) == "after 0 tokens the model's output is not finite; load the model with --dtype float32"
    )
    assert fine.wait().ids() == expected
    assert ask(own, SHORT).wait().ids() == expected


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "cpu ran out of memory on this request; try fewer tokens"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            "cpu ran out of memory on this request",
        ),
        (ValueError("a surprise\nof many lines"), "the model failed on this request: ValueError: a surprise$"),
    ],
)
def test_a_pass_that_fails_takes_its_requests_and_nobody_else(own: Unlisted, error: Exception, words: str) -> None:
    expected = ask(own, SHORT).wait().ids()
    model, calls = own._subject.model, [0]

    def fail(*_: Any) -> None:
        calls[0] += 1
        if calls[0] == 3:
            raise error

    hook = model.register_forward_pre_hook(fail)
    heard = ask(own, SHORT).wait()
    hook.remove()
    assert isinstance(heard.failure, WorkFailed)
    assert re.search(words, str(heard.failure))
    assert len(heard.ids()) == 2
    assert own.fault() is None
    assert ask(own, SHORT).wait().ids() == expected


def test_an_engine_that_stops_says_so_to_everybody(own: Unlisted, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = ask(own, LONG)
    heard.wait_for_pieces(1)
    monkeypatch.setattr(own._engine, "_admit", lambda: 1 / 0)
    sentence = "the engine stopped on a fault of its own (ZeroDivisionError); restart the service"
    assert str(heard.wait().failure) == sentence
    assert own.fault() == sentence
    with pytest.raises(WorkFailed, match="the engine stopped on a fault of its own"):
        ask(own, SHORT)
    with pytest.raises(WorkFailed, match="the engine stopped on a fault of its own"):
        own.read(["a"], [], mask="none", max_tokens=8)


def test_closing_waits_for_short_texts_and_ends_long_ones(own: Unlisted) -> None:
    short = ask(own, SHORT)
    slow = own._subject.model.register_forward_pre_hook(lambda *_: time.sleep(0.01))
    long = ask(own, LONG)
    waiting = ask(own, replace(LONG, ids=(5, 6)))
    long.wait_for_pieces(1)
    begin = time.monotonic()
    own.close(0.3)
    assert time.monotonic() - begin < 5
    slow.remove()
    assert len(short.wait().ids()) == 5
    for heard in (long, waiting):
        assert str(heard.wait().failure) == "the service was shut down before this text was complete; try again"
    with pytest.raises(WorkFailed, match="the model is being shut down"):
        ask(own, SHORT)


def test_a_slow_receiver_stalls_nobody_because_events_are_handed_over(generator: Unlisted) -> None:
    """Events wait with the receiver: one that takes none of them sees them all, later."""
    kept: list[Event] = []
    generator.submit([LONG], kept.append)
    assert len(ask(generator, SHORT).wait().ids()) == 5
    deadline = time.monotonic() + 20
    while len(kept) < 200 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(kept) >= 200


def test_the_batch_does_not_wait_for_an_sae_that_only_a_condition_names(
    own: Unlisted, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []
    load = own.encoder
    monkeypatch.setattr(own, "encoder", lambda name: asked.append((name, threading.get_ident())) or load(name))
    vector = replace(steer(SAE, 3, "add", 1.0), sae=None, feature=None)
    when = Condition("fires", FeatureAbove(feature=f"{name_of(SAE)}/9", above=0.5), "after")
    ask(own, replace(SHORT, ops=(vector,), when=when)).wait()
    assert (name_of(SAE), threading.get_ident()) in asked


def test_several_choices_are_one_request(generator: Unlisted) -> None:
    drawn = [Choice((4, 5, 6), Sampling(max_tokens=6, seed=seed, ignore_end=True)) for seed in range(6)]
    heard = ask(generator, *drawn).wait()
    assert [heard.ids(place) for place in range(6)] == [ask(generator, choice).wait().ids() for choice in drawn]


def test_end_tokens_end(generator: Unlisted) -> None:
    """A bias towards </s>: it is counted, and neither text nor a token of it."""
    ending = Choice((4, 5), Sampling(max_tokens=9, temperature=0, logit_bias={1: 100.0}))
    heard = ask(generator, ending).wait()
    assert (heard.text(), heard.ids()) == ("", [])
    assert (heard.end().finish, heard.end().n_generated) == ("stop", 1)
    going_on = ask(generator, replace(ending, sampling=replace(ending.sampling, ignore_end=True))).wait()
    assert going_on.ids() == [1] * 9
    assert going_on.end().finish == "length"


def test_penalties_and_bias_are_added_to_the_logits(generator: Unlisted) -> None:
    """Against plain arithmetic over the model's own logits, token for token."""
    ids, sampling = (
        prompts(1, seed=8)[0],
        greedy(12, frequency_penalty=0.2, presence_penalty=0.3, logit_bias={7: 0.5}),
    )
    made: list[int] = []
    for _ in range(12):
        with torch.inference_mode():
            logits = generator._subject.model(torch.tensor([[*ids, *made]])).logits[0, -1].tolist()
        for token in set(made):
            logits[token] -= 0.3 + 0.2 * made.count(token)
        logits[7] += 0.5
        made.append(logits.index(max(logits)))
    assert ask(generator, Choice(ids, sampling)).wait().ids() == made
    assert made != ask(generator, Choice(ids, greedy(12))).wait().ids()


def test_log_probabilities_are_the_models(generator: Unlisted) -> None:
    ids = (4, 5, 6)
    heard = ask(
        generator, Choice(ids, Sampling(max_tokens=5, temperature=2.0, seed=3, logprobs=3, ignore_end=True))
    ).wait()
    told = [logprob for piece in heard.pieces(0) for logprob in piece.logprobs]
    made = heard.ids()
    assert [logprob.id for logprob in told] == made
    for place, logprob in enumerate(told):
        with torch.inference_mode():
            expected = generator._subject.model(torch.tensor([[*ids, *made[:place]]])).logits[0, -1].log_softmax(0)
        assert logprob.logprob == pytest.approx(float(expected[logprob.id]), abs=1e-4)
        assert [id_ for id_, _, _ in logprob.top] == expected.topk(3).indices.tolist()
        assert [value for _, _, value in logprob.top] == pytest.approx(expected.topk(3).values.tolist(), abs=1e-4)


def test_the_divergence_is_that_of_the_two_models(generator: Unlisted) -> None:
    """KL of every token, against the model run twice over the whole text, once with a hook of the test's own."""
    ids = (4, 5, 6, 7)
    op = steer(SAE, 3, "add", 2.0, where=EVERY)
    heard = ask(generator, Choice(ids, greedy(6), (op,), kl="every")).wait()
    made = heard.ids()
    subject, direction = generator._subject, torch.from_numpy(op.vector)
    whole = torch.tensor([[*ids, *made[:-1]]])
    with torch.inference_mode():
        plain = subject.model(whole).logits[0, 3:].double().log_softmax(1)
        hook = subject.blocks[1].register_forward_hook(lambda _m, _i, out: out + 2.0 * direction)
        steered = subject.model(whole).logits[0, 3:].double().log_softmax(1)
        hook.remove()
    assert steered.argmax(1).tolist() == made
    kl = (steered.exp() * (steered - plain)).sum(1)
    applied = heard.end().applied
    assert isinstance(applied, SteeringApplied)
    assert applied.kl_first == pytest.approx(float(kl[0]), rel=1e-3)
    assert applied.kl_mean == pytest.approx(float(kl.mean()), rel=1e-3)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (Choice((), greedy(3)), "the prompt has no token; give at least one character"),
        (Choice((1, 400), greedy(3)), "token id 400 is none of the model's, which are 0 to 399"),
        (
            Choice((5,) * 60, greedy(200)),
            "the prompt's 60 tokens and 200 to generate are 260, but model tiny-qwen3 has a context of 256; "
            "shorten the prompt or lower max_tokens",
        ),
        (Choice((5,), greedy(0)), "max_tokens 0: at least 1"),
        (Choice((5,), Sampling(4, temperature=float("nan"))), "temperature nan: a finite number"),
        (
            Choice((5,), Sampling(4, temperature=-1)),
            "temperature and top_k are 0 or more, and top_p is between 0 and 1",
        ),
        (Choice((5,), Sampling(4, logit_bias={400: 1.0})), "logit_bias: token id 400 is none of the model's"),
        (Choice((5,), Sampling(4, logit_bias={4: float("inf")})), "logit_bias of token 4 is inf; give a finite number"),
        (Choice((5,), Sampling(4, stop=("a", ""))), "a stop string is empty; give at least one character"),
        (
            Choice((5,), greedy(4), (replace(steer(SAE, 1, "add", 1.0), vector=np.ones(31, np.float32)),)),
            "its vector has width 31, but the model's residual stream has 32",
        ),
    ],
)
def test_what_cannot_be_generated_is_said_at_once(generator: Unlisted, choice: Choice, words: str) -> None:
    with pytest.raises(InputError, match=words):
        generator.submit([choice], lambda _: None)


def test_memory_and_rows_set_limits(model_dir: Path) -> None:
    small = load(model_dir, Limits(rows=1, columns=100), [SAE])
    with pytest.raises(InputError, match="need memory for 120, but there is memory for 100; shorten the prompt"):
        ask(small, Choice((5,) * 20, greedy(100)))
    with pytest.raises(InputError, match="the batch has one; ask with kl off, or raise --max-rows"):
        ask(small, Choice((5,), greedy(3), (steer(SAE, 1, "add", 1.0),), kl="first"))
    heards = [ask(small, Choice((5, i), greedy(60))) for i in range(2, 5)]  # each fits alone, and they take turns
    assert [len(heard.wait().ids()) for heard in heards] == [60] * 3
    small.close()


def test_prompts_and_conversations(generator: Unlisted) -> None:
    assert generator.tokenize("a cat") == generator._described.tokenizer.fast("a cat")["input_ids"]
    assert generator.tokenize([3, 4]) == [3, 4]
    long = "a cat " * 40
    generator.read([long], [], mask="none", max_tokens=7)  # sets the truncation of the tokenizer that reads
    assert len(generator.tokenize(long)) > 40
    with pytest.raises(InputError, match="the prompt has no token"):
        generator.tokenize([])
    with pytest.raises(InputError, match="token id 400 is none of the model's"):
        generator.tokenize([400])
    with pytest.raises(InputError, match="half of a surrogate pair"):
        generator.tokenize("a \ud800")
    with pytest.raises(InputError, match="has no chat template, so it is no chat model; ask /v1/completions"):
        generator.chat([{"role": "user", "content": "hello"}])
    assert name_of(SAE) in generator.encoders


def test_a_chat_template_is_used(generator: Unlisted, monkeypatch: pytest.MonkeyPatch) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'bad' %}{{ raise_exception('no such role') }}{% endif %}"
        "{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    monkeypatch.setattr(generator._prompts._fast, "chat_template", template)
    ids = generator.chat([{"role": "user", "content": "a cat"}])
    assert generator._described.tokenizer.fast.decode(ids) == "user: a cat\nassistant:"
    with pytest.raises(InputError, match="the chat template of model tiny-qwen3 refuses these messages: no such role"):
        generator.chat([{"role": "bad", "content": "a"}])
