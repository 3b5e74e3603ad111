"""Where vLLM and the steerer meet, over a runner that packs tokens as vLLM's does, and blocks that return the stream in two parts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from schema.errors import InputError, WorkFailed
from schema.generation import Choice, Sampling
from steering.batch import Seat
from steering.hooks import Steerer
from steering.vllm import start
from steering.vllm.engine import told
from steering.vllm.generator import check_joined
from steering.vllm.passes import Asked, Passes, find_blocks, stream_of, through
from tests.steering.bench import D_MODEL, N_LAYERS, Bench, vector_op

VOCABULARY = 400
PROMPTS = ((3, 17, 45, 300), (301, 2, 77), (9, 120, 33, 250, 111))


class Parted(nn.Module):
    """A block as vLLM's: it takes what the one before added and what that is added to, and returns the same of its own."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.inner = nn.Linear(D_MODEL, D_MODEL)
        with torch.no_grad():
            self.inner.weight.copy_(torch.randn(D_MODEL, D_MODEL, generator=torch.Generator().manual_seed(layer)) / 6)

    def forward(self, added: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        stream = added if residual is None else added + residual
        return self.inner(stream).tanh(), stream


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Parted(layer) for layer in range(N_LAYERS))
        self.embed = nn.Embedding(VOCABULARY, D_MODEL)
        self.head = nn.Linear(D_MODEL, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        added, residual = self.embed(input_ids), None
        for layer in self.layers:
            added, residual = layer(added, residual)
        return added + residual

    def compute_logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)


