"""The demonstration, with training cut short: everything but its quality."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import scopebase.cli
from scopebase.demo import run, train
from scopebase.demo.texts import datasets


def test_texts_are_many_different_and_the_same_each_time() -> None:
    first, again = datasets(seed=0, n=200), datasets(seed=0, n=200)
    assert first == again
    assert list(first) == ["word_problems", "equations", "stories", "python_code", "manual"]
    for name, (training, indexed) in first.items():
        assert len(indexed) >= 30, name
        assert not set(training) & set(indexed)
        assert all(text.strip() for text in training + indexed)
    assert datasets(seed=1, n=200) != first


def test_the_demo_runs_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for module, name, value in (
        (train, "MODEL_STEPS", 4),
        (train, "SAE_STEPS", 30),
        (run, "MODEL_STEPS", 4),
        (run, "SAE_STEPS", 30),
        (run, "TRAINING_ROWS", 60),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(run, "datasets", lambda seed: datasets(seed, n=60))
    monkeypatch.setattr(sys, "argv", ["scopebase", "demo", "--folder", str(tmp_path / "demo")])
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            scopebase.cli.main()
        assert not ended.value.code
    said = capfd.readouterr().out
    assert said.count("word_problems covers") == 2
    assert said.count("was complete") == 5 + 1, "each dataset's, and all together"
    assert "SAE-Res-Qwen3-1.7B-Base-W32K-L0_50" in said


def test_sae_training_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """On data that is sparse in a known dictionary, most of the variance is explained."""
    import torch

    monkeypatch.setattr(train, "SAE_STEPS", 150)
    monkeypatch.setattr(train, "D_SAE", 256)
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(100, train.WIDTH), dim=1)
    strengths = torch.rand(6000, 100) * (torch.rand(6000, 100) < 0.05)
    x = 10 * strengths @ directions + 0.5
    sae = train.train_sae(x, lambda _n: None)
    pre = x @ sae["W_enc"].T + sae["b_enc"]
    value, place = pre.topk(train.K, dim=1)
    acts = torch.zeros_like(pre).scatter(1, place, value.relu())
    error = x - (acts @ sae["W_dec"].T + sae["b_dec"])
    assert float(error.pow(2).sum() / (x - x.mean(0)).pow(2).sum()) < 0.3
    torch.testing.assert_close(sae["W_dec"].norm(dim=0), torch.ones(train.D_SAE), rtol=1e-4, atol=1e-4)
