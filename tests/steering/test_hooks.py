"""The steered stream against the same operations done by hand, in batches, behind padding, in chunks and token by token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from indexer.encoder import make_encoder
from schema.errors import WorkFailed
from schema.generation import Choice, Op, Sampling
from schema.wire.steering import Where
from steering.hooks import Row, Steerer
from tests.indexer.test_subject import FAMILIES
from tests.steering.asking import random_sae
from tests.steering.bench import (
    D_MODEL,
    EVERYWHERE,
    N_LAYERS,
    SAES,
    Bench,
    Line,
    activations,
    feature_op,
    ordinary,
    vector_op,
)

IDS = (0, 17, 45, 300, 301, 1, 77, 45, 120)
MORE = (200, 33, 301)


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench()


def firing_feature(bench: Bench, sae: str, ids: tuple[int, ...]) -> int:
    """The one that fires at most, but not at all, of the tokens that may."""
    stream = bench.by_hand(ids, [], lambda _p, _o: False)[SAES[sae].layer]
    fires = np.array([activations(SAES[sae], h) > 0 for h in stream[1:].double().numpy()]).sum(0)
    return int(np.where(fires < len(ids) - 1, fires, -1).argmax())


def assert_same(got: dict[int, torch.Tensor], want: dict[int, torch.Tensor]) -> None:
    for layer, stream in want.items():
        torch.testing.assert_close(got[layer], stream, rtol=2e-4, atol=2e-4)


WITH_UNIT = [(mode, unit) for mode in ("add", "set", "cap", "floor") for unit in ("absolute", "unit", "residual_norm")]
SHARES = [("multiply", 1.7), ("multiply", -0.5), ("suppress", 1.0), ("suppress", 0.4), ("ablate", 1.0), ("ablate", 0.3)]
STRENGTH = {"absolute": 0.8, "unit": 0.7, "residual_norm": 0.3, "feature_max": 0.4}


def all_ops(bench: Bench, sae: str) -> list[Op]:
    feature = firing_feature(bench, sae, (*IDS, *MORE))
    units = [*WITH_UNIT, *((mode, "feature_max") for mode in ("add", "set", "cap", "floor"))]
    ops = [feature_op(mode, STRENGTH[unit], unit, sae, feature) for mode, unit in units]
    ops += [feature_op("add", -0.6, "residual_norm", sae, feature), feature_op("set", 0.0, "absolute", sae, feature)]
    ops += [feature_op(mode, strength, "absolute", sae, feature) for mode, strength in SHARES]
    ops += [vector_op(mode, STRENGTH[unit], unit) for mode, unit in WITH_UNIT]
    return ops + [vector_op(mode, strength) for mode, strength in SHARES]


@pytest.mark.parametrize("sae", ["tiny/1-topk", "tiny/1-jump", "tiny/2-relu"])
def test_every_mode_and_unit_is_what_it_says(bench: Bench, sae: str) -> None:
    """All in one batch, prompt and generation, against float64 by hand, each alone."""
    ops = all_ops(bench, sae)
    lines = [bench.line(IDS, op, generated=MORE) for op in ops]
    plain = bench.by_hand((*IDS, *MORE), [], lambda _p, _o: False)
    changed = 0
    for op, got in zip(ops, bench.run(lines), strict=True):
        want = bench.by_hand((*IDS, *MORE), [op], ordinary((*IDS, *MORE)))
        assert_same(got, want)
        changed += not torch.allclose(want[N_LAYERS - 1], plain[N_LAYERS - 1])
    assert changed >= len(ops) - 2  # a cap above or a floor below may leave everything as it was


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_in_a_mixed_batch(family: str) -> None:
    """Rows of different lengths and operations, prompts padded and cut in chunks, equal each row by hand."""
    bench = Bench(family)
    bench.steerer.check()
    feature = firing_feature(bench, "tiny/1-topk", IDS)
    two = (vector_op("ablate", 1.0, layer=0), vector_op("add", 0.2, "residual_norm", layer=2, seed=1, place=1))
    stacked = (
        feature_op("suppress", 1.0, feature=feature),
        vector_op("set", 0.5, "unit", layer=1, place=1),
        feature_op("add", 1.5, "unit", "tiny/3-topk", 7, place=2),
    )
    lines = [
        bench.line(IDS, *two, generated=MORE),
        bench.line(IDS[:4], generated=MORE),
        bench.line(IDS[2:], *stacked, generated=MORE),
        bench.line(IDS[:1], vector_op("add", 0.4, "residual_norm", where=EVERYWHERE, layer=3), generated=MORE),
    ]
    for chunk in (None, 4):
        for line, got in zip(lines, bench.run(lines, chunk), strict=True):
            everywhere = any(not op.where.skip_special for op in line.choice.ops)
            touches = (lambda _p, _o: True) if everywhere else ordinary(line.ids)
            assert_same(got, bench.by_hand(line.ids, line.choice.ops, touches))


def test_a_row_in_a_batch_is_the_row_alone(bench: Bench) -> None:
    ops = all_ops(bench, "tiny/1-topk")
    lines = [bench.line(IDS, op, generated=MORE) for op in ops]
    together = bench.run([*lines, bench.line(IDS, generated=MORE)])
    for line, got in zip(lines, together, strict=False):
        again = bench.line(IDS, *line.choice.ops, generated=MORE)
        (alone,) = bench.run([again])
        for layer in range(N_LAYERS):
            torch.testing.assert_close(got[layer], alone[layer], rtol=1e-5, atol=1e-5)
        first, second = line.program.applied(), again.program.applied()  # type: ignore[union-attr]
        assert_alike(first.ops[0], second.ops[0])


def assert_alike(first: Any, second: Any) -> None:
    for name, value in first.model_dump().items():
        other = getattr(second, name)
        assert other == (pytest.approx(value, rel=1e-4, abs=1e-5) if isinstance(value, float) else value), name


@pytest.mark.parametrize("op", [vector_op("add", 0.0), feature_op("suppress", 0.0), feature_op("multiply", 1.0)])
def test_a_strength_of_nothing_changes_no_bit(bench: Bench, op: Op) -> None:
    line = bench.line(IDS, op, generated=MORE)
    (steered,), (plain,) = (
        bench.run([line]),
        bench.run([bench.line(IDS, generated=MORE)]),
    )  # rows of one batch may differ
    assert all(torch.equal(steered[layer], plain[layer]) for layer in plain)
    done = line.program.applied().ops[0]  # type: ignore[union-attr]
    assert (done.prompt_tokens, done.generated_tokens, done.max_relative_norm) == (len(IDS) - 2, len(MORE), 0.0)


def test_suppress_changes_no_bit_where_the_feature_is_off(bench: Bench) -> None:
    sae = SAES["tiny/1-topk"]
    feature = firing_feature(bench, "tiny/1-topk", IDS)
    steered, plain = bench.run([bench.line(IDS, feature_op("suppress", 1.0, feature=feature)), bench.line(IDS)])
    off = [n for n, h in enumerate(plain[1].double().numpy()) if activations(sae, h)[feature] == 0]
    assert 1 <= len(off) < len(IDS)
    assert torch.equal(steered[1][off], plain[1][off])
    assert not torch.equal(steered[1], plain[1])


def test_an_unsteered_row_beside_steered_ones_keeps_every_bit(bench: Bench) -> None:
    lines = [bench.line(IDS), bench.line(IDS, vector_op("add", 1.0, "residual_norm"))]
    assert all(
        torch.equal(a, b)
        for a, b in zip(bench.run(lines)[0].values(), bench.run([lines[0]] * 2)[0].values(), strict=True)
    )


def test_a_masked_token_has_no_activation(bench: Bench) -> None:
    """Even where it is not skipped: what is set there starts from 0, and there is nothing to suppress."""
    for op in (feature_op("set", 1.0, feature=f, where=EVERYWHERE) for f in range(0, 64, 9)):
        (got,) = bench.run([bench.line(IDS, op)])
        assert_same(got, bench.by_hand(IDS, [op], lambda _p, _o: True))
    line = bench.line(IDS[:1], *(feature_op("suppress", 1.0, feature=f, where=EVERYWHERE, place=f) for f in range(64)))
    steered, plain = bench.run([line, bench.line(IDS[:1])])
    assert all(torch.equal(steered[layer], plain[layer]) for layer in plain)


def test_what_was_done_is_measured(bench: Bench) -> None:
    sae, feature = "tiny/1-topk", firing_feature(bench, "tiny/1-topk", (*IDS, *MORE))
    ops = [feature_op("add", 0.3, "residual_norm", sae, feature), feature_op("set", 2.0, "absolute", sae, feature)]
    for op in ops:
        line = bench.line(IDS, op, generated=MORE)
        bench.run([line, bench.line(IDS, vector_op("add", 0.9, "unit"), generated=MORE)])
        assert line.program is not None
        done = line.program.applied().ops[0]
        before = bench.by_hand(line.ids, [], lambda _p, _o: False)[1].double().numpy()
        after = bench.by_hand(line.ids, [op], ordinary(line.ids))[1].double().numpy()
        touched = [n for n in range(len(line.ids)) if ordinary(line.ids)(n, op)]
        assert (done.prompt_tokens, done.generated_tokens) == (sum(n < len(IDS) for n in touched), len(MORE))
        relative = [np.linalg.norm(after[n] - before[n]) / np.linalg.norm(before[n]) for n in touched]
        assert done.mean_relative_norm == pytest.approx(np.mean(relative), rel=1e-3)
        assert done.max_relative_norm == pytest.approx(max(relative), rel=1e-3)
        W, b = (t.double().numpy() for t in (SAES[sae].W_enc[feature], SAES[sae].b_enc[feature]))
        assert done.activation_before == pytest.approx(np.mean([max(W @ before[n] + b, 0) for n in touched]), rel=1e-3)
        assert done.activation_after == pytest.approx(np.mean([max(W @ after[n] + b, 0) for n in touched]), rel=1e-3)
        assert (done.op, done.layer, done.mode, done.target) == (0, 1, op.mode, f"{sae}/{feature}")
    vector = bench.line(IDS, vector_op("add", 0.9, "unit"))
    bench.run([vector])
    assert vector.program is not None
    assert vector.program.applied().ops[0].activation_before is None


def test_ledger_places_come_back(bench: Bench) -> None:
    """Many choices one after another need no more memory than one, and none sees another's sums."""
    for _ in range(200):
        line = bench.line(IDS, vector_op("add", 0.1))
        bench.run([line])
        assert line.program is not None
        assert line.program.applied().ops[0].prompt_tokens == len(IDS) - 2
    many = [bench.line(IDS, vector_op("add", 0.1 * n)) for n in range(1, 80)]
    bench.run(many)
    sizes = [line.program.applied().ops[0].mean_relative_norm for line in many]  # type: ignore[union-attr]
    assert sizes == pytest.approx([n * sizes[0] for n in range(1, 80)], rel=1e-4)  # type: ignore[operator]
    assert len(bench.steerer._ground.ledger._most) <= 256


