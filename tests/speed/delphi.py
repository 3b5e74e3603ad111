"""EleutherAI's delphi: LatentCache.run and save_splits over rows of 128 tokens, its own unit, SAEs by its sparsify loader."""

from tests.speed.harness import folder_bytes, fresh, pin, serve

pin()

import argparse  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
from delphi.latents.cache import LatentCache  # noqa: E402
from delphi.sparse_coders.load_sparsify import load_sparsify_hooks  # noqa: E402
from sparsify import SparseCoder, SparseCoderConfig  # noqa: E402
from transformers import AutoModel  # noqa: E402

from tests.speed import assets  # noqa: E402

torch.set_num_threads(1)
torch.set_grad_enabled(False)
parser = argparse.ArgumentParser()
parser.add_argument("--width", default="8k")
parser.add_argument("--layers", default="all")
parser.add_argument("--docs", type=int, default=64)
args = parser.parse_args()

converted = assets.ASSETS / f"sparsify-{args.width}"
points = [f"layers.{layer}" for layer in assets.layers(args.layers)]
for layer, point in zip(assets.layers(args.layers), points, strict=True):
    if not (converted / point / "cfg.json").exists():
        w = torch.load(assets.release(args.width) / f"layer{layer}.sae.pt")
        coder = SparseCoder(
            assets.WIDTH,
            SparseCoderConfig(num_latents=len(w["b_enc"]), k=assets.K, activation="topk"),
            dtype=torch.float32,
        )
        coder.encoder.weight.data.copy_(w["W_enc"])
        coder.encoder.bias.data.copy_(w["b_enc"])
        coder.W_dec.data.copy_(w["W_dec"].T)
        coder.b_dec.data.copy_(w["b_dec"])
        coder.save_to_disk(converted / point)
model = AutoModel.from_pretrained(assets.ASSETS / "model", dtype=torch.float32).eval()
hooks, transcode = load_sparsify_hooks(model, str(converted), points)
tokens = assets.rows(args.docs)
tokens = tokens[: max(16, len(tokens) // 16 * 16)]  # LatentCache drops the last incomplete batch


def run() -> dict[str, Any]:
    out = fresh("delphi")
    cache = LatentCache(model, hooks, batch_size=16, transcode=transcode)
    cache.run(tokens.numel(), tokens)
    activations = sum(v.numel() for v in cache.cache.latent_activations.values())
    cache.save_splits(n_splits=5, save_dir=out, save_tokens=True)
    return {"tokens": tokens.numel(), "activations": activations, "bytes": folder_bytes(out)}


serve(run)
