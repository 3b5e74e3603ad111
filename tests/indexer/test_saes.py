"""Reading SAEs: two formats, golden vectors, and files that are damaged or hostile."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from indexer.saes import Release, open_release, parse_layers
from schema.errors import InputError
from tests.making import make_release, sae_tensors

# A golden vector, computed by hand: 4 features, width 2, k 2.
GOLDEN = {
    "W_enc": torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]]),
    "W_dec": torch.tensor([[1.0, 0.0, -1.0, 0.5], [0.0, 1.0, 0.0, 0.5]]),
    "b_enc": torch.tensor([0.5, 0.0, 0.0, 0.5]),
    "b_dec": torch.tensor([10.0, 20.0]),
}


def release(folder: Path, tensors: dict[str, torch.Tensor], k: int | None = 2) -> Release:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / "layer3.sae.pt")
    if k is not None:
        (folder / "config.json").write_text(json.dumps({"k": k}))
    return open_release(str(folder))


def test_golden_vectors(tmp_path: Path) -> None:
    """b_dec is not subtracted before encoding, negative values never fire, a tie goes to the lower index, b_dec is added in decoding."""
    sae = release(tmp_path / "g", GOLDEN).load(3)
    x = torch.tensor([[2.0, 1.0], [-3.0, -1.0], [1.0, 1.5]])
    acts = sae.activations(x)
    # x0: pre = 2.5, 1, -2, 2.5 -> features 0 and 3; x1: pre = -2.5, -1, 3, -2.5 -> 2 alone; x2: pre = 1.5, 1.5, -1, 1.5 -> 0 and 1
    assert acts.tolist() == [[2.5, 0.0, 0.0, 2.5], [0.0, 0.0, 3.0, 0.0], [1.5, 1.5, 0.0, 0.0]]
    assert sae.decode(acts).tolist() == [[13.75, 21.25], [7.0, 20.0], [11.5, 21.5]]


def test_a_release_names_its_layers_k_and_place(release_dir: Path) -> None:
    found = open_release(str(release_dir))
    assert (found.format, found.name, sorted(found.files)) == ("qwen-scope", "SAE-Res-Tiny-W256-L0_6", [0, 1, 2, 3])
    sae = found.load(2)
    assert (sae.k, sae.d_sae, sae.d_model, sae.activation) == (6, 256, 32, "topk")
    assert found.choose("1-2,0") == [0, 1, 2]
    assert open_release(str(release_dir / "layer1.sae.pt")).choose("all") == [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_float_type_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    sae = release(tmp_path / "r", {name: tensor.to(dtype) for name, tensor in sae_tensors(3, 8, 32).items()}).load(3)
    assert sae.W_enc.dtype == dtype
    assert sae.encoder_tensors()[0].dtype == torch.float32


def test_identity_is_that_of_the_tensors(tmp_path: Path) -> None:
    tensors = sae_tensors(3, 8, 32)
    first = release(tmp_path / "a", tensors).load(3)
    half = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    as_half, as_float = (
        release(tmp_path / "b", half).load(3),
        release(tmp_path / "c", {n: t.float() for n, t in half.items()}).load(3),
    )
    assert as_half.sha256() == as_float.sha256() != first.sha256()
    changed = {**tensors, "W_dec": tensors["W_dec"].clone()}
    changed["W_dec"][0, 0] += 1e-3
    assert release(tmp_path / "d", changed).load(3).sha256() != first.sha256()
    assert (
        lens(tmp_path / "e", tensors, architecture="topk", k=2, apply_b_dec_to_input=False).load(3).sha256()
        == first.sha256()
    )


def lens(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Release:
    """The same tensors as SAELens stores them, v6."""
    folder.mkdir(parents=True, exist_ok=True)
    turned = {name: tensor.T.contiguous() if name.startswith("W_") else tensor for name, tensor in tensors.items()}
    save_file(turned, folder / "sae_weights.safetensors")
    metadata = {"hook_name": config.pop("hook_name", "blocks.3.hook_resid_post"), "model_name": "m"}
    (folder / "cfg.json").write_text(
        json.dumps({"architecture": "topk", "normalize_activations": "none", **config, "metadata": metadata})
    )
    return open_release(str(folder))


def test_sae_lens_directories_are_read(tmp_path: Path) -> None:
    tensors, x = sae_tensors(3, 8, 32), torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    pre = x @ tensors["W_enc"].T + tensors["b_enc"]
    centred = (x - tensors["b_dec"]) @ tensors["W_enc"].T + tensors["b_enc"]
    threshold = torch.full((32,), 0.5)

    relu = lens(tmp_path / "standard", tensors, architecture="standard", apply_b_dec_to_input=True).load(3)
    torch.testing.assert_close(relu.activations(x), centred.relu(), rtol=1e-4, atol=1e-5)
    jump = lens(
        tmp_path / "jump", {**tensors, "threshold": threshold}, architecture="jumprelu", apply_b_dec_to_input=False
    ).load(3)
    torch.testing.assert_close(jump.activations(x), pre * (pre > 0.5), rtol=1e-4, atol=1e-5)
    batch = lens(
        tmp_path / "batch",
        {**tensors, "topk_threshold": torch.tensor(0.5)},
        architecture="batchtopk",
        apply_b_dec_to_input=False,
    )
    torch.testing.assert_close(batch.load(3).activations(x), pre * (pre > 0.5), rtol=1e-4, atol=1e-5)
    old = lens(
        tmp_path / "old",
        tensors,
        architecture="standard",
        activation_fn_str="topk",
        activation_fn_kwargs={"k": 2},
        apply_b_dec_to_input=False,
    )
    assert (old.load(3).activation, old.load(3).k) == ("topk", 2)


def test_a_release_of_several_sae_lens_directories(tmp_path: Path) -> None:
    for layer in (1, 4):
        lens(
            tmp_path / "rel" / f"layer_{layer}",
            sae_tensors(layer, 8, 32),
            k=2,
            hook_name=f"blocks.{layer}.hook_resid_post",
        )
    found = open_release(str(tmp_path / "rel"))
    assert (found.format, sorted(found.files)) == ("saelens", [1, 4])
    assert found.load(4).layer == 4


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architecture": "temporal"}, "architecture 'temporal' is not read"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations = 'layer_norm' is not read"),
        ({"hook_name": "blocks.3.attn.hook_z"}, "is not the residual stream after a block"),
        ({"architecture": "topk", "k": None}, "needs a whole number k"),
        ({"architecture": "jumprelu"}, "has no tensor 'threshold'"),
        ({"architecture": "topk", "k": 33}, "k = 33, but it must lie between 1 and d_sae = 32"),
    ],
)
def test_sae_lens_options_that_are_not_read_are_named(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        lens(tmp_path / "x", sae_tensors(3, 8, 32), **{"k": 2, **config}).load(3)


Tensors = dict[str, torch.Tensor]


def changed(**changes: Callable[[torch.Tensor], Any] | None) -> Callable[[Tensors], dict[str, Any]]:
    """The tensors with some of them changed, or left out where the change is None."""
    return lambda tensors: {
        n: changes[n](t) if changes.get(n) else t for n, t in tensors.items() if changes.get(n, True) is not None
    }  # type: ignore[misc]


def spoilt(at: tuple[int, ...], value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor[at] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            changed(W_enc=lambda t: t.T.contiguous()),
            r"W_enc has shape \(8, 32\), expected \(d_sae, d_model\) = \(32, 8\): it is transposed",
        ),
        (
            changed(W_dec=lambda t: t.T.contiguous()),
            r"W_dec has shape \(32, 8\), expected \(d_model, d_sae\) = \(8, 32\): it is transposed",
        ),
        (changed(W_enc=lambda t: t[:30]), r"W_enc has shape \(30, 8\), but the biases say"),
        (changed(b_enc=lambda t: t[None]), "b_enc has shape .* a bias has one dimension"),
        (changed(W_enc=spoilt((3, 4), float("nan"))), "W_enc holds NaN"),
        (changed(b_dec=spoilt((1,), float("inf"))), "b_dec holds infinity"),
        (changed(b_enc=lambda t: t.int()), "b_enc is int32; an SAE's tensors are float32"),
        (changed(W_dec=None), "has no tensor 'W_dec'; it holds W_enc"),
        (lambda tensors: list(tensors.values()), "holds a list, not a dictionary of tensors"),
        (lambda tensors: {**tensors, "extra": "text"}, "holds a dict, not a dictionary of tensors"),
    ],
)
def test_wrong_tensors_are_named(tmp_path: Path, change: Callable[[Tensors], Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        release(tmp_path / "r", change(sae_tensors(3, 8, 32))).load(3)


class Bomb:
    """A pickle that would leave a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_holds_code_is_refused_and_not_run(tmp_path: Path, legacy: bool) -> None:
    found, trace = release(tmp_path / "r", sae_tensors(3, 8, 32)), tmp_path / "trace"
    torch.save({"W_enc": Bomb(trace)}, tmp_path / "r" / "layer3.sae.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        InputError, match=r"is a bare pickle, which can hold code" if legacy else r"holds code \((posix|os)\.system\)"
    ):
        found.load(3)
    assert not trace.exists()