class Runner:
    """As much of vLLM's as is touched: requests in an order of its own, tokens packed, prompts in chunks."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = Model()
        self.model_config = SimpleNamespace(get_vocab_size=lambda: VOCABULARY)
        self.feed([])

    def get_model(self) -> Model:
        return self.model

    def feed(self, parts: list[tuple[str, tuple[int, ...], int, int]]) -> None:
        """Of each request: its id, its tokens, and which of them come next."""
        ends = np.cumsum([0, *(stop - first for _, _, first, stop in parts)])
        table = np.zeros((len(parts), 16), dtype=np.int32)
        for row, (_, ids, _, _) in enumerate(parts):
            table[row, : len(ids)] = ids
        self.query_start_loc = SimpleNamespace(np=ends)
        self.input_batch = SimpleNamespace(
            num_reqs=len(parts),
            req_ids=[id_ for id_, *_ in parts],
            num_computed_tokens_cpu=np.array([first for _, _, first, _ in parts], dtype=np.int32),
            token_ids_cpu=table,
        )
        self.ids = torch.tensor([id_ for _, ids, first, stop in parts for id_ in ids[first:stop]], dtype=torch.long)

    def _model_forward(self, **columns: Any) -> Tensor:
        return self.model(**columns)

    @torch.inference_mode()
    def run(self) -> Tensor:
        """The logits after the last token of each request."""
        hidden = self._model_forward(input_ids=self.ids)
        return self.model.compute_logits(hidden[torch.from_numpy(self.query_start_loc.np[1:] - 1)])


@pytest.fixture
def runner() -> Runner:
    return Runner()


@pytest.fixture
def passes(runner: Runner) -> Passes:
    return Passes(runner, N_LAYERS)


@pytest.fixture
def steerer(passes: Passes) -> Steerer:
    model: Any = SimpleNamespace(
        blocks=passes.blocks, device=torch.device("cpu"), d_model=D_MODEL, vocabulary=VOCABULARY
    )
    made = Steerer(model, Bench().encoder, (), through=through, packed=True)
    passes.begin(made.steering)
    return made


def program(steerer: Steerer, ids: tuple[int, ...], strength: float, layer: int = 1) -> Any:
    return steerer.program(Choice(ids, Sampling(8), (vector_op("add", strength, "residual_norm", layer=layer),)))


def by_hand(model: Model, ids: tuple[int, ...], strength: float, layer: int = 1) -> Tensor:
    """The stream after every block (n_layers, n_tokens, d_model), added to by this share of its norm, position 0 left out."""
    op = vector_op("add", strength, "residual_norm", layer=layer)
    unit = torch.from_numpy(op.vector / np.linalg.norm(op.vector))
    stream, found = model.embed(torch.tensor(ids)), []
    for place, block in enumerate(model.layers):
        stream = stream + block.inner(stream).tanh()
        if place == layer:
            moved = strength * stream.norm(dim=1, keepdim=True) * unit
            moved[0] = 0
            stream = stream + moved
        found.append(stream)
    return torch.stack(found)


@torch.inference_mode()
def test_each_request_is_steered_at_its_own_tokens_whatever_order_and_chunks(
    runner: Runner, passes: Passes, steerer: Steerer
) -> None:
    strengths = (0.5, 0.0, -0.3)
    for name, ids, strength in zip("abc", PROMPTS, strengths, strict=True):
        seat = Seat(list(ids), program(steerer, ids, strength) if strength else None)
        passes.asked[name] = Asked(seat, taps=frozenset(range(N_LAYERS)))
    a, b, c = PROMPTS
    for parts in (
        [("a", a, 0, 2), ("b", b, 0, 3)],
        [("c", c, 0, 4), ("a", a, 2, 4)],
        [("c", c, 4, 5)],
    ):
        runner.feed(parts)
        runner.run()
    for name, ids, strength in zip("abc", PROMPTS, strengths, strict=True):
        wanted = by_hand(runner.model, ids, strength)
        for layer in range(N_LAYERS):
            torch.testing.assert_close(torch.cat(passes.asked[name].kept[layer]), wanted[layer], rtol=1e-4, atol=1e-5)
    applied = passes.asked["a"].seat.program.applied()  # type: ignore[union-attr]
    assert [(op.prompt_tokens, op.generated_tokens) for op in applied.ops] == [(3, 0)]


@torch.inference_mode()
def test_a_text_that_is_read_anew_is_counted_once(runner: Runner, passes: Passes, steerer: Steerer) -> None:
    ids = (*PROMPTS[0], 7, 8)
    seat = Seat(list(PROMPTS[0]), program(steerer, PROMPTS[0], 0.5))
    passes.asked["a"] = asked = Asked(seat, taps=frozenset({3}))
    seat.ids.extend(ids[4:])
    for first, stop in ((0, 4), (4, 5), (0, 6)):
        runner.feed([("a", ids, first, stop)])
        runner.run()
    applied = seat.program.applied()  # type: ignore[union-attr]
    assert [(op.prompt_tokens, op.generated_tokens) for op in applied.ops] == [(3, 2)]
    torch.testing.assert_close(torch.cat(asked.kept[3]), by_hand(runner.model, ids, 0.5)[3], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_texts_are_scored_across_chunks(
    runner: Runner, passes: Passes, steerer: Steerer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steering.vllm.passes.BLOCK_ELEMENTS", 2 * VOCABULARY)
    ids = PROMPTS[2]
    passes.asked["a"] = asked = Asked(Seat(list(ids)), scored=2)
    for first, stop in ((0, 4), (4, 5)):
        runner.feed([("a", ids, first, stop)])
        runner.run()
    logprobs = runner.model.head(by_hand(runner.model, ids, 0)[-1]).log_softmax(dim=1)
    wanted = logprobs[torch.arange(1, 4), torch.tensor(ids[2:])]
    torch.testing.assert_close(torch.cat(asked.scores), wanted, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_logits_are_kept_at_the_end_of_the_prompt_and_broken_rows_are_told(
    runner: Runner, passes: Passes, steerer: Steerer
) -> None:
    for name, ids in zip("ab", PROMPTS, strict=False):
        passes.asked[name] = Asked(Seat(list(ids)), weighs=True)
    runner.feed([("a", PROMPTS[0], 0, 3), ("b", PROMPTS[1], 0, 3)])
    logits = runner.run()
    assert passes.asked["a"].logits is None
    torch.testing.assert_close(passes.asked["b"].logits, logits[1])
    assert passes.broken is not None
    assert passes.broken.tolist() == [False, False]
    runner.model.embed.weight[PROMPTS[0][3]] = float("nan")
    runner.feed([("a", PROMPTS[0], 3, 4), ("b", PROMPTS[1], 2, 3)])
    runner.run()
    assert passes.broken.tolist() == [True, False]


@torch.inference_mode()
def test_other_tokens_than_were_asked_for_stop_the_pass(runner: Runner, passes: Passes, steerer: Steerer) -> None:
    passes.asked["a"] = Asked(Seat(list(PROMPTS[0])))
    for id_, ids in (("a", (3, 18, 45, 300)), ("b", PROMPTS[0])):
        runner.feed([(id_, ids, 0, 4)])
        with pytest.raises(WorkFailed, match="it was not asked to; nothing was steered"):
            runner.run()


@torch.inference_mode()
def test_a_pass_without_hooks_fails(runner: Runner, passes: Passes, steerer: Steerer) -> None:
    passes.blocks[1]._forward_hooks.clear()
    passes.asked["a"] = Asked(Seat(list(PROMPTS[0]), program(steerer, PROMPTS[0], 0.5)))
    runner.feed([("a", PROMPTS[0], 0, 4)])
    with pytest.raises(WorkFailed, match="steering after block 1 did not happen"):
        runner.run()


def test_only_what_moved_is_joined() -> None:
    added, residual = torch.randn(4, 8), torch.randn(4, 8)
    moved = torch.tensor([[0.0], [1.0], [0.0], [0.0]])
    after, rest = through((added, residual), lambda stream: stream + moved)
    torch.testing.assert_close(after + rest, added + residual + moved)
    for row in (0, 2, 3):
        assert torch.equal(after[row], added[row])
        assert torch.equal(rest[row], residual[row])
    assert not rest[1].any()
    for whole in (added, added[None]):
        assert torch.equal(through(whole, lambda stream: stream + moved), whole + moved)
    after, rest = through((added, None), lambda stream: stream + moved)
    assert torch.equal(after, added + moved)
    assert rest is None


@pytest.mark.parametrize("output", [(torch.ones(2, 3),), (torch.ones(2, 3), torch.ones(2, 4)), "words", (1, 2)])
def test_blocks_that_return_something_else_are_refused(output: Any) -> None:
    with pytest.raises(WorkFailed, match="--engine torch"):
        stream_of(output)


def test_blocks_whose_parts_are_no_sum_are_found_out() -> None:
    same = torch.randn(1, 8, 16).expand(2, -1, -1).clone()
    check_joined({0: same, 1: same})
    other = same.clone()
    other[0] *= 1.1
    with pytest.raises(WorkFailed, match="what reaches block 1 is not the sum"):
        check_joined({0: same, 1: other})


def test_blocks_are_found_where_there_is_one_list_of_them() -> None:
    model = Model()
    assert find_blocks(nn.ModuleDict({"language_model": model}), N_LAYERS) is model.layers
    tower = nn.ModuleDict({"vision": nn.ModuleList([nn.Identity()] * N_LAYERS), "text": model})
    assert find_blocks(tower, N_LAYERS) is model.layers
    with pytest.raises(InputError, match="keeps its blocks where Scopebase does not look"):
        find_blocks(nn.ModuleDict({"a": Model(), "b": Model()}), N_LAYERS)
    with pytest.raises(InputError, match="keeps its blocks where"):
        find_blocks(model, N_LAYERS + 1)


def test_log_probabilities_as_vllm_tells_them() -> None:
    def one(logprob: float, rank: int) -> SimpleNamespace:
        return SimpleNamespace(logprob=logprob, rank=rank)

    # the chosen one comes first, and beside the likeliest if it is none of them
    assert told({7: one(-3.0, 9), 4: one(-0.5, 1), 2: one(-1.0, 2)}, 7, 2) == (-3.0, [(4, -0.5), (2, -1.0)])
    assert told({4: one(-0.5, 1), 2: one(-1.0, 2)}, 4, 2) == (-0.5, [(4, -0.5), (2, -1.0)])
    assert told({7: one(-3.0, 9)}, 7, 0) == (-3.0, [])


@pytest.mark.parametrize(
    ("found", "words"),
    [(None, "which is not installed; pip install 'scopebase\\[vllm\\]'"), ("0.28.0", "0.28.0 is installed")],
)
def test_without_a_known_vllm_there_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, found: str | None, words: str
) -> None:
    for name in start._SETTINGS:
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(start, "installed", lambda: found)
    with pytest.raises(InputError, match=words):
        start.load_vllm()
