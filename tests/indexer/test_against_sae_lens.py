"""SAELens as an outside reference for the numerics of both formats. Runs where `scopebase[oracle]` is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

sae_lens = pytest.importorskip("sae_lens", reason="install scopebase[oracle]")

from indexer.encoder import make_encoder  # noqa: E402
from indexer.saes import Sae, open_release  # noqa: E402
from tests.making import make_release, sae_tensors  # noqa: E402

X = torch.randn(200, 32, generator=torch.Generator().manual_seed(5))


def ours(sae: Sae, x: torch.Tensor) -> torch.Tensor:
    firing = make_encoder(sae, torch.device("cpu")).encode(x)
    out = torch.zeros(len(x), sae.d_sae)
    out[firing.token, firing.feature] = firing.value
    return out


def theirs(kind: str, **config: Any) -> Any:
    """A SAELens SAE with seeded weights, decoder norms away from 1."""
    from sae_lens.saes.sae import SAEMetadata

    tensors = sae_tensors(3, 32, 256)
    made = getattr(sae_lens, f"{kind}SAE")(
        getattr(sae_lens, f"{kind}SAEConfig")(
            d_in=32,
            d_sae=256,
            dtype="float32",
            device="cpu",
            metadata=SAEMetadata(hook_name="blocks.3.hook_resid_post"),
            **config,
        )
    )
    with torch.no_grad():
        made.W_enc.copy_(tensors["W_enc"].T)
        made.W_dec.copy_(tensors["W_dec"].T * torch.linspace(0.5, 2, 256)[:, None])
        made.b_enc.copy_(tensors["b_enc"])
        made.b_dec.copy_(tensors["b_dec"])
        if kind == "JumpReLU":
            made.threshold.copy_(torch.linspace(-0.5, 1.5, 256))
    return made.eval()


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("TopK", {"k": 6, "apply_b_dec_to_input": False}),
        ("TopK", {"k": 6, "apply_b_dec_to_input": True}),
        ("TopK", {"k": 6, "apply_b_dec_to_input": True, "rescale_acts_by_decoder_norm": True}),
        ("JumpReLU", {"apply_b_dec_to_input": False}),
        ("JumpReLU", {"apply_b_dec_to_input": True}),
        ("Standard", {"apply_b_dec_to_input": True}),
    ],
)
def test_a_directory_that_sae_lens_saved(tmp_path: Path, kind: str, config: dict[str, Any]) -> None:
    reference = theirs(kind, **config)
    reference.save_model(tmp_path)
    sae = open_release(str(tmp_path)).load(3)
    expected = reference.encode(X)
    torch.testing.assert_close(ours(sae, X), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae.decode(expected), reference.decode(expected), rtol=1e-4, atol=1e-4)


def test_a_batch_topk_sae_as_sae_lens_saves_it(tmp_path: Path) -> None:
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    training = BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(d_in=32, d_sae=256, k=6, metadata=SAEMetadata(hook_name="blocks.3.hook_resid_post"))
    )
    with torch.no_grad():
        training.topk_threshold.fill_(0.7)
    training.save_inference_model(tmp_path)
    reference = sae_lens.SAE.load_from_disk(tmp_path)
    sae = open_release(str(tmp_path)).load(3)
    assert sae.activation == "jumprelu"
    torch.testing.assert_close(ours(sae, X), reference.encode(X), rtol=1e-4, atol=1e-5)


def test_a_qwen_scope_file_as_sae_lens_encodes_it(tmp_path: Path) -> None:
    """The canonical rule of the released weights: no b_dec before the encoder, ReLU, top-k; b_dec after the decoder."""
    from sae_lens.saes.sae import SAEMetadata

    folder = make_release(tmp_path / "SAE-Res-Tiny-W256-L0_6", 4, 32, 256, 6)
    sae = open_release(str(folder)).load(3)
    reference = sae_lens.TopKSAE(
        sae_lens.TopKSAEConfig(
            d_in=32,
            d_sae=256,
            k=6,
            apply_b_dec_to_input=False,
            metadata=SAEMetadata(hook_name="blocks.3.hook_resid_post"),
        )
    )
    reference.load_state_dict({"W_enc": sae.W_enc.T, "W_dec": sae.W_dec.T, "b_enc": sae.b_enc, "b_dec": sae.b_dec})
    expected = reference.encode(X)
    torch.testing.assert_close(ours(sae, X), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sae.decode(expected), reference.decode(expected), rtol=1e-5, atol=1e-5)
