"""A million labels: how long their import takes, and searches over them by words; with --meaning, by meaning too.

python -m tests.speed labels --meaning 1000000     # vectors of the hardest kind, in an index; recall against all of them
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tests.speed import meaning, synthetic
from tests.speed.harness import FOLDER, Table, fresh
from tests.speed.queries import timed
from tests.speed.service import Server
from tests.speed.synthetic import D_SAE, SAE_NAME

N_LABELS, TIMES = 1_000_000, 30
SUBJECTS = ["river", "apple", "court", "engine", "poem", "virus", "guitar", "tax", "planet", "recipe", "knight", "cell"]
VERBS = ["mentions of", "names of", "plural of", "questions about", "prices of", "laws on", "parts of", "jokes about"]


def measure(args: argparse.Namespace) -> list[Table]:
    """`scopebase label import` of a million lines into SQLite, search index included; then searches over HTTP."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    folder = fresh("labels")
    synthetic.make(folder, 1, 200).close()
    pack = write_pack(FOLDER / "out" / "labels.jsonl")
    begin = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "scopebase",
        "--home",
        str(folder),
        "label",
        "import",
        str(pack),
        "--sae",
        SAE_NAME,
    ]
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.perf_counter() - begin
    rng = random.Random(2)
    with Server(folder) as server:
        body = {"sae": SAE_NAME, "text": "warm river", "limit": 20}
        timed(server, "features/search", body)
        words = [f"{rng.choice(VERBS)} {rng.choice(SUBJECTS)} {rng.randint(1, 9999)}" for _ in range(TIMES)]
        took = [timed(server, "features/search", {**body, "text": text}) for text in words]
    row = [f"{N_LABELS:,}", f"{seconds:.0f}", f"{statistics.median(took):.0f}", f"{max(took):.0f}"]
    tables = [
        Table("Labels in SQLite", ["labels", "import, seconds", "search by words, median ms", "largest ms"], [row])
    ]
    return [*tables, *([meaning.measure(args.meaning)] if args.meaning else [])]


def write_pack(path: Path) -> Path:
    rng = random.Random(1)
    with path.open("w", encoding="utf-8") as file:
        for number in range(N_LABELS):
            text = f"{rng.choice(VERBS)} {rng.choice(SUBJECTS)} {rng.randint(1, 9999)}"
            file.write(json.dumps({"feature": f"{SAE_NAME}/{number % D_SAE}", "text": text, "author": "ann"}) + "\n")
    return path
