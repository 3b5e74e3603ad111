"""Peak memory of the indexer, whole (rows read, model, SAEs, stores), against the number of samples."""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

from tests.making import WORDS, make_model, make_release
from tests.speed.harness import FOLDER, Table, fresh

SIZES = (1_000, 10_000, 100_000)
SCRIPT = """
import re, sys, scopebase
from indexer.config import IndexConfig
from indexer.run import index
from schema.settings import Settings
home, model, sae, data = sys.argv[1:]
report = index(IndexConfig(model, sae, (("d", data),), layers="1"), Settings.read(home, {}))[0]
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])  # rusage would count the parent's too
print(peak // 1024, report.n_tokens, report.n_activations)
"""


def measure(args: argparse.Namespace) -> list[Table]:
    """1,000 to 100,000 samples through a small model and one SAE, a process each."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    folder = fresh("memory")
    model = make_model(folder / "tiny-qwen3")
    release = make_release(folder / "SAE-Res-Tiny-W4096-L0_16", 2, 32, 4096, 16)
    table = Table("Peak memory of `scopebase index`", ["samples", "tokens", "activations", "peak MB"])
    for n in SIZES:
        data = folder / f"{n}.jsonl"
        rng = random.Random(n)
        with data.open("w") as file:
            for i in range(n):
                file.write(
                    json.dumps({"id": f"row-{i}", "text": " ".join(rng.choices(WORDS, k=rng.randint(5, 40)))}) + "\n"
                )
        command = [sys.executable, "-c", SCRIPT, str(folder / f"home-{n}"), str(model), str(release), str(data)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
        peak, tokens, activations = map(int, done.stdout.split())
        table.rows.append([f"{n:,}", f"{tokens:,}", f"{activations:,}", f"{peak:,}"])
    return [table]
