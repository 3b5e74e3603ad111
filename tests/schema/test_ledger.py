"""The SQL half of exactly-once, on both kinds of database."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from schema.catalog import register_dataset, register_model, register_run, register_sae
from schema.database import Database, upgrade
from schema.errors import LeaseLost
from schema.ledger import Ledger, clock, owner_died, owner_name
from schema.recipe import Recipe
from schema.records import ModelCard, SaeCard, ShardRange, Survey
from schema.tables import Run, Segment, Shard

MODEL = ModelCard("m", "/m", "r" * 64, "qwen3", 4, 32, 256, "t" * 64)


def sae_card(layer: int) -> SaeCard:
    return SaeCard(layer, "rel", "qwen-scope", "topk", 6, 32, 256, f"{layer}" * 64, f"/s{layer}")


SURVEY = Survey(
    "d",
    "/d.jsonl",
    "d" * 64,
    30,
    300,
    {"text": "text"},
    None,
    shards=[ShardRange(i * 10, i * 10 + 10, 100) for i in range(3)],
)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    made = Database(database_url)
    upgrade(made)
    yield made
    made.close()


@pytest.fixture
def run(database: Database) -> Run:
    with database.writing() as session:
        model = register_model(session, MODEL)
        saes = [register_sae(session, model, "tiny", sae_card(layer)) for layer in (0, 1)]
        dataset = register_dataset(session, SURVEY)
        made, finished = register_run(session, dataset, model, saes, Recipe(), SURVEY, 2048, {})
    assert not finished
    return made


def do(ledger: Ledger, run: Run, stop_at: str | None = None) -> list[str]:
    """Leases, stages and commits until nothing is left; the kinds in the order in which they came."""
    kinds = []
    while (shard := ledger.lease(run.id)) is not None:
        kinds.append(shard.kind)
        if shard.kind == stop_at:
            return kinds
        stats = {"tokens": 7, "postings": {str(pair.id): 5 for pair in run.pairs}} if shard.kind == "encode" else {}
        ledger.stage(shard, {"forward": ["{}"]}, stats)
        ledger.commit(ledger.staged())
    return kinds


def test_work_comes_in_the_order_in_which_it_can_be_done(database: Database, run: Run) -> None:
    ledger = Ledger(database)
    assert do(ledger, run) == ["samples", "directions", "directions", "encode", "encode", "encode", "seal", "seal"]
    with database.reading() as session:
        done = session.get_one(Run, run.id)
        assert done.finished == 1
        assert done.counts["tokens"] == 21
        assert [(s.first, s.stop) for s in session.query(Segment)] == [(0, 30), (0, 30)]


def test_nothing_else_starts_while_somebody_writes_the_rows(database: Database, run: Run) -> None:
    mine, other = Ledger(database, "host-a:1:1"), Ledger(database, "host-b:1:1")
    shard = mine.lease(run.id)
    assert shard is not None
    assert shard.kind == "samples"
    assert other.lease(run.id) is None
    assert other.holders(run.id) == ["host-a:1:1"]


def test_a_finished_run_is_found_again_and_an_unfinished_one_taken_up(database: Database, run: Run) -> None:
    with database.writing() as session:
        model, dataset = register_model(session, MODEL), register_dataset(session, SURVEY)
        saes = [register_sae(session, model, "tiny", sae_card(layer)) for layer in (0, 1)]
        again, finished = register_run(session, dataset, model, saes, Recipe(), SURVEY, 4096, {})
        assert (again.id, finished, again.batch_tokens) == (run.id, False, 2048)
    do(Ledger(database), run)
    with database.writing() as session:
        model, dataset = register_model(session, MODEL), register_dataset(session, SURVEY)
        saes = [register_sae(session, model, "tiny", sae_card(layer)) for layer in (0, 1, 2)]
        assert register_run(session, dataset, model, saes[:2], Recipe(), SURVEY, 2048, {}) == (
            session.get_one(Run, run.id),
            True,
        )
        more, finished = register_run(session, dataset, model, saes, Recipe(), SURVEY, 2048, {})
        assert not finished
        assert [pair.sae_id for pair in more.pairs] == [saes[2].id], "only the SAE that is new"


def test_a_zombie_is_not_heard(database: Database, run: Run) -> None:
    """Its lease lapsed, another worker took the shard; what it stages then is refused."""
    zombie, other = Ledger(database, "host-a:1:1"), Ledger(database, "host-b:1:1")
    held = zombie.lease(run.id)
    assert held is not None
    with database.writing() as session:
        session.get_one(Shard, held.id).leased_until = clock(session) - 1
    taken = other.lease(run.id)
    assert taken is not None
    assert (taken.id, taken.token) == (held.id, held.token + 1)
    with pytest.raises(LeaseLost):
        zombie.stage(held, {"samples": ["{}"]}, {})
    other.stage(taken, {"samples": ["{}"]}, {})
    assert [shard.id for shard in other.staged()] == [held.id]


def test_a_failed_worker_gives_its_shard_back(database: Database, run: Run) -> None:
    ledger = Ledger(database)
    shard = ledger.lease(run.id)
    assert shard is not None
    with pytest.raises(RuntimeError), ledger.holding(shard):
        raise RuntimeError
    again = ledger.lease(run.id)
    assert again is not None
    assert again.id == shard.id


def test_the_shards_of_a_dead_process_are_open_at_once(database: Database, run: Run) -> None:
    script = "from schema.ledger import owner_name; print(owner_name())"
    dead = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=os.getcwd()
    ).stdout.strip()
    assert owner_died(dead)
    assert not owner_died(owner_name())
    assert not owner_died("another-host:1:1")
    assert Ledger(database, dead).lease(run.id) is not None
    ledger = Ledger(database)
    assert ledger.lease(run.id) is None
    assert ledger.reclaim() == 1
    assert ledger.lease(run.id) is not None


def test_a_dead_lease_of_another_host_does_not_stop_maintenance(database: Database, run: Run) -> None:
    ledger = Ledger(database)
    shard = Ledger(database, "another-host:1:1").lease(run.id)
    assert shard is not None
    assert not ledger.idle()
    with database.writing() as session:
        session.get_one(Shard, shard.id).leased_until = clock(session) - 1
    assert ledger.idle()


def test_many_workers_share_the_shards_without_overlap(database: Database, run: Run) -> None:
    do(Ledger(database), run, stop_at="encode")
    with database.writing() as session:
        session.query(Shard).filter_by(kind="encode").update({"state": "open"})
    taken: list[int] = []

    def work(name: str) -> None:
        ledger = Ledger(database, name)
        while (shard := ledger.lease(run.id)) is not None:
            taken.append(shard.id)

    threads = [threading.Thread(target=work, args=(f"host-{i}:1:1",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 3
    assert len(set(taken)) == 3


def test_committing_twice_changes_nothing(database: Database, run: Run) -> None:
    ledger = Ledger(database)
    shard = ledger.lease(run.id)
    assert shard is not None
    ledger.stage(shard, {"samples": ["{}"]}, {})
    staged = ledger.staged()
    assert not ledger.idle()
    ledger.commit(staged)
    ledger.commit(staged)
    assert ledger.idle()
    assert ledger.staged() == []


def test_segments_are_cut_where_they_are_full(database: Database, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schema.ledger.SEGMENT_POSTINGS", 8)
    do(Ledger(database), run)
    with database.reading() as session:
        assert [(s.first, s.stop) for s in session.query(Segment).filter_by(run_sae_id=run.pairs[0].id)] == [
            (0, 20),
            (20, 30),
        ]
