"""Logit effects against a dense computation of their own, and that each SAE gets them exactly once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sqlalchemy import func, select

from indexer import logits, prepare
from indexer.config import IndexConfig
from indexer.estimate import estimate
from indexer.logits import linear_part
from indexer.progress import Silent
from indexer.run import index
from schema.home import open_home
from schema.layout import feature_key
from schema.settings import Settings
from schema.tables import Sae, Shard
from tests.making import make_release, make_tokenizer


def home_of(folder: Path, args: dict[str, Any], data_dir: Path, **changes: Any) -> Settings:
    settings = Settings.read(folder, {})
    index(IndexConfig(**{**args, "datasets": (("songs", str(data_dir / "songs.jsonl")),), **changes}), settings)
    return settings


def stored(settings: Settings, sae: str) -> list[dict[str, Any]]:
    home = open_home(settings)
    with home.database.reading() as session:
        found = session.scalars(select(Sae).where(Sae.name == sae)).one()
    keys = [feature_key(found.id, f) for f in range(found.d_sae)]
    rows = home.store.rows("logits", keys).to_pylist()
    home.close()
    return rows


def check(rows: list[dict[str, Any]], effects: np.ndarray, tokenizer: Any) -> None:
    """Ten largest and ten smallest of every row."""
    assert len(rows) == len(effects)
    for row, effect in zip(rows, effects, strict=True):
        np.testing.assert_allclose(row["top_values"], np.sort(effect)[::-1][:10], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(row["bottom_values"], np.sort(effect)[:10], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(effect[row["top_ids"]], row["top_values"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(effect[row["bottom_ids"]], row["bottom_values"], rtol=1e-4, atol=1e-5)
        assert row["top_tokens"] == [tokenizer.decode([i]) for i in row["top_ids"]]


def test_rmsnorm_family(indexed: Settings, model_dir: Path, release_dir: Path) -> None:
    """Qwen3: the weights read straight from its file, one matrix product."""
    from safetensors.numpy import load_file
    from transformers import AutoTokenizer

    weights = load_file(model_dir / "model.safetensors")
    unembedding = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    sae = torch.load(release_dir / "layer1.sae.pt", weights_only=True)
    effects = (sae["W_dec"].numpy().T * weights["model.norm.weight"]) @ unembedding.T
    check(stored(indexed, "tiny-qwen3/1-tiny"), effects, AutoTokenizer.from_pretrained(model_dir))


def test_layernorm_family(tmp_path: Path, data_dir: Path) -> None:
    """GPT-2 with a norm that is no identity, and a vocabulary padded beyond its tokenizer's."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(3)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=448, n_positions=256, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=1)
    )
    with torch.no_grad():
        model.transformer.ln_f.weight.uniform_(0.5, 2)
        model.transformer.ln_f.bias.normal_()
    model.save_pretrained(tmp_path / "tiny-gpt2")
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tiny-gpt2")
    release = make_release(tmp_path / "release", 2, 32, 64, 6)
    args = {"model": str(tmp_path / "tiny-gpt2"), "sae": str(release), "set_name": "tiny"}
    settings = home_of(tmp_path / "home", args, data_dir)
    directions = torch.load(release / "layer1.sae.pt", weights_only=True)["W_dec"].numpy().T
    gain, unembedding = model.transformer.ln_f.weight.detach().numpy(), model.lm_head.weight.detach().numpy()[:400]
    effects = ((directions - directions.mean(1, keepdims=True)) * gain) @ unembedding.T
    rows = stored(settings, "tiny-gpt2/1-tiny")
    assert max(max(row["top_ids"]) for row in rows) < 400
    check(rows, effects, tokenizer)


@pytest.mark.parametrize("width", [32, 33])
def test_a_norm_is_learnt_by_asking_it(width: int) -> None:
    """Gemma's weight counts from 1; the bias of a LayerNorm changes no difference."""
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

    torch.manual_seed(0)
    plain, gemma, layer = torch.nn.RMSNorm(width), GemmaRMSNorm(width), torch.nn.LayerNorm(width)
    with torch.no_grad():
        for norm in (plain, gemma, layer):
            norm.weight.normal_()
        layer.bias.normal_()
        for norm, weight, centres in (
            (plain, plain.weight, False),
            (gemma, 1 + gemma.weight, False),
            (layer, layer.weight, True),
        ):
            gain, found = linear_part(norm, width)
            torch.testing.assert_close(gain, weight, rtol=1e-4, atol=1e-5)
            assert found is centres


def test_a_home_without_logits_gets_them_with_the_next_command(
    tmp_path: Path, index_args: dict[str, Any], data_dir: Path, indexed: Settings
) -> None:
    """Once, and the finished run is left alone."""
    settings = home_of(tmp_path / "home", index_args, data_dir, logits="no", layers="1,2")
    home = open_home(settings)
    assert not home.store.has("logits")
    home.close()
    for _ in range(2):
        home_of(tmp_path / "home", index_args, data_dir, layers="1,2")
    home = open_home(settings)
    with home.database.reading() as session:
        states = list(session.scalars(select(Shard.state).where(Shard.kind == "logits")))
        assert session.scalar(select(func.count()).select_from(Shard).where(Shard.kind == "encode")) == 1
    assert states == ["committed", "committed"]
    assert home.store.latest("logits").count_rows() == 2 * 256 + 1
    assert home.store.latest("logits").describe_indices()
    home.close()
    ours, theirs = stored(settings, "tiny-qwen3/2-tiny"), stored(indexed, "tiny-qwen3/2-tiny")
    assert [row["top_ids"] for row in ours] == [row["top_ids"] for row in theirs]


def test_a_cpu_leaves_large_ones_out_unless_asked(
    tmp_path: Path, index_args: dict[str, Any], data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "AUTO_WORK", 256 * 400 * 32 - 1)
    said: list[str] = []
    progress = Silent()
    monkeypatch.setattr(progress, "say", said.append)
    config = IndexConfig(**index_args, datasets=(("songs", str(data_dir / "songs.jsonl")),), layers="2")
    answer = estimate(config, Settings.read(tmp_path / "home", {}), progress)
    assert answer.n_logits == 0
    assert "logit effects are left out: 3.3e+06 multiply-adds" in said[0]
    asked = IndexConfig(**index_args, datasets=config.datasets, layers="2", logits="yes")
    answer = estimate(asked, Settings.read(tmp_path / "home", {}))
    assert (answer.n_logits, answer.logit_work) == (1, 256 * 400 * 32)


def test_an_unknown_head_is_left_out_or_refused(
    tmp_path: Path, index_args: dict[str, Any], data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from schema.errors import InputError

    monkeypatch.setattr(logits, "_NORMS", ("elsewhere",))
    settings = home_of(tmp_path / "home", index_args, data_dir, layers="2")
    home = open_home(settings)
    assert not home.store.has("logits")
    home.close()
    with pytest.raises(InputError, match="keeps its final norm or unembedding where Scopebase does not look"):
        home_of(tmp_path / "home", index_args, data_dir, layers="2", logits="yes")
    with pytest.raises(InputError, match="--logits 'perhaps': auto, yes, no"):
        IndexConfig(**index_args, datasets=(("a", "b"),), logits="perhaps")


def test_pieces_of_stored_tokens_are_text(indexed: Settings) -> None:
    """They travel as JSON, whatever bytes a token holds."""
    assert json.dumps(stored(indexed, "tiny-qwen3/0-tiny")[:20])
