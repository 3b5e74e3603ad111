"""What steering did, over several choices: token counts add up, means are means over all tokens together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.services.generation.applied import check_applied, merge
from schema.errors import WorkFailed
from schema.generation import Choice, Ended, Op, Sampling
from schema.wire.steering import OpApplied, SteeringApplied, Where

Measured = list[tuple[float, float]]
"""Of each token touched: the norm added, the activation before."""
values = st.floats(0, 100, width=32)
tokens = st.lists(st.tuples(values, values), max_size=5)


def account(prompt: Measured, generated: Measured, kl: float | None, **more: Any) -> SteeringApplied:
    """As an engine counts one choice with one operation."""
    both = prompt + generated
    norms, before = [norm for norm, _ in both], [value for _, value in both]
    op = OpApplied(
        op=0,
        target="m/3-tiny/9",
        layer=3,
        mode="add",
        strength=1.0,
        unit="unit",
        vector_sha256="ab",
        prompt_tokens=len(prompt),
        generated_tokens=len(generated),
        mean_relative_norm=float(np.mean(norms)) if both else None,
        max_relative_norm=max(norms) if both else None,
        activation_before=float(np.mean(before)) if both else None,
        activation_after=None,
    )
    given: dict[str, Any] = {"condition_tokens": None, "kl_mean": None, "engine": "torch", "version": "1", **more}
    return SteeringApplied(ops=[op], kl_first=kl, **given)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(tokens, tokens, st.none() | values), min_size=1, max_size=5))
def test_several_choices_are_as_one_long_one(choices: list[tuple[Measured, Measured, float | None]]) -> None:
    merged = merge([(account(*choice), len(choice[1]) + 1) for choice in choices])
    whole = account([t for p, _, _ in choices for t in p], [t for _, g, _ in choices for t in g], None)
    found, expected = merged.ops[0], whole.ops[0]
    assert (found.prompt_tokens, found.generated_tokens) == (expected.prompt_tokens, expected.generated_tokens)
    assert found.max_relative_norm == expected.max_relative_norm
    for name in ("mean_relative_norm", "activation_before"):
        value, wanted = getattr(found, name), getattr(expected, name)
        assert value is wanted is None or value == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    known = [kl for _, _, kl in choices if kl is not None]
    assert merged.kl_first is None if not known else merged.kl_first == pytest.approx(np.mean(known), abs=1e-9)
    assert found.activation_after is merged.condition_tokens is merged.kl_mean is None


def test_divergence_over_tokens_is_weighted_by_tokens() -> None:
    parts = [(account([], [], 1.0, kl_mean=2.0, condition_tokens=3), 10), (account([], [], 3.0, kl_mean=8.0), 30)]
    merged = merge(parts)
    assert (merged.kl_first, merged.kl_mean, merged.condition_tokens) == (2.0, 6.5, 3)


def choice(*where: Where) -> Choice:
    ops = tuple(
        Op(place, "m/3-tiny/9", 3, "add", 1.0, "unit", np.ones(4, np.float32), where=each)
        for place, each in enumerate(where)
    )
    return Choice((5, 6, 7), Sampling(4), ops)


EVERYWHERE = Where(skip_special=False)


@pytest.mark.parametrize(
    ("where", "prompt_tokens", "good"),
    [
        (EVERYWHERE, 3, True),
        (EVERYWHERE, 2, False),
        (Where(), 2, True),  # one of them may be special
        (Where(skip_special=False, prompt="last"), 1, True),
        (Where(skip_special=False, exclude_tokens=[6]), 2, True),
    ],
)
def test_an_operation_that_must_touch_every_token_did(where: Where, prompt_tokens: int, good: bool) -> None:
    done = account([(1.0, 0.0)] * prompt_tokens, [], None)
    ended = Ended(0, "stop", 1, done)
    if good:
        check_applied(choice(where), ended)
    else:
        with pytest.raises(WorkFailed, match=r"steering.ops.0 \(m/3-tiny/9, layer 3\) was not applied"):
            check_applied(choice(where), ended)


def test_an_operation_that_is_not_accounted_for_is_not_believed() -> None:
    done = account([(1.0, 0.0)] * 3, [], None)
    with pytest.raises(WorkFailed, match=r"steering.ops.1 .* was not applied"):
        check_applied(choice(EVERYWHERE, EVERYWHERE), Ended(0, "stop", 1, done))
    with pytest.raises(WorkFailed, match="did not say that it steered"):
        check_applied(choice(EVERYWHERE), Ended(0, "stop", 1, None))
    check_applied(choice(), Ended(0, "stop", 1, None))
