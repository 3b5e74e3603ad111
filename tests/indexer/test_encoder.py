"""Exact top-k: the fast selection against a stable sort of the whole row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.encoder import GROUP, make_encoder, top_k
from indexer.saes import Sae
from schema.errors import WorkFailed
from tests.making import sae_tensors


def plain(pre: torch.Tensor, k: int) -> list[set[tuple[int, float]]]:
    """The k largest positive values of each row, ties to the lower column, by sorting everything."""
    order = torch.sort(pre, dim=1, descending=True, stable=True)
    return [
        {(int(c), float(v)) for v, c in zip(values[:k], columns[:k], strict=True) if v > 0}
        for values, columns in zip(order.values, order.indices, strict=True)
    ]


def fast(pre: torch.Tensor, k: int) -> list[set[tuple[int, float]]]:
    value, column = top_k(pre, k)
    return [
        {(int(c), float(v)) for v, c in zip(values, columns, strict=True) if v > 0}
        for values, columns in zip(value, column, strict=True)
    ]


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 40), st.sampled_from([1, 2, 3, 50]))
@settings(max_examples=200, deadline=None)
def test_the_set_is_that_of_a_stable_sort(seed: int, k: int, n_groups: int, levels: int) -> None:
    """Few levels make many ties, within the candidates and beyond them."""
    generator = torch.Generator().manual_seed(seed)
    pre = torch.randint(-1, levels, (7, n_groups * GROUP), generator=generator).float()
    assert fast(pre, k) == plain(pre, k)


@pytest.mark.parametrize("width", [17, 100, 256, 1000, 4096])
def test_any_width_is_exact(width: int) -> None:
    pre = torch.randn(50, width, generator=torch.Generator().manual_seed(width))
    assert fast(pre, 16) == plain(pre, 16)


def test_k_of_all_features() -> None:
    pre = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    assert fast(pre, 32) == plain(pre, 32)


def sae(**changes: object) -> Sae:
    return Sae(layer=0, **{**sae_tensors(0, 32, 256), "activation": "topk", "k": 6, **changes})  # type: ignore[arg-type]


def dense(made: Sae, x: torch.Tensor) -> torch.Tensor:
    firing = make_encoder(made, torch.device("cpu")).encode(x)
    out = torch.zeros(len(x), made.d_sae)
    out[firing.token, firing.feature] = firing.value
    assert (firing.value > 0).all()
    return out


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"subtract_b_dec": True},
        {"rescale_by_decoder_norm": True},
        {"activation": "relu", "k": None},
        {"activation": "jumprelu", "k": None, "threshold": torch.linspace(-1, 2, 256)},
        {"b_enc": torch.full((256,), -1.0)},  # fewer than k fire
        {"k": 256},
    ],
    ids=["topk", "b_dec subtracted", "rescaled", "relu", "jumprelu", "few fire", "k = d_sae"],
)
def test_every_encoder_equals_its_plain_twin(changes: dict[str, object]) -> None:
    made = sae(**changes)
    x = torch.randn(300, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(dense(made, x), made.activations(x), rtol=1e-5, atol=1e-5)


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = sae(), torch.randn(100, 32, generator=torch.Generator().manual_seed(2))
    whole = dense(made, x)
    monkeypatch.setattr("indexer.encoder.BUFFER_ELEMENTS", 256 * 16)
    torch.testing.assert_close(dense(made, x), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("changes", [{}, {"activation": "relu", "k": None}])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_overflowing_model_is_reported(changes: dict[str, object], bad: float) -> None:
    x = torch.randn(4, 32)
    x[2, 5] = bad
    with pytest.raises(WorkFailed, match="after block 0 is not finite"):
        dense(sae(**changes), x)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_finds_what_the_cpu_finds() -> None:
    made, x = sae(), torch.randn(500, 32, generator=torch.Generator().manual_seed(3))
    on_gpu = make_encoder(made, torch.device("cuda")).encode(x.cuda())
    out = torch.zeros(len(x), made.d_sae)
    out[on_gpu.token.cpu(), on_gpu.feature.cpu()] = on_gpu.value.cpu()
    expected = dense(made, x)
    assert ((out > 0) != (expected > 0)).float().mean() < 1e-4
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