def _zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(64 << 20))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "is a Git LFS pointer"),
        (lambda path: path.write_bytes(b"<!DOCTYPE html><html>404</html>"), "is a web page"),
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "is cut short or damaged"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "is a bare pickle"),
        (lambda path: path.write_bytes(os.urandom(500)), "is no PyTorch archive"),
        (_zip_bomb, "would unpack from .* to .* bytes"),
    ],
    ids=["empty", "lfs", "html", "truncated", "pickle", "noise", "zip bomb"],
)
def test_what_is_no_sae_file_is_told_apart(tmp_path: Path, spoil: Callable[[Path], object], words: str) -> None:
    found = release(tmp_path / "r", sae_tensors(3, 8, 32))
    spoil(tmp_path / "r" / "layer3.sae.pt")
    with pytest.raises(InputError, match=words):
        found.load(3)


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("plain", None, "k of plain is unknown"),
        ("SAE-Res-X-W32-L0_5", {"k": 6}, "says k = 5, its config.json k = 6"),
        ("plain", {"k": "many"}, "k is a whole number"),
        ("SAE-Res-X-W32-L0_33", None, "k = 33, but it must lie between 1 and d_sae = 32"),
    ],
)
def test_k_must_be_known_and_possible(tmp_path: Path, name: str, config: dict[str, Any] | None, words: str) -> None:
    found = release(tmp_path / name, sae_tensors(3, 8, 32), k=None)
    if config is not None:
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        found = open_release(str(tmp_path / name))
    with pytest.raises(InputError, match=words):
        found.load(3)


