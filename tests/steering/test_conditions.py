"""Operations under conditions against the same decisions taken by hand, token by token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch

from schema.errors import InputError, NotFound, WorkFailed
from schema.generation import Choice, Condition, Op, Sampling
from schema.wire.expressions import AllOf, AnyOf, FeatureAbove, Not
from schema.wire.steering import Where
from steering.hooks import Row
from tests.steering.bench import N_LAYERS, SAES, SPECIAL, Bench, Line, activations, edited, ordinary, vector_op

Scope = Literal["after", "token", "prompt"]
IDS = (0, 17, 45, 300, 301, 1, 77, 45, 120, 33, 250, 111)
MORE = (200, 33, 301, 90, 52)
WHOLE = (*IDS, *MORE)


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench()


def fires(stream: dict[int, torch.Tensor], sae: str, feature: int, ids: tuple[int, ...] = WHOLE) -> list[float]:
    """The feature's activation at each token, 0 at masked ones."""
    found = [activations(SAES[sae], h)[feature] for h in stream[SAES[sae].layer].double().numpy()]
    return [0.0 if n == 0 or ids[n] in SPECIAL else float(a) for n, a in enumerate(found)]


def feature_that(plain: dict[int, torch.Tensor], sae: str, wanted: Callable[[list[int]], bool]) -> int:
    """One whose firing positions are as wanted."""
    for feature in range(64):
        if wanted([n for n, a in enumerate(fires(plain, sae, feature)) if a > 0]):
            return feature
    raise AssertionError("no such feature; choose other tokens")


def held(expression: Any, values: dict[str, float]) -> bool:
    if isinstance(expression, FeatureAbove):
        return values[expression.feature] > expression.above
    if isinstance(expression, AnyOf):
        return any(held(one, values) for one in expression.any)
    if isinstance(expression, AllOf):
        return all(held(one, values) for one in expression.all)
    return not held(expression.not_, values)


def names(expression: Any) -> list[str]:
    if isinstance(expression, FeatureAbove):
        return [expression.feature]
    parts = getattr(expression, "any", None) or getattr(expression, "all", None) or [expression.not_]
    return [name for part in parts for name in names(part)]


def open_tokens(
    expression: Any,
    scope: Scope,
    stream: dict[int, torch.Tensor],
    layer: int,
    n_prompt: int,
    ids: tuple[int, ...] = WHOLE,
) -> set[int]:
    """Positions at which an operation at a layer is let through."""
    values = {
        name: fires(stream, name.rpartition("/")[0], int(name.rpartition("/")[2]), ids) for name in names(expression)
    }
    deepest = max(SAES[name.rpartition("/")[0]].layer for name in values)
    at = [held(expression, {name: a[n] for name, a in values.items()}) for n in range(len(ids))]
    so_far = [held(expression, {name: max(a[: n + 1]) for name, a in values.items()}) for n in range(len(ids))]
    if scope == "token":
        return {n for n in range(len(ids)) if at[n]}
    if scope == "prompt":
        return {n for n in range(n_prompt, len(ids)) if so_far[n_prompt - 1]}
    latched = [any(so_far[: n + 1]) for n in range(len(ids))]
    if layer >= deepest:
        return {n for n in range(len(ids)) if latched[n]}
    return {n for n in range(n_prompt, len(ids)) if latched[n - 1]}


def by_hand(
    bench: Bench, op: Op, expression: Any, scope: Scope, ids: tuple[int, ...] = WHOLE, n_prompt: int = len(IDS)
) -> tuple[dict[int, torch.Tensor], set[int]]:
    """Grown token by token, because what is steered may move the condition: the sequence up to each token, decided anew."""
    touched: set[int] = set()
    for n in range(len(ids)):
        so_far = ids[: n + 1]
        if n in open_tokens(expression, scope, as_read(bench, so_far, op, touched), op.layer, n_prompt, so_far):
            touched.add(n)
    return bench.by_hand(ids, [op], lambda p, o: p in touched and ordinary(ids)(p, o)), touched


