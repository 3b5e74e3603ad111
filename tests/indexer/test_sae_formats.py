"""The SAEs of other labs: each format gives what its own code computes, is known by its files, and refuses what it cannot read.

The formulas below are written after each family's own `encode` and `decode`, in its own orientation.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from indexer.encoder import make_encoder
from indexer.saes import Release, Sae, open_release
from indexer.saes.known import load_known
from indexer.saes.numpy_file import read_arrays
from schema.errors import InputError
from schema.names import check_set, set_from_release
from schema.tables import Sae as KnownSae

D, F, LAYER, K = 16, 64, 3, 5
Tensors = dict[str, Tensor]
Formula = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Residuals -> activations and reconstruction."""


def parts(seed: int = 0) -> Tensors:
    """An SAE's parts as papers write them: W_enc (d_model, d_sae), W_dec (d_sae, d_model), and what some families have beside."""
    g = torch.Generator().manual_seed(seed)
    made = {name: torch.randn(shape, generator=g) for name, shape in (("W_enc", (D, F)), ("W_dec", (F, D)))}
    made |= {name: 0.3 * torch.randn(F, generator=g) for name in ("b_enc", "r_mag", "gate_bias", "mag_bias")}
    made["b_dec"] = torch.randn(D, generator=g)
    made["threshold"] = torch.rand(F, generator=g) * 2
    return made


X = torch.randn(200, D, generator=torch.Generator().manual_seed(7)) * 1.5
P = parts()


def jump(pre: Tensor, threshold: Tensor | float) -> Tensor:
    return torch.relu(pre) * (pre > threshold)


def top_k(pre: Tensor, k: int) -> Tensor:
    value, column = torch.relu(pre).topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, column, value)


def gemma(x: Tensor) -> tuple[Tensor, Tensor]:
    acts = jump(x @ P["W_enc"] + P["b_enc"], P["threshold"])
    return acts, acts @ P["W_dec"] + P["b_dec"]


def centred(activate: Callable[[Tensor], Tensor]) -> Formula:
    def formula(x: Tensor) -> tuple[Tensor, Tensor]:
        acts = activate((x - P["b_dec"]) @ P["W_enc"] + P["b_enc"])
        return acts, acts @ P["W_dec"] + P["b_dec"]

    return formula


def gated(x: Tensor) -> tuple[Tensor, Tensor]:
    encoded = (x - P["b_dec"]) @ P["W_enc"]
    acts = (encoded + P["gate_bias"] > 0) * torch.relu(P["r_mag"].exp() * encoded + P["mag_bias"])
    return acts, acts @ P["W_dec"] + P["b_dec"]


def plain(x: Tensor) -> tuple[Tensor, Tensor]:
    acts = torch.relu(x @ P["W_enc"] + P["b_enc"])
    return acts, acts @ P["W_dec"] + P["b_dec"]


NORM_IN, NORM_OUT = 2.5, 3.25


def llama(x: Tensor) -> tuple[Tensor, Tensor]:
    acts = jump(x * math.sqrt(D) / NORM_IN @ P["W_enc"] + P["b_enc"], 0.75)
    return acts, (acts @ P["W_dec"] + P["b_dec"]) * NORM_OUT / math.sqrt(D)


def write_gemma(root: Path, **changes: Any) -> Path:
    folder = root / "gemma-scope-2b-pt-res" / f"layer_{LAYER}" / "width_64" / "average_l0_9"
    folder.mkdir(parents=True)
    names = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
    np.savez(folder / "params.npz", **{**{name: P[name].numpy() for name in names}, **changes})
    return folder


