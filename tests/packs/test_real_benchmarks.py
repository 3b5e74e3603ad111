"""Real benchmarks through a real model and its trained SAEs, against an independent computation and truths known beforehand.

Runs where the packs are: `SCOPEBASE_PACKS`, or `../shared` beside the checkout. `SCOPEBASE_PACK_ROWS` takes more rows of each (0: all),
`SCOPEBASE_PACK_MODEL` and `SCOPEBASE_PACK_SAES` another model.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from api.services.diff import diff
from api.services.library import Library
from api.services.overlap import overlap
from api.services.redundancy import redundancies
from indexer.config import IndexConfig
from indexer.run import index
from schema.home import open_home
from schema.layout import sample_key
from schema.records import Pool
from schema.settings import Settings
from schema.tables import RunSae, Sae
from tests.indexer.reference import reference
from tests.making import write_jsonl

PACKS = Path(os.environ.get("SCOPEBASE_PACKS", Path(__file__).parents[3] / "shared"))
MODEL = PACKS / "models" / os.environ.get("SCOPEBASE_PACK_MODEL", "tinystories-260k")
SAES = PACKS / "models" / "saes" / os.environ.get("SCOPEBASE_PACK_SAES", "SAE-Res-TinyStories-260K-W1K-L0_16")
ROWS = int(os.environ.get("SCOPEBASE_PACK_ROWS", "12"))
BENCHMARKS = [
    "gsm8k",
    "svamp",
    "asdiv",
    "mgsm",
    "cmath",
    "mmlu",
    "arc_easy",
    "boolq",
    "humaneval",
    "mbpp",
    "truthfulqa",
]

pytestmark = pytest.mark.skipif(
    not (PACKS / "data" / "benchmarks").is_dir(),
    reason=f"no benchmark packs at {PACKS}: set SCOPEBASE_PACKS to check real benchmarks",
)


def rows_of(name: str, limit: int = 0) -> list[dict[str, Any]]:
    with gzip.open(PACKS / "data" / "benchmarks" / f"{name}.jsonl.gz", "rt") as file:
        found = [json.loads(line) for line in file]
    return found[:limit] if limit else found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Eleven benchmarks, and three whose relation is known: math500 lies in math, English MGSM lies in GSM8K."""
    found = {name: rows_of(name, ROWS) for name in BENCHMARKS}
    found["math500"] = rows_of("math500", ROWS)
    known = {row["text"] for row in found["math500"]}
    every = rows_of("math")
    found["math"] = [r for r in every if r["text"] in known] + [r for r in every if r["text"] not in known][
        : ROWS or None
    ]
    english = [row["text"] for row in rows_of("mgsm") if row["language"] == "en"]
    gsm8k = rows_of("gsm8k")
    shared = [row for row in gsm8k if row["text"] in english]
    assert len(shared) > 20
    found["mgsm_en"] = shared[: ROWS or None]
    found["gsm8k_with"] = found["mgsm_en"] + [row for row in gsm8k if row not in shared][: ROWS or None]
    return found


@pytest.fixture(scope="module")
def settings(data: dict[str, list[dict[str, Any]]], tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("packs")
    datasets = tuple((name, str(write_jsonl(folder / f"{name}.jsonl", rows))) for name, rows in data.items())
    made = Settings.read(folder / "home", {})
    reports = index(IndexConfig(str(MODEL), str(SAES), datasets), made)
    assert [report.n_samples for report in reports] == [len(rows) for rows in data.values()]
    return made


@pytest.fixture(scope="module")
def library(settings: Settings) -> Iterator[Library]:
    home = open_home(settings)
    yield Library(home)
    home.close()


def test_counts_equal_one_sample_at_a_time_in_float32(
    settings: Settings, record_property: Any, data: dict[str, list[dict[str, Any]]]
) -> None:
    home = open_home(settings)
    with home.database.reading() as session:
        pairs = {
            (p.run.dataset.name, p.sae.layer): (p.id, p.sae.k, p.run.recipe["max_tokens"])
            for p in session.query(RunSae)
        }
    layers = sorted({layer for _, layer in pairs})
    assert layers == list(range(len(list(SAES.glob("layer*.sae.pt")))))
    differing = total = 0
    for name, rows in data.items():
        _, k, max_tokens = pairs[name, 0]
        expected = reference(MODEL, SAES, layers, [row["text"] for row in rows], k, max_tokens=max_tokens)
        for layer, want in expected.items():
            row = home.store.rows("profiles", [sample_key(pairs[name, layer][0])])
            got = {
                column: np.array(row.column(column)[0].as_py()) for column in ("samples_any", "samples_last", "tokens")
            }
            counts = {
                "samples_any": (want.any > 0).sum(0),
                "samples_last": (want.last > 0).sum(0),
                "tokens": want.tokens,
            }
            for column, each in counts.items():
                fires = (each > 0) | (got[column] > 0)
                differing += int((got[column] != each).sum())
                total += int(fires.sum())
    record_property("differing", f"{differing} of {total}")
    assert differing / total < 1e-3, f"{differing} of {total} counts differ"


@pytest.fixture(scope="module")
def sae(settings: Settings) -> str:
    """The middle layer's SAE."""
    with open_home(settings).database.reading() as session:
        return session.query(Sae).filter(Sae.layer == 2).one().name


@pytest.mark.parametrize("pool", ["any", "last"])
@pytest.mark.parametrize(("part", "whole"), [("math500", "math"), ("mgsm_en", "gsm8k_with")])
def test_a_benchmark_covers_what_its_part_covers(library: Library, sae: str, part: str, whole: str, pool: Pool) -> None:
    answer = overlap(library, sae, [part, whole], pool)
    assert answer.overlap[0][1] == 1.0
    assert diff(library, sae, part, whole, pool, samples=0).total == 0
    beyond = answer.datasets[1].n_features - answer.shared[0][1]
    assert diff(library, sae, whole, part, pool, samples=0).total == beyond
    assert beyond > 0 or pool == "any"


def test_like_benchmarks_overlap_more_than_unlike_ones(library: Library, sae: str) -> None:
    """Word problems (GSM8K, SVAMP) against code (HumanEval), at equal numbers of samples."""
    answer = overlap(library, sae, ["gsm8k", "svamp", "humaneval"], "last")
    assert answer.rarefied[1][0] > answer.rarefied[2][0]  # type: ignore[operator]


def test_all_at_once_answer(library: Library, sae: str, data: dict[str, list[dict[str, Any]]]) -> None:
    everything = redundancies(library, sae, [*data])
    assert all(0 <= item.redundancy <= 1 for item in everything.data)