def test_a_pass_that_misses_a_layer_is_no_answer(bench: Bench) -> None:
    line = bench.line(IDS, vector_op("add", 1.0, layer=2))
    row = Row(line.program, IDS, 0, len(IDS))
    with pytest.raises(WorkFailed, match="steering after block 2 did not happen"), bench.steerer.steering([row]):
        bench.subject.read(torch.tensor([IDS]), {1: lambda _h: None})  # leaves the model after block 1
    with pytest.raises(WorkFailed, match="run twice, or on"), bench.steerer.steering([row, row]):
        bench.subject.read(torch.tensor([IDS]), {3: lambda _h: None})
    bench.subject.read(torch.tensor([IDS]), {3: lambda _h: None})  # and the model is free again


def test_a_row_that_overflows_is_told_from_its_neighbours() -> None:
    bench = Bench("gpt2", dtype=torch.float16)
    lines = [bench.line(IDS[:3], vector_op("add", 1e6, "unit")), bench.line(IDS, vector_op("add", 0.1, "unit"))]
    found = bench.run(lines)
    assert bench.last.broken().tolist() == [True, False]  # type: ignore[union-attr]
    assert bool(found[1][3].isfinite().all())


def test_the_self_test_notices_a_model_that_is_not_steered(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.steerer.check()
    assert sorted(bench.steerer._ground.typical) == list(range(N_LAYERS))
    with monkeypatch.context() as patched:
        patched.setattr("steering.plan.Group.apply", lambda _self, flat, _ledger: flat)
        with pytest.raises(WorkFailed, match="steering after block 0 does not arrive"):
            bench.steerer.check()
    hooks = bench.subject.blocks[2]._forward_hooks
    del hooks[next(iter(hooks))]  # as a compiled model does, which calls no hook that came later
    with pytest.raises(WorkFailed, match="steering after block 2 did not happen"):
        bench.steerer.check()


def test_blocks_that_return_tuples(bench: Bench) -> None:
    other = Bench()
    for block in other.subject.blocks:
        block.register_forward_hook(lambda _m, _i, out: (out, "cache"), prepend=True)
        block.register_forward_hook(lambda _m, _i, out: out[0])
    op = vector_op("add", 0.3, "residual_norm")
    # the hooks above stand before those of the steerer, which sees a tuple
    steerer = Steerer(other.subject, other.encoder, ())
    hook = steerer._hook(1)
    program = steerer.program(Choice(IDS, Sampling(1), (op,)))
    stream = torch.randn(1, len(IDS), D_MODEL)
    with pytest.raises(WorkFailed), steerer.steering([Row(program, IDS, 0, len(IDS))]):
        plain = hook(other.subject.blocks[1], None, (stream, "cache"))
        raise WorkFailed("enough")
    assert plain[1] == "cache"
    assert not torch.equal(plain[0], stream)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gpu_does_the_same(dtype: torch.dtype) -> None:
    bench = Bench(device="cuda", dtype=dtype)
    bench.steerer.check()
    slack = 2e-3 if dtype == torch.float32 else 0.1
    for sae in ("tiny/1-topk", "tiny/1-jump"):
        ops = [
            feature_op("set", 1.5, "absolute", sae),
            feature_op("suppress", 1.0, "absolute", sae),
            vector_op("ablate", 1.0),
        ]
        lines = [bench.line(IDS, op, generated=MORE) for op in ops]
        for op, got in zip(ops, bench.run(lines), strict=True):
            want = bench.by_hand((*IDS, *MORE), [op], ordinary((*IDS, *MORE)))
            for layer in want:
                torch.testing.assert_close(got[layer], want[layer], rtol=slack, atol=slack * 10)


def test_encoders_are_those_of_the_index() -> None:
    """One feature asked alone fires as it does in the indexer's encoder."""
    from steering.reading import activation, activations, row, rows

    g = torch.Generator().manual_seed(5)
    residual = torch.randn(300, D_MODEL, generator=g)
    residual[7] = residual[8]
    for sae in SAES.values():
        encoder = make_encoder(sae, torch.device("cpu"))
        dense = torch.zeros(300, encoder.d_sae)
        firing = encoder.encode(residual)
        dense[firing.token, firing.feature] = firing.value
        features = torch.tensor([3, 60, 0])
        torch.testing.assert_close(activations(rows(encoder, features), residual), dense[:, features])
        for feature in (0, 3, 60):
            reads = row(encoder, feature)
            pre = residual @ reads.weight + reads.bias
            alone = activation(encoder, residual, torch.tensor([feature]), pre, torch.tensor([reads.threshold]))
            torch.testing.assert_close(alone, dense[:, feature])
            assert ((alone > 0) == (dense[:, feature] > 0)).all()


def test_a_wide_sae_needs_no_more_than_a_look_at_most_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    from steering import reading

    encoder = make_encoder(random_sae(0, D_MODEL, d_sae=1024, k=16), torch.device("cpu"))
    residual = torch.randn(400, D_MODEL, generator=torch.Generator().manual_seed(6))
    dense = torch.zeros(400, 1024)
    firing = encoder.encode(residual)
    dense[firing.token, firing.feature] = firing.value
    asked: list[int] = []
    whole = reading._among_all
    monkeypatch.setattr(reading, "_among_all", lambda e, h, feature: asked.append(len(h)) or whole(e, h, feature))
    features = [int(dense.count_nonzero(0).argmax()), 5, 1000]
    for feature in features:
        reads = reading.row(encoder, feature)
        pre = residual @ reads.weight + reads.bias
        threshold = torch.tensor([reads.threshold])
        alone = reading.activation(encoder, residual, torch.tensor([feature]), pre, threshold)
        torch.testing.assert_close(alone, dense[:, feature])
        assert ((alone > 0) == (dense[:, feature] > 0)).all()
    assert dense[:, features].any()
    assert sum(asked) < 400  # of 1,200


def test_ties_go_to_the_lower_feature() -> None:
    from dataclasses import replace

    from steering.reading import activation, row

    sae = SAES["tiny/0-topk"]
    W = sae.W_enc.clone()
    W[10:30], b = W[9], sae.b_enc.clone()
    b[9:30] = b[9]
    encoder = make_encoder(replace(sae, W_enc=W, b_enc=b), torch.device("cpu"))
    residual = 3 * torch.nn.functional.normalize(W[9:10], dim=1)
    fires = encoder.encode(residual).feature.tolist()
    for feature in range(64):
        reads = row(encoder, feature)
        pre = residual @ reads.weight + reads.bias
        alone = activation(encoder, residual, torch.tensor([feature]), pre, torch.tensor([reads.threshold]))
        assert (float(alone) > 0) == (feature in fires)


def test_where_is_counted_in_the_choices_own_positions(bench: Bench) -> None:
    """Behind padding and across chunks."""
    where = Where(prompt_positions=[2, -1], generation_window=[1, 3], exclude_generation_positions=[2])
    op = vector_op("add", 0.5, "residual_norm", where=where)
    lines = [bench.line((*IDS, 7, 8, 9, 10), generated=MORE), bench.line(IDS, op, generated=MORE)]
    touched = {2, len(IDS) - 1, len(IDS) + 1}
    for chunk in (None, 3, 5):
        want = bench.by_hand((*IDS, *MORE), [op], lambda position, _op: position in touched)
        assert_same(bench.run(lines, chunk)[1], want)
    done: Line = lines[1]
    assert done.program is not None
    assert [(o.prompt_tokens, o.generated_tokens) for o in done.program.applied().ops] == [(6, 3)]  # three runs
