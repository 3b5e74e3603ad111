"""Generation with vLLM beside the torch engine: what steering costs, and what the batch gains. In the environment that has vLLM:

    python -m tests.speed.vllm [--model DIRECTORY] [--batches 1,8,32] [--rounds 5]

Not a part of `make bench`, whose environment has no vLLM. Any model that both engines load will do; its SAE is a random one.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

import scopebase  # noqa: F401
from indexer.encoder import make_encoder
from indexer.live import Loaded
from indexer.subject import Described, choose_device, choose_dtype
from schema.generation import Choice
from scopebase.cli.worker import SWITCH_SECONDS
from steering.engine import Limits
from steering.generator import EngineGenerator, TorchGenerator
from steering.vllm.generator import VllmGenerator
from steering.vllm.start import load_vllm, start_vllm
from tests.making import make_model
from tests.speed.harness import FOLDER, Table
from tests.steering.asking import ask, greedy, name_of, prompts, random_sae, steer

LIMITS = Limits(rows=64, columns=1 << 40)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a random one of 8 M parameters unless given")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    sys.setswitchinterval(SWITCH_SECONDS)  # as the service does
    kind = load_vllm()
    described = Described(str(args.model or random_model()))
    device = choose_device(kind)
    dtype = choose_dtype("auto", device, described.config)
    sae = random_sae(described.card.n_layers // 2, described.card.d_model, d_sae=4096, k=32)
    encoder, home = make_encoder(sae, device), Any
    shown = str(dtype).removeprefix("torch.")

    class Vllm(VllmGenerator):
        def encoder(self, name: str) -> Any:
            return encoder

    class Torch(TorchGenerator):
        def encoder(self, name: str) -> Any:
            return encoder

    llm = start_vllm(described, device, dtype, LIMITS)
    subject = described.load(0, device, dtype, whole=True)
    engines: dict[str, EngineGenerator] = {
        "vllm": Vllm(home, described.card.name, described, llm, shown, LIMITS),  # type: ignore[arg-type]
        "torch": Torch(home, described, Loaded(described.card.name, subject, shown), limits=LIMITS),  # type: ignore[arg-type]
    }
    table = Table(
        f"{described.card.name}, {shown} on {device}: tokens a second of {'CPU' if kind == 'cpu' else 'wall'} time, {args.tokens} each",
        [
            "engine",
            "batch",
            "unsteered",
            "add, residual norm",
            "set a feature",
            f"steered / unsteered ({name_of(sae)})",
        ],
        note="Median of the rounds; ratios paired within a round. Each row of the batch has a feature of its own.",
    )
    for batch in map(int, args.batches.split(",")):
        for name, generator in engines.items():
            table.rows.append([name, str(batch), *measure(generator, sae, batch, args)])
    print(
        f"# {platform.processor() or platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    print(table.markdown())
    for generator in engines.values():
        generator.close(1)


def random_model() -> Path:
    folder = FOLDER / "assets" / "random-8m"
    if not folder.exists():
        shape = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 4}
        make_model(folder, num_key_value_heads=2, head_dim=64, max_position_embeddings=1024, **shape)
    return folder


def measure(generator: EngineGenerator, sae: Any, batch: int, args: argparse.Namespace) -> list[str]:
    """Tokens a second without steering and in two modes, and the ratios."""
    speeds: dict[str, list[float]] = {"": [], "add": [], "set": []}
    # other people's work shares a CPU, and a GPU's is not the process's
    clock = time.process_time if generator._device.type == "cpu" else time.perf_counter
    for number in range(args.rounds + 1):
        for mode in list(speeds) if number % 2 else list(reversed(speeds)):
            choices = []
            for i, ids in enumerate(prompts(batch, seed=number)):
                unit, strength = ("residual_norm", 0.2) if mode == "add" else ("absolute", 2.0)
                ops = (steer(sae, i, mode, strength, unit),) if mode else ()  # type: ignore[arg-type]
                choices.append(Choice(ids, greedy(args.tokens), ops))
            begin = clock()
            heard = ask(generator, *choices).wait()  # type: ignore[arg-type]
            assert heard.failure is None, heard.failure
            if number:
                speeds[mode].append(batch * args.tokens / (clock() - begin))
    ratios = [
        statistics.median(a / b for a, b in zip(speeds[mode], speeds[""], strict=True)) for mode in ("add", "set")
    ]
    medians = [f"{statistics.median(each):,.0f}" for each in speeds.values()]
    return [*medians, " · ".join(f"{ratio:.2f}" for ratio in ratios)]


if __name__ == "__main__":
    main()
