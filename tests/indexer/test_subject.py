"""The residual stream of each family against one sample at a time, read by an independent hook."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from indexer.subject import Described, choose_device, choose_dtype, find_blocks
from schema.errors import InputError
from tests.making import make_model, make_tokenizer

BASE = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 256,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
LINEAR = {
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
}
GPT2 = {"vocab_size": 400, "n_embd": 32, "n_layer": 4, "n_head": 2, "n_positions": 256}
NEOX = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}

FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", BASE),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", {**BASE, **MOE}),
    "qwen3_5": ("Qwen3_5TextConfig", "Qwen3_5ForCausalLM", {**BASE, **LINEAR}),
    "qwen3_5_moe": (
        "Qwen3_5MoeTextConfig",
        "Qwen3_5MoeForCausalLM",
        {**BASE, **LINEAR, **MOE, "shared_expert_intermediate_size": 32},
    ),
    "llama": ("LlamaConfig", "LlamaForCausalLM", BASE),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {**BASE, "sliding_window": 8}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {**BASE, "sliding_window": 8}),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", NEOX),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", GPT2),
}


def saved(family: str, folder: Path) -> Path:
    config, model, shape = FAMILIES[family]
    torch.manual_seed(0)
    made = getattr(transformers, model)(
        getattr(transformers, config)(**shape, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    )
    made.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def one_by_one(folder: Path, sequences: list[torch.Tensor]) -> dict[int, list[torch.Tensor]]:
    """Residuals after each block, each sequence alone and unpadded, by hooks of our own on a model loaded anew."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found: dict[int, list[torch.Tensor]] = {}
    for layer, block in enumerate(find_blocks(model)[1]):
        block.register_forward_hook(
            lambda _m, _i, out, layer=layer: found.setdefault(layer, []).append(
                (out[0] if isinstance(out, tuple) else out)[0].clone()
            )
        )
    with torch.no_grad():
        for sequence in sequences:
            out = model(input_ids=sequence[None], use_cache=False, output_hidden_states=True)
            for layer, state in enumerate(out.hidden_states[1:-1]):  # the last one is normalised
                torch.testing.assert_close(found[layer][-1], state[0])
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_batches_read_what_single_samples_read(family: str, tmp_path: Path) -> None:
    folder = saved(family, tmp_path / family)
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randint(2, 400, (n,), generator=generator) for n in (3, 11, 12, 30)]
    reference = one_by_one(folder, sequences)
    described = Described(str(folder))
    assert (described.card.n_layers, described.card.d_model) == (4, 32)
    subject = described.load(3, torch.device("cpu"), torch.float32)
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    got: dict[int, torch.Tensor] = {}
    for wanted in ([0, 1, 2, 3], [1], [3]):
        got.clear()
        subject.read(
            ids, {layer: lambda residual, layer=layer: got.__setitem__(layer, residual.clone()) for layer in wanted}
        )
        assert sorted(got) == wanted
        for layer in wanted:
            for row, alone in enumerate(reference[layer]):
                torch.testing.assert_close(got[layer][row, : len(alone)], alone, rtol=1e-4, atol=1e-5)


def test_the_text_model_inside_a_multimodal_checkpoint(tmp_path: Path) -> None:
    """Qwen3.5 checkpoints are multimodal; their blocks lie at model.language_model.layers."""
    config = transformers.Qwen3_5Config(
        text_config={**BASE, **LINEAR, "bos_token_id": 0, "eos_token_id": 1},
        vision_config={"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32},
    )
    torch.manual_seed(0)
    whole = transformers.Qwen3_5ForConditionalGeneration(config)
    assert len(find_blocks(whole)[1]) == 4
    whole.save_pretrained(tmp_path / "vlm")
    make_tokenizer().save_pretrained(tmp_path / "vlm")
    described = Described(str(tmp_path / "vlm"))
    assert (described.card.family, described.card.d_model) == ("qwen3_5_text", 32)
    subject = described.load(2, torch.device("cpu"), torch.float32)
    ids = torch.randint(2, 400, (1, 9), generator=torch.Generator().manual_seed(0))
    ours, theirs = [], []
    subject.read(ids, {2: lambda residual: ours.append(residual.clone())})
    whole.eval().model.language_model.layers[2].register_forward_hook(lambda _m, _i, out: theirs.append(out))
    with torch.no_grad():
        whole(input_ids=ids, use_cache=False)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-5)


def test_the_model_is_left_after_the_deepest_block(model_dir: Path) -> None:
    subject = Described(str(model_dir)).load(3, torch.device("cpu"), torch.float32)
    ran = []
    for layer, block in enumerate(subject._decoder.layers):  # type: ignore[union-attr, arg-type]
        block.register_forward_pre_hook(lambda _m, _i, layer=layer: ran.append(layer))
    subject.read(torch.tensor([[1, 2, 3]]), {1: lambda _residual: None})
    assert ran == [0, 1]


def test_blocks_beyond_the_deepest_are_not_kept(model_dir: Path) -> None:
    subject = Described(str(model_dir)).load(1, torch.device("cpu"), torch.float32)
    kinds = [type(block).__name__ for block in subject._decoder.layers]  # type: ignore[union-attr, arg-type]
    assert kinds == ["Qwen3DecoderLayer", "Qwen3DecoderLayer", "Identity", "Identity"]


def test_a_models_identity_follows_its_weights(model_dir: Path, tmp_path: Path) -> None:
    first, again = Described(str(model_dir)).card, Described(str(model_dir)).card
    assert first == again
    other = Described(str(make_model(tmp_path / "tiny-qwen3", seed=1))).card
    assert (other.name, other.tokenizer_sha256) == (first.name, first.tokenizer_sha256)
    assert other.revision != first.revision


def _no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json of model .* cannot be read"),
        (lambda folder: (folder / "config.json").write_text(json.dumps({"model_type": "no_such"})), "cannot be read"),
        (_no_tokenizer, "has no tokenizer; save one beside it"),
        (_no_weights, "cannot be loaded"),
    ],
    ids=["no config", "broken config", "unknown family", "no tokenizer", "no weights"],
)
def test_a_broken_model_directory_is_named(tmp_path: Path, spoil: Any, words: str) -> None:
    folder = make_model(tmp_path / "m")
    spoil(folder)
    with pytest.raises(InputError, match=words):
        Described(str(folder)).load(3, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("source", ["./nowhere", "nowhere", "/no/such/dir", "a/b/c"])
def test_a_missing_model_is_refused_without_asking_the_hub(source: str) -> None:
    with pytest.raises(InputError, match="there is no model directory"):
        Described(source)


def test_devices_and_types(model_dir: Path) -> None:
    cpu, config = torch.device("cpu"), Described(str(model_dir)).config
    assert choose_device("cpu") == cpu
    assert choose_dtype("auto", cpu, config) == torch.float32
    assert choose_dtype("bfloat16", cpu, config) == torch.bfloat16
    for call in (
        lambda: choose_device("cuda:99"),
        lambda: choose_device("toaster"),
        lambda: choose_dtype("int8", cpu, config),
    ):
        with pytest.raises(InputError):
            call()
