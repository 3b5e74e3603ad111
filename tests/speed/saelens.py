"""SAELens: SAETransformerBridge over the Hugging Face model, SAE.encode, nonzero, torch.save; rows of 128 tokens, batches of 16."""

from tests.speed.harness import folder_bytes, fresh, pin, serve

pin()

import argparse  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
from sae_lens import TopKSAE, TopKSAEConfig  # noqa: E402
from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge  # noqa: E402
from sae_lens.saes.sae import SAEMetadata  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from tests.speed import assets  # noqa: E402

torch.set_num_threads(1)
torch.set_grad_enabled(False)
parser = argparse.ArgumentParser()
parser.add_argument("--width", default="8k")
parser.add_argument("--layers", default="all")
parser.add_argument("--docs", type=int, default=64)
args = parser.parse_args()


def make_sae(layer: int) -> TopKSAE:
    w = torch.load(assets.release(args.width) / f"layer{layer}.sae.pt")
    d_sae, d_in = w["W_enc"].shape
    metadata = SAEMetadata(hook_name=f"blocks.{layer}.hook_out", model_name="local")
    sae = TopKSAE(
        TopKSAEConfig(
            d_in=d_in,
            d_sae=d_sae,
            k=assets.K,
            dtype="float32",
            device="cpu",
            apply_b_dec_to_input=False,
            metadata=metadata,
        )
    )
    sae.load_state_dict(
        {
            "W_enc": w["W_enc"].T.contiguous(),
            "W_dec": w["W_dec"].T.contiguous(),
            "b_enc": w["b_enc"],
            "b_dec": w["b_dec"],
        }
    )
    return sae.eval()


folder = str(assets.ASSETS / "model")
hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
model = SAETransformerBridge.boot_transformers(
    folder, hf_model=hf, tokenizer=AutoTokenizer.from_pretrained(folder), device="cpu"
)
saes = {layer: make_sae(layer) for layer in assets.layers(args.layers)}
names = {layer: f"blocks.{layer}.hook_out" for layer in saes}


def run() -> dict[str, Any]:
    out, tokens, activations = fresh("saelens"), 0, 0
    for number, ids in enumerate(assets.rows(args.docs).split(16)):
        _, cache = model.run_with_cache(ids, names_filter=list(names.values()), stop_at_layer=max(saes) + 1)
        sparse = {}
        for layer, sae in saes.items():
            features = sae.encode(cache[names[layer]])
            where = features.nonzero()
            value = features[where[:, 0], where[:, 1], where[:, 2]]
            sparse[layer] = (where.int(), value)
            activations += value.numel()
        torch.save(sparse, out / f"{number}.pt")
        tokens += ids.numel()
    return {"tokens": tokens, "activations": activations, "bytes": folder_bytes(out)}


serve(run)
