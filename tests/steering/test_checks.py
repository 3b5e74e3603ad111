"""What is refused, and with which sentence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from schema.errors import InputError
from schema.generation import Choice, Op, Sampling
from schema.wire.steering import Where
from tests.steering.bench import Bench, feature_op, vector_op

IDS = (0, 17, 45, 300)


@pytest.fixture(scope="module")
def bench() -> Bench:
    made = Bench()
    made.steerer.check()
    return made


def program(bench: Bench, *ops: Op, max_tokens: int = 5) -> Any:
    return bench.program(Choice(IDS, Sampling(max_tokens), ops))


def with_vector(vector: Any) -> Op:
    return replace(vector_op("add", 1.0), vector=np.asarray(vector, dtype=np.float32))


@pytest.mark.parametrize(
    ("op", "words"),
    [
        (
            vector_op("add", 1.0, layer=4),
            r"steering.ops.0 \(add random-0@1\): layer 4 is none of the model's, which are 0 to 3",
        ),
        (vector_op("add", 1.0, layer=-1), "layer -1 is none"),
        (with_vector(np.ones(31)), "its vector has width 31, but the model's residual stream has 32"),
        (with_vector(np.ones((2, 32))), "width 2 x 32"),
        (with_vector([np.nan] * 32), "holds NaN or infinity"),
        (with_vector(np.zeros(32)), "zero everywhere, so that it has no direction"),
        (vector_op("add", float("inf")), "strength inf is no finite number"),
        (vector_op("add", float("nan"), "residual_norm"), "strength nan is no finite number"),
        (vector_op("add", 10.5, "residual_norm"), "10.5 times the residual's norm is out of reason; from -10 to 10"),
        (vector_op("floor", -11, "residual_norm"), "-11 times the residual's norm"),
        (
            vector_op("add", 1e9, "unit"),
            r"adds a vector of length 1e\+09 where the residual's is about .*; at most .* is taken",
        ),
        (feature_op("set", 1e9), "strength 1e.09 adds a vector of length"),
        (feature_op("add", 1e8, "feature_max"), "adds a vector of length"),
        (vector_op("multiply", 101), "a factor of 101 is out of reason; from -100 to 100"),
        (
            vector_op("ablate", 1.5),
            "strength 1.5 of ablate is the share that is removed, from 0 to 1; 'multiply' goes further",
        ),
        (feature_op("suppress", -0.1), "strength -0.1 of suppress is the share"),
        (vector_op("add", 1, "feature_max"), "unit feature_max needs a feature; a vector has no largest activation"),
        (feature_op("add", 1, "feature_max", largest=None), "it never fires in the index; give another unit"),
        (feature_op("set", 1, "feature_max", largest=0.0), "it never fires in the index; give another unit"),
        (
            feature_op("set", 1, layer=2),
            "set reads the feature's activation, which there is only after block 1, not after 2",
        ),
        (
            feature_op("add", 1, feature=3, where=Where(generation_positions=[-1])),
            r"steering.ops.0 .*: where names position -1",
        ),
    ],
)
def test_an_operation_that_cannot_be(bench: Bench, op: Op, words: str) -> None:
    with pytest.raises(InputError, match=words):
        program(bench, op)


def test_a_feature_may_be_added_or_ablated_at_another_layer(bench: Bench) -> None:
    for mode in ("add", "ablate"):
        op = feature_op(mode, 1.0, layer=3)
        line = bench.line(IDS, op)
        bench.run([line])
        assert line.program is not None
        done = line.program.applied().ops[0]
        assert (done.layer, done.prompt_tokens, done.activation_before) == (3, 3, None)


PROMPT, GENERATED = Where(generation="none"), Where(prompt="none")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (feature_op("set", 1.0), feature_op("set", 1.0)),
        (feature_op("set", 1.0), feature_op("suppress", 1.0)),
        (feature_op("cap", 1.0), feature_op("set", 2.0, "unit")),
        (feature_op("suppress", 1.0), feature_op("multiply", 2.0)),
        (feature_op("floor", 1.0), feature_op("ablate", 1.0)),
        (feature_op("floor", 1.0), feature_op("cap", 0.5)),
        (
            vector_op("set", 1.0, where=Where(prompt_window=[0, 2])),
            vector_op("set", 2.0, where=Where(prompt_window=[1, 3], generation="none")),
        ),
        (
            vector_op("set", 1.0, where=GENERATED),
            vector_op("set", 2.0, where=Where(prompt="none", generation_window=[2, 9])),
        ),
    ],
)
def test_operations_that_contradict_each_other(bench: Bench, first: Op, second: Op) -> None:
    with pytest.raises(InputError, match=r"steering.ops.0 .* and steering.ops.1 .* contradict each other at layer 1"):
        program(bench, first, replace(second, place=1))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (feature_op("set", 1.0), feature_op("set", 1.0, feature=4)),
        (feature_op("add", 1.0), feature_op("suppress", 1.0)),
        (feature_op("floor", 0.5), feature_op("cap", 1.0)),
        (vector_op("set", 1.0), vector_op("set", 1.0, layer=2)),
        (vector_op("set", 1.0, where=PROMPT), vector_op("set", 2.0, where=GENERATED)),
        (vector_op("set", 1.0, where=Where(tokens=[17, 99])), vector_op("set", 2.0, where=Where(tokens=[45]))),
        (
            vector_op("set", 1.0, where=Where(prompt="none", generation_window=[0, 2])),
            vector_op("set", 2.0, where=Where(prompt="none", generation_window=[2, 4])),
        ),
    ],
)
def test_operations_that_go_together(bench: Bench, first: Op, second: Op) -> None:
    assert len(program(bench, first, replace(second, place=1)).layers) >= 1


@pytest.mark.parametrize(
    "where",
    [
        Where(prompt="none", generation="none"),
        Where(prompt_positions=[0], generation="none"),  # position 0 is skipped with the special tokens
        Where(prompt_positions=[9], generation="none"),
        Where(prompt="none", generation_window=[4, 9]),  # of 5 tokens, number 4 is the last: it is never fed
        Where(prompt_window=[2, 2], generation_window=[3, 3]),
        Where(tokens=[7], exclude_tokens=[7]),
        Where(tokens=[1]),
        Where(tokens=[]),
    ],
)
def test_an_operation_that_can_touch_nothing_is_refused(bench: Bench, where: Where) -> None:
    with pytest.raises(InputError, match="its where leaves no token of this prompt or of the 5 to generate"):
        program(bench, vector_op("add", 1.0, where=where))


def test_one_token_to_generate_leaves_no_generated_one_to_steer(bench: Bench) -> None:
    with pytest.raises(InputError, match="the last one generated is never steered"):
        program(bench, vector_op("add", 1.0, where=GENERATED), max_tokens=1)
    assert program(bench, vector_op("add", 1.0, where=GENERATED), max_tokens=2)