def write_gemma_2(root: Path, **changes: Any) -> Path:
    folder = root / "gemma-scope-2-1b-pt" / "resid_post_all" / f"layer_{LAYER}_width_64_l0_small"
    folder.mkdir(parents=True)
    names = {"w_enc": "W_enc", "w_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}
    tensors = {theirs: P[ours] for theirs, ours in names.items()}
    if changes.pop("affine", False):
        tensors["affine_skip_connection"] = torch.zeros(D, D)
    save_file(tensors, folder / "params.safetensors")
    hook = f"model.layers.{LAYER}.output"
    config = {"architecture": "jump_relu", "hf_hook_point_in": hook, "hf_hook_point_out": hook, "type": "sae"}
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def write_sparsify(root: Path, hook: str = f"layers.{LAYER}", **changes: Any) -> Path:
    folder = root / "sae-pythia-160m-32k" / hook
    folder.mkdir(parents=True)
    tensors = {
        "encoder.weight": P["W_enc"].T.contiguous(),
        "encoder.bias": P["b_enc"],
        "W_dec": P["W_dec"],
        "b_dec": P["b_dec"],
    }
    save_file(tensors, folder / "sae.safetensors")
    config = {"expansion_factor": 4, "num_latents": 0, "k": K, "multi_topk": False, "d_in": D}
    (folder / "cfg.json").write_text(json.dumps({**config, **changes}))
    return folder


def write_goodfire(root: Path, **_changes: Any) -> Path:
    folder = root / "Llama-3.1-8B-Instruct-SAE-l3"
    folder.mkdir(parents=True)
    tensors = {
        "encoder_linear.weight": P["W_enc"].T.contiguous(),
        "encoder_linear.bias": P["b_enc"],
        "decoder_linear.weight": P["W_dec"].T.contiguous(),
        "decoder_linear.bias": P["b_dec"],
    }
    torch.save(tensors, folder / f"Llama-3.1-8B-Instruct-SAE-l{LAYER}.pth")
    return folder


def write_llama(root: Path, **changes: Any) -> Path:
    folder = root / f"Llama3_1-8B-Base-L{LAYER}R-8x"
    (folder / "checkpoints").mkdir(parents=True)
    tensors = {
        "encoder.weight": P["W_enc"].T.contiguous(),
        "encoder.bias": P["b_enc"],
        "decoder.weight": P["W_dec"].T.contiguous(),
        "decoder.bias": P["b_dec"],
    }
    save_file(tensors, folder / "checkpoints" / "final.safetensors")
    hook = f"blocks.{LAYER}.hook_resid_post"
    config = {
        "hook_point_in": hook,
        "hook_point_out": hook,
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.75,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": NORM_IN, "out": NORM_OUT},
        "sparsity_include_decoder_norm": True,
        "apply_decoder_bias_to_pre_encoder": False,
    }
    (folder / "hyperparams.json").write_text(json.dumps({**config, **changes}))
    return folder


LINEAR = {"encoder.weight": P["W_enc"].T.contiguous(), "decoder.weight": P["W_dec"].T.contiguous()}
MATRICES = {name: P[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
CLASSES: dict[str, tuple[Tensors, Formula]] = {
    "AutoEncoder": ({**LINEAR, "encoder.bias": P["b_enc"], "bias": P["b_dec"]}, centred(torch.relu)),
    "GatedAutoEncoder": (
        {**LINEAR, **{name: P[name] for name in ("r_mag", "gate_bias", "mag_bias")}, "decoder_bias": P["b_dec"]},
        gated,
    ),
    "AutoEncoderTopK": (
        {**LINEAR, "encoder.bias": P["b_enc"], "b_dec": P["b_dec"], "k": torch.tensor(K), "threshold": torch.tensor(-1.0)},
        centred(lambda pre: top_k(pre, K)),
    ),
    "BatchTopKSAE": (
        {**LINEAR, "encoder.bias": P["b_enc"], "b_dec": P["b_dec"], "k": torch.tensor(K), "threshold": torch.tensor(0.7)},
        centred(lambda pre: jump(pre, 0.7)),
    ),
    "MatryoshkaBatchTopKSAE": (
        {**MATRICES, "k": torch.tensor(K), "threshold": torch.tensor(0.7), "group_sizes": torch.tensor([32, 32])},
        centred(lambda pre: jump(pre, 0.7)),
    ),
    "JumpReluAutoEncoder": ({**MATRICES, "threshold": P["threshold"]}, gemma),
}  # fmt: skip


def write_dictionary(root: Path, kind: str = "AutoEncoderTopK", tensors: Tensors | None = None, **changes: Any) -> Path:
    folder = root / "saebench_pythia" / f"resid_post_layer_{LAYER}" / "trainer_0"
    folder.mkdir(parents=True)
    torch.save(CLASSES[kind][0] if tensors is None else tensors, folder / "ae.pt")
    trainer = {"dict_class": kind, "activation_dim": D, "dict_size": F, "layer": LAYER, "lm_name": "m"}
    trainer |= {"submodule_name": f"resid_post_layer_{LAYER}", **changes}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))
    return folder


@dataclass(frozen=True)
class Family:
    format: str
    write: Callable[..., Path]
    formula: Formula
    set_name: str
    above: int
    """Folders between the SAE's own and the release's."""


FAMILIES = {
    "gemma": Family("gemma-scope", write_gemma, gemma, "gemma-scope-2b-pt-res-width-64-average-l0-9", 3),
    "gemma 2": Family("gemma-scope-2", write_gemma_2, gemma, "gemma-scope-2-1b-pt-width-64-l0-small", 2),
    "sparsify": Family("sparsify", write_sparsify, centred(lambda pre: top_k(pre, K)), "sae-pythia-160m-32k", 1),
    "goodfire": Family("goodfire", write_goodfire, plain, "llama-3-1-8b-instruct-sae-l3", 0),
    "llama": Family("llama-scope", write_llama, llama, "llama3-1-8b-base-lxr-8x", 0),
    **{
        kind: Family(
            "dictionary-learning",
            lambda root, kind=kind, **changes: write_dictionary(root, kind, **changes),
            formula,
            "saebench-pythia-trainer-0",
            2,
        )
        for kind, (_, formula) in CLASSES.items()
    },
}


def sparse(sae: Sae, x: Tensor) -> Tensor:
    """As the indexer encodes."""
    fired = make_encoder(sae, torch.device("cpu")).encode(x)
    return torch.zeros(len(x), sae.d_sae).index_put((fired.token, fired.feature), fired.value)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_each_family_gives_what_its_own_code_computes(tmp_path: Path, family: Family) -> None:
    found = open_release(str(family.write(tmp_path)))
    assert (found.format, list(found.files)) == (family.format, [LAYER])
    sae = found.load(LAYER)
    acts, decoded = family.formula(X)
    assert 0.02 < (acts > 0).float().mean() < 0.8
    for mine in (sae.activations(X), sparse(sae, X)):
        torch.testing.assert_close(mine, acts, rtol=1e-4, atol=1e-4)
        assert torch.equal(mine > 0, acts > 0)
    torch.testing.assert_close(sae.decode(acts), decoded, rtol=1e-4, atol=1e-4)
    assert check_set(set_from_release(found.name)) == family.set_name


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_each_family_is_found_in_its_release_and_again_by_its_file(tmp_path: Path, family: Family) -> None:
    folder = family.write(tmp_path)
    one = open_release(str(folder))
    root = folder.parents[family.above - 1] if family.above else folder
    whole = open_release(str(root))
    assert (whole.format, list(whole.files)) == (family.format, [LAYER])
    sae = one.load(LAYER)
    assert whole.load(LAYER).sha256() == sae.sha256()
    card = one.card(sae, sae.sha256())
    fields = ("layer", "release", "format", "sha256", "source")
    known = KnownSae(name="m/3-x", **{name: getattr(card, name) for name in fields})
    assert load_known(known).sha256() == card.sha256


def test_saelens_gated_is_read(tmp_path: Path) -> None:
    names = {
        "W_enc": "W_enc",
        "W_dec": "W_dec",
        "b_dec": "b_dec",
        "r_mag": "r_mag",
        "b_gate": "gate_bias",
        "b_mag": "mag_bias",
    }
    save_file({theirs: P[ours] for theirs, ours in names.items()}, tmp_path / "sae_weights.safetensors")
    config = {"architecture": "gated", "hook_name": f"blocks.{LAYER}.hook_resid_post", "apply_b_dec_to_input": True}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    acts, _ = gated(X)
    torch.testing.assert_close(sparse(open_release(str(tmp_path)).load(LAYER), X), acts, rtol=1e-4, atol=1e-4)


def opened(folder: Path) -> Release:
    return open_release(str(folder))


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "objects": (lambda root: write_gemma(root, b_enc=np.array([{}] * F)), "holds objects, which can hold code"),
    "NaN": (lambda root: write_gemma(root, b_dec=np.full(D, np.nan, np.float32)), "b_dec holds NaN"),
    "integers": (lambda root: write_gemma(root, b_dec=np.zeros(D, np.int64)), "b_dec is int64"),
    "turned": (lambda root: write_gemma(root, W_enc=P["W_dec"].numpy()), "W_enc has shape .16, 64., .*it is transposed"),
    "shape": (lambda root: write_gemma(root, threshold=np.zeros(3, np.float32)), "threshold has shape .3,."),
    "finetuned": (lambda root: write_gemma(root, scaling_factor=np.full(F, 2, np.float32)), "scales its features in decoding"),
    "affine": (lambda root: write_gemma_2(root, affine=True), "is a transcoder with a skip connection"),
    "transcoder": (lambda root: write_gemma_2(root, hf_hook_point_out="model.layers.3.mlp.output"), "is not what block 3 returns"),
    "crosscoder": (lambda root: write_gemma_2(root, type="crosscoder"), "type = 'crosscoder' is not read"),
    "other layer": (lambda root: write_gemma_2(root, hf_hook_point_in="model.layers.4.output"), "is not what block 3 returns"),
    "groupmax": (lambda root: write_sparsify(root, activation="groupmax"), "activation = 'groupmax' is not read"),
    "transcode": (lambda root: write_sparsify(root, transcode=True), "transcode = True is not read"),
    "no k": (lambda root: write_sparsify(root, k=None), "k of cfg.json is None"),
    "k too large": (lambda root: write_sparsify(root, k=65), "k = 65, but it must lie between 1 and d_sae = 64"),
    "width": (lambda root: write_sparsify(root, num_latents=32), "says 32 latents, sae.safetensors has 64"),
    "mlp": (lambda root: write_sparsify(root, f"layers.{LAYER}.mlp"), "'layers.3.mlp' is not what a block returns"),
    "class": (lambda root: write_dictionary(root, dict_class="CrossCoder"), "class 'CrossCoder' is not read"),
    "two k": (lambda root: write_dictionary(root, k=9), "says k = 9, ae.pt k = 5"),
    "attention": (lambda root: write_dictionary(root, submodule_name="attention_layer_3"), "is not what block 3 returns"),
    "untrained": (
        lambda root: write_dictionary(root, "BatchTopKSAE", {**CLASSES["BatchTopKSAE"][0], "threshold": torch.tensor(-1.0)}),
        "before its training had set one",
    ),
    "no bias": (lambda root: write_dictionary(root, "AutoEncoder", LINEAR), "has no tensor 'encoder.bias'"),
    "gate": (
        lambda root: write_dictionary(root, "GatedAutoEncoder", {**CLASSES["GatedAutoEncoder"][0], "r_mag": torch.ones(2)}),
        "biases do not fit its encoder",
    ),
    "norm": (lambda root: write_llama(root, norm_activation="token-wise"), "norm_activation = 'token-wise' is not read"),
    "no norm": (lambda root: write_llama(root, dataset_average_activation_norm={"in": 0}), "has no 'in' that is a length"),
    "attention output": (lambda root: write_llama(root, hook_point_out="blocks.3.hook_attn_out"), "not the residual stream"),
    "threshold": (lambda root: write_llama(root, jump_relu_threshold="0.5"), "jump_relu_threshold is '0.5'"),
    "glu": (lambda root: write_llama(root, use_glu_encoder=True), "use_glu_encoder = True is not read"),
}  # fmt: skip


