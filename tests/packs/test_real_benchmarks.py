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

from api.services.evaluations.failures import failures
from api.services.evaluations.files import parse_rows
from api.services.evaluations.performance import performance_redundancy, performance_similarity
from api.services.evaluations.preservation import rank_preservation
from api.services.evaluations.results import import_scores
from api.services.firing import scan
from api.services.library import Library
from api.services.questions.diff import diff
from api.services.questions.overlap import overlap
from api.services.questions.redundancy import redundancies
from api.services.suite.advice import advise
from api.services.suite.subset import answer_of, select_subset
from indexer.config import IndexConfig
from indexer.run import index
from schema.home import open_home
from schema.layout import sample_key
from schema.records import Pool
from schema.settings import Settings
from schema.tables import RunSae, Sae
from schema.wire.evaluations import PreservationRequest
from schema.wire.suite import SuiteRequest
from tests.indexer.reference import reference
from tests.making import write_jsonl
from tests.scoring import model_names, panel, score_rows

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


def test_advice_on_the_whole_suite(library: Library, sae: str, data: dict[str, list[dict[str, Any]]]) -> None:
    """Parts of other benchmarks add nothing, and what adds nothing goes first."""
    answer = advise(library, SuiteRequest(datasets=[*data], sae=sae, pool="last"))
    assert len(answer.data) == len(data) >= 10
    by_name = {item.dataset.name: item for item in answer.data}
    assert {(by_name[part].covered, by_name[part].n_unique) for part in ("math500", "mgsm_en")} == {(1.0, 0)}
    losses = [drop.lost for drop in answer.drops]
    n_free = sum(loss == 0 for loss in losses)
    assert n_free >= 2
    assert losses[:n_free] == [0] * n_free
    assert sum(losses) + by_name[answer.keep].dataset.n_features == answer.n_features


@pytest.mark.parametrize("pool", ["any", "last"])
def test_small_subsets_of_every_benchmark(library: Library, sae: str, data: dict[str, Any], pool: Pool) -> None:
    for name, rows in data.items():
        chosen = select_subset(library, sae, name, 0.95, pool)
        answer = answer_of(library, chosen)
        fired = np.zeros(len(chosen.worth), bool)
        for block in scan(library.store, chosen.source.pair, pool, np.array(sorted(chosen.found.ordinals))):
            fired[block.features] = True
        assert fired.sum() == answer.n_features >= 0.95 * answer.dataset.n_features
        assert answer.optimum_at_least is not None
        assert answer.optimum_at_least <= len(answer.samples) <= answer.random_n <= len(rows)


def test_invented_panels_know_nothing_of_features(library: Library, sae: str, data: dict[str, Any]) -> None:
    """Eight models of one ability each on every benchmark: features tell nothing of their rankings, and explain no failure."""
    ability = np.random.default_rng(0).normal(0.0, 1.0, 8)
    for seed, (name, rows) in enumerate(data.items()):
        for model, scores in zip(model_names(8), panel(8, len(rows), seed, ability), strict=True):
            file = parse_rows(score_rows([row["id"] for row in rows], scores), "acc", "invented")
            assert import_scores(library, name, model, "acc", [file], "test").matched_by == "id"
    answer = performance_redundancy(library, sae, [*data], pool="last", draws=50)
    assert len(answer.data) == len(data)
    assert answer.correlations["partial_spearman"].p_value > 0.01  # type: ignore[operator]
    pairs = performance_similarity(library, sae, [*data], pool="last")
    assert pairs.correlations["pearson"].p_value > 0.01  # type: ignore[operator]
    assert failures(library, sae, "math", "model-03", min_support=5, direction="both").data[0].q_value > 0.05
    kept = rank_preservation(library, PreservationRequest(dataset="math", n=8, sae=sae, pool="last"))
    assert kept.random is not None
    assert 0.01 < kept.random.share_below < 0.99
