"""Whether an SAE is of the model: what its reconstruction leaves unexplained, against plain arithmetic, and what is said of another one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from indexer.config import IndexConfig
from indexer.fit import unexplained
from indexer.progress import Silent
from indexer.run import index
from indexer.saes import Sae
from schema.settings import Settings
from tests.making import sae_tensors
from tests.scopebase.test_cli import Call, call  # noqa: F401

CPU, EYE = torch.device("cpu"), torch.eye(32)


class Telling(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def sae(**changes: Any) -> Sae:
    return Sae(layer=2, **{**sae_tensors(2, 32, 256), "activation": "topk", "k": 6, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation": "relu", "k": None},
        {"activation": "jumprelu", "k": None, "threshold": torch.full((256,), 0.5)},
        {"subtract_b_dec": True},
        {
            "rescale_by_decoder_norm": True,
            "W_dec": 3 * torch.randn(32, 256, generator=torch.Generator().manual_seed(4)),
        },
    ],
)
def test_it_is_the_share_that_the_dense_reconstruction_leaves(changes: dict[str, Any]) -> None:
    one = sae(**changes)
    x = torch.randn(70, 32, generator=torch.Generator().manual_seed(1))
    left = (x - one.decode(one.activations(x))).double().square().sum()
    whole = (x - x.mean(0)).double().square().sum()
    assert unexplained(one, x, CPU) == pytest.approx(float(left / whole), rel=1e-5)


def test_a_perfect_one_leaves_nothing_and_extreme_tokens_are_not_asked() -> None:
    both = {"W_enc": torch.cat([EYE, -EYE]), "W_dec": torch.cat([EYE, -EYE], dim=1)}
    exact = Sae(layer=0, **both, b_enc=torch.zeros(64), b_dec=torch.zeros(32), activation="relu")
    x = torch.randn(20, 32, generator=torch.Generator().manual_seed(2))
    assert unexplained(exact, x, CPU) == pytest.approx(0, abs=1e-9)
    one = sae()
    assert unexplained(one, torch.cat([x, 1000 * x[:1]]), CPU) == unexplained(one, x, CPU)
    assert unexplained(one, x[:1], CPU) is None, "one token does not vary"
    assert unexplained(one, x[:0], CPU) is None


def release(folder: Path, tensors: dict[str, Any], k: int) -> Path:
    folder.mkdir()
    torch.save(tensors, folder / "layer2.sae.pt")
    shape = {"model_type": "topk_sae", "d_model": 32, "d_sae": len(tensors["b_enc"]), "k": k}
    (folder / "config.json").write_text(json.dumps(shape))
    return folder


def test_an_sae_of_another_model_is_told_from_the_models_own(
    tmp_path: Path,
    model_dir: Path,
    data_dir: Path,
    call: Call,  # noqa: F811
) -> None:
    """Its own gives every residual back. The other one has shapes that fit, and directions of its own."""
    both = {"W_enc": torch.cat([EYE, -EYE]), "W_dec": torch.cat([EYE, -EYE], dim=1)}
    own = release(tmp_path / "own", {**both, "b_enc": torch.zeros(64), "b_dec": torch.zeros(32)}, k=32)
    other = release(tmp_path / "other", sae_tensors(2, 32, 256), k=6)
    home, said = Settings.read(tmp_path / "home", {}), Telling()
    songs = (("songs", str(data_dir / "songs.jsonl")),)
    for folder in (own, other):
        asked = IndexConfig(str(model_dir), str(folder), songs, set_name=folder.name, mask="none", logits="no")
        index(asked, home, said)
    found = {each["id"]: each["fvu"] for each in call("--home", home.home, "saes", "--json").json["data"]}
    assert found["tiny-qwen3/2-own"] == pytest.approx(0, abs=1e-6)
    assert found["tiny-qwen3/2-other"] > 1
    (warned,) = (line for line in said.said if "is it an SAE of another model?" in line)
    assert warned.startswith("tiny-qwen3/2-other does not reconstruct the residuals of tiny-qwen3: it leaves")
    assert f"{found['tiny-qwen3/2-other']:.2f}" in call("--home", home.home, "saes").out


def test_what_is_not_finite_is_no_measure() -> None:
    """JSON has no word for it, and PostgreSQL takes none."""
    x = torch.randn(20, 32, generator=torch.Generator().manual_seed(3))
    assert unexplained(sae(), torch.full((20, 32), torch.inf), CPU) is None
    assert unexplained(sae(), torch.full((20, 32), torch.nan), CPU) is None
    assert unexplained(sae(b_dec=torch.full((32,), torch.inf)), x, CPU) is None