def as_read(bench: Bench, ids: tuple[int, ...], op: Op, touched: set[int]) -> dict[int, torch.Tensor]:
    """The streams as a condition reads them: what blocks return, steered by what lies before, not yet by what lies at the same block."""
    raw: dict[int, torch.Tensor] = {}
    handles = [
        block.register_forward_hook(
            lambda _m, _i, out, layer=layer: raw.__setitem__(
                layer, (out[0] if isinstance(out, tuple) else out)[0].clone()
            ),
            prepend=True,
        )
        for layer, block in enumerate(bench.subject.blocks)
    ]

    def edit(_m: Any, _i: Any, out: torch.Tensor) -> torch.Tensor:
        out = out.clone()
        for n in touched:
            if ordinary(ids)(n, op):
                h = out[0, n].double().numpy()
                out[0, n] = torch.from_numpy(edited(op, h, masked=False)).to(out)
        return out

    handles.append(bench.subject.blocks[op.layer].register_forward_hook(edit))
    with torch.inference_mode():
        bench.model(input_ids=torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return raw


@pytest.fixture(scope="module")
def expressions(bench: Bench) -> dict[str, Any]:
    """Conditions that begin to hold in the middle of the prompt, in the generation, never, and over several layers."""
    plain = bench.by_hand(WHOLE, [], lambda _p, _o: False)
    middle = feature_that(plain, "tiny/1-topk", lambda at: bool(at) and 3 <= at[0] <= 8 and len(at) < 8)
    other = feature_that(plain, "tiny/2-topk", lambda at: bool(at) and 2 <= at[0] <= 9 and len(at) < 9)
    late = feature_that(plain, "tiny/1-topk", lambda at: bool(at) and at[0] >= len(IDS))
    never = feature_that(plain, "tiny/1-topk", lambda at: not at)
    one, two = FeatureAbove(feature=f"tiny/1-topk/{middle}"), FeatureAbove(feature=f"tiny/2-topk/{other}")
    return {
        "middle": one,
        "late": FeatureAbove(feature=f"tiny/1-topk/{late}"),
        "never": FeatureAbove(feature=f"tiny/1-topk/{never}"),
        "not": Not(**{"not": one}),
        "all": AllOf(all=[one, two]),
        "any": AnyOf(any=[one, two, FeatureAbove(feature="tiny/1-jump/4", above=3.0)]),
    }


@pytest.mark.parametrize("which", ["middle", "late", "never", "not", "all", "any"])
@pytest.mark.parametrize(("scope", "layer"), [("token", 2), ("after", 2), ("after", 0), ("prompt", 0), ("prompt", 3)])
def test_operations_are_let_through_where_the_condition_holds(
    bench: Bench, expressions: dict[str, Any], which: str, scope: Scope, layer: int
) -> None:
    op = vector_op("add", 0.3, "residual_norm", layer)
    when = Condition("c", expressions[which], scope)
    want, touched = by_hand(bench, op, expressions[which], scope)
    for chunk in (None, 5):
        lines = [
            bench.line(IDS, op, generated=MORE, when=when),
            bench.line((*IDS, 8, 9, 10), generated=MORE),
            bench.line(IDS, op, generated=MORE),
        ]
        got = bench.run(lines, chunk)[0]
        for stream in range(N_LAYERS):
            torch.testing.assert_close(got[stream], want[stream], rtol=5e-4, atol=5e-4)
        assert lines[0].program is not None
        done = lines[0].program.applied()
        steered = {n for n in touched if ordinary(WHOLE)(n, op)}
        assert done.ops[0].prompt_tokens == sum(n < len(IDS) for n in steered)
        assert done.ops[0].generated_tokens == sum(n >= len(IDS) for n in steered)
        assert done.condition_tokens == len(touched)


def test_the_cases_are_not_all_alike(bench: Bench, expressions: dict[str, Any]) -> None:
    op = vector_op("add", 0.3, "residual_norm", 2)
    sizes = {
        (which, scope): len(by_hand(bench, op, expressions[which], scope)[1])
        for which in ("middle", "late", "never", "not")
        for scope in ("token", "after")
    }
    assert sizes["never", "token"] == sizes["never", "after"] == 0
    assert 0 < sizes["middle", "token"] < sizes["middle", "after"] < len(WHOLE)
    assert 0 < sizes["late", "after"] <= len(MORE)
    assert sizes["not", "after"] == len(WHOLE) > sizes["not", "token"] > 0


def test_choices_under_the_same_condition_keep_their_own_state(bench: Bench, expressions: dict[str, Any]) -> None:
    """Rows of one request and of others, joined and alone."""
    op = vector_op("add", 0.3, "residual_norm", 2)
    when = Condition("c", expressions["middle"], "after")
    prompts = [IDS, IDS[:3], (*IDS[6:], 5), IDS[2:]]
    together = [bench.line(ids, op, generated=MORE, when=when) for ids in prompts]
    found = bench.run(together, 4)
    for ids, line, got in zip(prompts, together, found, strict=True):
        again = bench.line(ids, op, generated=MORE, when=when)
        (alone,) = bench.run([again])
        for layer in alone:
            torch.testing.assert_close(got[layer], alone[layer], rtol=1e-4, atol=1e-4)
        assert line.program is not None
        assert again.program is not None
        assert line.program.applied().condition_tokens == again.program.applied().condition_tokens
    counts = {line.program.applied().condition_tokens for line in together if line.program}
    assert len(counts) > 1
    assert len(bench.steerer._watchers) == 1


def test_a_condition_is_forgotten_with_its_choices(bench: Bench, expressions: dict[str, Any]) -> None:
    import gc

    bench.run([bench.line(IDS)])  # nothing is kept of the pass before
    for _ in range(30):
        line = bench.line(IDS, vector_op("add", 0.1, layer=2), when=Condition("c", expressions["any"], "token"))
        bench.run([line])
        assert line.program is not None
        watcher = line.program.watcher
        assert watcher is not None
        assert len(watcher.opened) <= 16
    del line, watcher
    bench.run([bench.line(IDS)])
    gc.collect()
    assert len(bench.steerer._watchers) == 0


def refused(bench: Bench, op: Op, when: Condition, max_tokens: int = 5) -> None:
    bench.program(Choice(IDS, Sampling(max_tokens), (op,), when))


def test_conditions_that_cannot_be(bench: Bench) -> None:
    one = FeatureAbove(feature="tiny/2-topk/3")
    with pytest.raises(
        InputError,
        match="its condition is read after block 2, too late for block 1 at the same token; scope 'after' or 'prompt' can",
    ):
        refused(bench, vector_op("add", 1.0, layer=1), Condition("c", one, "token"))
    with pytest.raises(InputError, match="when: SAE tiny/2-topk has features 0 to 63, no 64"):
        refused(bench, vector_op("add", 1.0, layer=2), Condition("c", FeatureAbove(feature="tiny/2-topk/64"), "token"))
    for scope, layer in (("prompt", 3), ("after", 1)):
        with pytest.raises(InputError, match="leaves no token"):
            op = vector_op("add", 1.0, layer=layer, where=Where(generation="none"))
            refused(bench, op, Condition("c", one, scope))  # type: ignore[arg-type]


def test_an_sae_that_is_not_there_is_told_as_it_is(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise NotFound(f"no SAE named {name!r}")

    from dataclasses import replace

    monkeypatch.setattr(bench.steerer, "_ground", replace(bench.steerer._ground, encoders=missing))
    with pytest.raises(NotFound, match="no SAE named 'm/1-x'"):
        refused(bench, vector_op("add", 1.0), Condition("c", FeatureAbove(feature="m/1-x/3"), "after"))


def test_generated_tokens_under_a_condition_come_one_by_one(bench: Bench) -> None:
    when = Condition("c", FeatureAbove(feature="tiny/1-topk/3"), "after")
    line: Line = bench.line(IDS, vector_op("add", 1.0), generated=MORE, when=when)
    with (
        pytest.raises(WorkFailed, match="feed them one by one"),
        bench.steerer.steering([Row(line.program, WHOLE, 0, len(IDS))]),
    ):
        pass
    assert np.isfinite(bench.run([line])[0][3]).all()