@pytest.mark.parametrize(("write", "says"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_refused(tmp_path: Path, write: Callable[[Path], Path], says: str) -> None:
    with pytest.raises(InputError, match=says):
        opened(write(tmp_path)).load(LAYER)


def test_openais_saes_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "autoencoders").mkdir()
    (tmp_path / "autoencoders" / "8.pt").write_bytes(b"")
    for place in (tmp_path, tmp_path / "autoencoders"):
        with pytest.raises(InputError, match="normalise the residual of each token first"):
            opened(place)


def test_a_scale_of_one_changes_nothing(tmp_path: Path) -> None:
    sae = opened(write_gemma(tmp_path, scaling_factor=np.ones(F, np.float32))).load(LAYER)
    torch.testing.assert_close(sae.activations(X), gemma(X)[0], rtol=1e-4, atol=1e-4)


def test_several_saes_of_a_layer_are_named(tmp_path: Path) -> None:
    folder = write_gemma(tmp_path)
    other = folder.with_name("average_l0_20")
    other.mkdir()
    (other / "params.npz").write_bytes((folder / "params.npz").read_bytes())
    with pytest.raises(
        InputError, match=r"2 SAEs of layer 3: layer_3/width_64/average_l0_20, layer_3/width_64/average_l0_9;"
    ):
        opened(tmp_path / "gemma-scope-2b-pt-res")


def test_gemma_scope_of_other_places_or_without_a_layer(tmp_path: Path) -> None:
    folder = write_gemma(tmp_path)
    moved = tmp_path / "gemma-scope-2b-pt-att" / "layer_3"
    moved.mkdir(parents=True)
    (moved / "params.npz").write_bytes((folder / "params.npz").read_bytes())
    with pytest.raises(InputError, match="is of att, not of the residual stream"):
        opened(moved)
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "params.npz").write_bytes((folder / "params.npz").read_bytes())
    with pytest.raises(InputError, match="does not say its layer"):
        opened(tmp_path / "alone")


def archive(path: Path, content: bytes, packed: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", packed) as file:
        file.writestr("W_enc.npy", content)
    return path


def header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda path: archive(path, header((10**12, 10**6)) + bytes(64)), "its bytes are too few"),
        (lambda path: archive(path, header((1 << 24,)) + bytes(1 << 26), zipfile.ZIP_DEFLATED), "would unpack from"),
        (lambda path: archive(path, b"no array at all"), "is no array"),
        (lambda path: path.write_bytes(b"PK\x03\x04 and nothing"), "is no numpy archive"),
        (lambda path: path.write_bytes(b""), "is no numpy archive"),
    ],
    ids=["lying header", "zip bomb", "noise", "cut short", "empty"],
)  # fmt: skip
def test_hostile_numpy_archives_are_refused(tmp_path: Path, write: Callable[[Path], object], says: str) -> None:
    write(tmp_path / "params.npz")
    with pytest.raises(InputError, match=says):
        read_arrays(tmp_path / "params.npz")
