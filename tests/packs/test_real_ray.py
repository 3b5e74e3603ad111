"""Real benchmarks through a real model and its trained SAEs on Ray, a worker killed in the midst: the local engine's rows."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from schema.settings import Settings
from tests.indexer.ray_chaos import finish, named_contents, one_round, start
from tests.lengths import LONG
from tests.packs.test_real_benchmarks import PACKS

pytest.importorskip("ray", reason="Ray is not installed: pip install 'scopebase[ray]'")
MODEL = PACKS / "models" / "tinystories-3m"
SAES = PACKS / "models" / "saes" / "SAE-Res-TinyStories-3M-W3K-L0_32"
ROWS = 200

pytestmark = [
    pytest.mark.skipif(not LONG, reason="make torture has the time for it"),
    pytest.mark.skipif(not (MODEL.is_dir() and SAES.is_dir()), reason=f"no models at {PACKS}: set SCOPEBASE_PACKS"),
]


def test_rows_are_the_local_engines_though_a_worker_is_killed(tmp_path: Path) -> None:
    options = ["--model", str(MODEL), "--sae", str(SAES), "--layers", "2,4", "--limit", str(ROWS), "--logits", "no"]
    for name in ("gsm8k", "mmlu"):
        options += ["--dataset", f"{name}={PACKS / 'data' / 'benchmarks' / name}.jsonl.gz"]
    options += ["--batch-tokens", "512"]  # more shards
    alone, shared = Settings.read(tmp_path / "alone", {}), Settings.read(tmp_path / "shared", {})
    finish(start(alone, options))
    hit, again, _ = one_round(shared, options, "worker", 3, random.Random(0))
    assert hit
    assert again <= 1
    wanted, found = named_contents(alone), named_contents(shared)
    assert [table for table in wanted if found[table] != wanted[table]] == []
    assert len(wanted["samples"]) == 2 * ROWS
    assert len(wanted["forward"]) == 2 * 2 * ROWS