def test_what_is_no_release_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no SAE that is read"):
        open_release(str(tmp_path))
    for source in ("nowhere", "./nowhere/at/all", "../../no/such/thing", "no/../such"):
        with pytest.raises(InputError, match="there is no SAE directory"):
            open_release(source)


def test_layers_are_written_as_people_write_them(tmp_path: Path) -> None:
    assert parse_layers("0,3-5,4") == [0, 3, 4, 5]
    for text in ("", "x", "3-", "-3", "5-3", "1,,2"):
        with pytest.raises(InputError, match="--layers"):
            parse_layers(text)
    found = open_release(str(make_release(tmp_path / "L0_2", 6, 8, 32, 2)))
    with pytest.raises(InputError, match="has no SAE of layer 6; it has 0-5"):
        found.choose("4-6")


def test_what_changes_the_encoder_changes_the_identity(tmp_path: Path) -> None:
    folder = make_release(tmp_path / "SAE-Res-X-W256-L0_6", n_layers=1, d_model=8, d_sae=256, k=6)
    sae = open_release(str(folder)).load(0)
    others = [replace(sae, subtract_b_dec=True), replace(sae, rescale_by_decoder_norm=True)]
    assert len({sae.sha256(), *(other.sha256() for other in others)}) == 3


def test_an_sae_of_more_features_than_keys_hold_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same code at a limit that fits into memory."""
    monkeypatch.setattr("indexer.saes.sae.MOST_FEATURES", 100)
    folder = make_release(tmp_path / "SAE-Res-X-W256-L0_6", n_layers=1, d_model=8, d_sae=256, k=6)
    with pytest.raises(InputError, match=r"layer0.sae.pt: 256 features; Scopebase stores SAEs of up to 100"):
        open_release(str(folder)).load(0)
