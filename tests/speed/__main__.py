"""`make bench`: measures what Scopebase promises, as ratios in one run, and prints tables for docs/benchmarks.md.

    python -m tests.speed                        # everything, about 40 minutes on two cores
    python -m tests.speed indexing --rounds 5    # one part
    python -m tests.speed indexing --peers /path/to/python   # an interpreter with sae-lens or eai-delphi installed

Each part is a module of this folder with `measure(args) -> list[Table]`.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import torch

import scopebase  # noqa: F401
from tests.speed import (
    indexing,
    labels,
    load,
    memory,
    publishing,
    queries,
    ray,
    sealing,
    service,
    start,
    steering,
    storage,
)

PARTS = {
    "indexing": indexing.measure,
    "ray": ray.measure,
    "storage": storage.measure,
    "service": service.measure,
    "start": start.measure,
    "queries": queries.measure,
    "labels": labels.measure,
    "load": load.measure,
    "memory": memory.measure,
    "publishing": publishing.measure,
    "sealing": sealing.measure,
    "steering": steering.measure,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="parts to measure; all of them unless given")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--peers", default=sys.executable, help="Python with sae-lens or eai-delphi, for the comparison"
    )
    parser.add_argument("--minutes", type=float, default=2, help="of the soak of `steering`; 30 is what is promised")
    parser.add_argument(
        "--meaning", type=int, default=0, help="so many labels searched by meaning, in the part `labels`"
    )
    parser.add_argument("--out", type=Path, default=Path("bench-results"))
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True)
    print(
        f"# {platform.processor() or platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
    )
    results = {}
    for name in args.parts or PARTS:
        begin = time.monotonic()
        tables = PARTS[name](args)
        for table in tables:
            print("\n" + table.markdown(), flush=True)
        results[name] = [table.__dict__ for table in tables]
        print(f"\n({name}: {time.monotonic() - begin:.0f} s)", flush=True)
        (args.out / f"{name}.json").write_text(json.dumps(results[name], indent=1))


if __name__ == "__main__":
    main()
