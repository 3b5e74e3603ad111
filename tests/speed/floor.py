"""The floor: plain transformers and torch. (a) forward, (b) + the product with W_enc, (c) + torch.topk; nothing is written."""

from tests.speed.harness import pin, serve

pin()

import argparse  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
from transformers import AutoModel  # noqa: E402

from tests.speed import assets  # noqa: E402

torch.set_num_threads(1)
torch.set_grad_enabled(False)
parser = argparse.ArgumentParser()
parser.add_argument("mode", choices=["a", "b", "c"])
parser.add_argument("--width", default="8k")
parser.add_argument("--layers", default="all")
parser.add_argument("--docs", type=int, default=64)
parser.add_argument("--padded", action="store_true", help="documents in corpus order, batches of 16, padded")
args = parser.parse_args()

model = AutoModel.from_pretrained(assets.ASSETS / "model", dtype=torch.float32).eval()
wanted = assets.layers(args.layers)
saes = (
    {layer: torch.load(assets.release(args.width) / f"layer{layer}.sae.pt") for layer in wanted}
    if args.mode != "a"
    else {}
)
seen: dict[int, torch.Tensor] = {}
for layer in wanted:
    model.layers[layer].register_forward_hook(
        lambda _m, _i, out, layer=layer: seen.__setitem__(layer, out[0] if isinstance(out, tuple) else out)
    )


def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    if not args.padded:
        for batch in assets.rows(args.docs).split(16):
            yield batch, None
        return
    documents = assets.documents(args.docs)
    for first in range(0, len(documents), 16):
        group = documents[first : first + 16]
        ids = torch.nn.utils.rnn.pad_sequence(group, batch_first=True)
        lengths = torch.tensor([len(d) for d in group])
        yield ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()


def run() -> dict[str, Any]:
    tokens = activations = 0
    for ids, mask in batches():
        model(input_ids=ids, attention_mask=mask, use_cache=False)
        tokens += ids.numel() if mask is None else int(mask.sum())
        for layer, sae in saes.items():
            residual = seen[layer].reshape(-1, assets.WIDTH)
            pre = torch.nn.functional.linear(residual, sae["W_enc"], sae["b_enc"])
            if args.mode == "c":
                activations += torch.topk(pre, assets.K, dim=1).values.numel()
    return {"tokens": tokens, "activations": activations}


serve(run)
