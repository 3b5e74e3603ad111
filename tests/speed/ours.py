"""Scopebase: token ids in, durable index out (forward rows, tokens, postings, profiles, ledger, and the tidying after a run)."""

from tests.speed.harness import folder_bytes, fresh, pin, serve

pin()

import argparse  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)

import scopebase  # noqa: E402, F401
from indexer.config import IndexConfig  # noqa: E402
from indexer.engine import Engine  # noqa: E402
from indexer.prepare import CPU_BATCH_TOKENS, Plan  # noqa: E402
from indexer.progress import Silent  # noqa: E402
from indexer.run import register, report, tidy  # noqa: E402
from indexer.saes import open_release  # noqa: E402
from indexer.subject import Described  # noqa: E402
from schema.home import make_home  # noqa: E402
from schema.recipe import Recipe  # noqa: E402
from schema.records import Tokens  # noqa: E402
from schema.settings import Settings  # noqa: E402
from tests.speed import assets  # noqa: E402
from tests.speed.feeding import FeedingWorker, survey_of  # noqa: E402

parser = argparse.ArgumentParser()
parser.add_argument("--width", default="8k")
parser.add_argument("--layers", default="all")
parser.add_argument("--docs", type=int, default=64)
parser.add_argument("--documents", action="store_true", help="whole documents, borders kept, instead of joined rows")
args = parser.parse_args()

model = Described(str(assets.ASSETS / "model"))
release = open_release(str(assets.release(args.width)))
cards = []
for layer in assets.layers(args.layers):
    sae = release.load(layer)
    cards.append(release.card(sae, sae.sha256()))
recipe = Recipe(mask="none", tokenizer_sha256=model.card.tokenizer_sha256)
config = IndexConfig(model.source, release.source, (("bench", "token ids"),))
plan = Plan(config, model, release, "bench", cards, torch.device("cpu"), torch.float32, CPU_BATCH_TOKENS, recipe, [])
engine = Engine(plan, Silent())
engine.encoders({card.layer: card.sha256 for card in cards})
_ = engine.subject  # loading is outside the timing

texts = assets.documents(args.docs) if args.documents else list(assets.rows(args.docs))
none = [np.zeros(len(ids), np.int32) for ids in texts]
tokens = [
    Tokens(i, ids.numpy().astype(np.int32), none[i], none[i], np.ones(len(ids), bool)) for i, ids in enumerate(texts)
]
found = survey_of("bench", [len(ids) for ids in texts], CPU_BATCH_TOKENS)


def run() -> dict[str, Any]:
    folder = fresh("ours")
    home = make_home(Settings.read(folder, {}))
    made, _finished = register(home, model.card, "bench", cards, found, recipe, CPU_BATCH_TOKENS, {})
    FeedingWorker(home, engine, made, found, tokens).work()
    tidy(home)
    counts = report(home, made.id, already=False)
    sizes = {name: folder_bytes(folder / "store" / f"{name}.lance" / "data") for name in ("forward", "postings")}
    home.close()
    return {
        "tokens": counts.n_tokens,
        "activations": counts.n_activations,
        "bytes": sizes["forward"],
        "postings": sizes["postings"],
    }


if __name__ == "__main__":
    serve(run)
