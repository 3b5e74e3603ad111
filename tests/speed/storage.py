"""Bytes an activation on disk: of invented activations at d_sae 32,768, and of real ones where models and packs lie beside the checkout."""

from __future__ import annotations

import argparse
from pathlib import Path

from schema.home import Home
from schema.settings import Settings
from schema.tables import Run
from tests.speed import synthetic
from tests.speed.harness import FOLDER, Table, folder_bytes, fresh

SHARED = Path(__file__).parents[3] / "shared"
PACKS = ("gsm8k", "mmlu", "humaneval")


def measure(args: argparse.Namespace) -> list[Table]:
    """Forward rows (float16 values, all token detail), postings, tokens and profiles."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    table = Table("Bytes an activation on disk", ["index", "activations", "forward", "postings", "tokens", "profiles"])
    table.rows.append(
        _row("invented, d_sae 32,768, k 50, 4 x 2,000 samples", synthetic.make(fresh("storage"), 4, 2_000))
    )
    for release, k in (("SAE-Res-TinyStories-3M-W3K-L0_8", 8), ("SAE-Res-TinyStories-3M-W3K-L0_32", 32)):
        if not (SHARED / "models" / "saes" / release).exists():
            table.note = "Real activations were not measured: there are no packs beside this checkout."
            break
        table.rows.append(
            _row(f"real, tinystories-3m, 6 layers, d_sae 3,072, k {k}, {len(PACKS)} benchmarks", _real(release))
        )
    return [table]


def _real(release: str) -> Home:
    from indexer.config import IndexConfig
    from indexer.run import index
    from schema.home import open_home

    settings = Settings.read(fresh(f"storage-{release}"), {})
    datasets = tuple((name, str(SHARED / "data" / "benchmarks" / f"{name}.jsonl.gz")) for name in PACKS)
    index(
        IndexConfig(str(SHARED / "models" / "tinystories-3m"), str(SHARED / "models" / "saes" / release), datasets),
        settings,
    )
    return open_home(settings)


def _row(name: str, home: Home) -> list[str]:
    with home.database.reading() as session:
        activations = sum(run.counts["activations"] for run in session.query(Run))
    store = Path(home.store.url)
    home.close()
    live = {}
    for table in ("forward", "postings", "tokens", "profiles"):
        named = {file.path for f in home.store.latest(table).get_fragments() for file in f.metadata.files}
        live[table] = sum((store / f"{table}.lance" / "data" / path).stat().st_size for path in named)
    assert live["forward"] <= folder_bytes(store)
    return [
        name,
        f"{activations:,}",
        *(f"{live[t] / activations:.2f}" for t in ("forward", "postings", "tokens", "profiles")),
    ]
