"""One process at work on one run: lease a shard, do it, stage it, publish it, until the run is finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

import indexer.saes
from indexer.engine import Engine
from indexer.fit import TEXTS, WORSE, sampled, unexplained
from indexer.fold import FAN_IN, fold
from indexer.ingest import write_directions, write_samples
from indexer.progress import Bar, Progress
from indexer.rows import sample_texts
from indexer.seal import Source, merged_profile, postings, profile_row
from indexer.survey import DatasetSpec
from schema import tracing
from schema.errors import LeaseLost
from schema.home import Home
from schema.ledger import KINDS
from schema.lookup import segments_of
from schema.publish import Staged, discard, file_names, publish, size, write
from schema.recipe import Recipe
from schema.records import Survey, Tokens
from schema.tables import Run, RunSae, Sae, Shard
from schema.upkeep import merge

WAIT_SECONDS = 1.0
MERGE_EVERY = 64
"""Shards after which this worker merges the fragments of its tables."""
Stats = dict[str, object]


class Worker:
    """Does the shards of one run. The methods named like a shard's kind fill `staged` and return what the ledger keeps of them."""

    def __init__(
        self, home: Home, engine: Engine, run: Run, spec: DatasetSpec, found: Survey, progress: Progress
    ) -> None:
        self.home, self.engine, self.run, self.spec, self.found, self.progress = (
            home,
            engine,
            run,
            spec,
            found,
            progress,
        )
        self.recipe = Recipe(**run.recipe)
        self.kinds = {"samples": self.samples, "directions": self.directions, "encode": self.encode, "seal": self.seal}
        self._stack = ExitStack()
        self._bars: dict[str, Bar] = {}
        self._since_merge = self._since_fold = 0
        self._waiting_for = ""

    def work(self) -> None:
        """Works until the run is finished, by this process or together with others."""
        with self._stack:
            while True:
                self.progress.border()
                if self.step() is None:
                    if self._finished():
                        return
                    self._wait()

    def step(self, kinds: Collection[str] = KINDS) -> Shard | None:
        """Leases one shard and does it; None where there is none to be had."""
        shard = self.home.ledger.lease(self.run.id, kinds)
        if shard is not None:
            self._do(shard)
        return shard

    def work_off(self, kind: str) -> None:
        """Does what there is of one kind."""
        with self._stack:
            while self.step((kind,)) is not None:
                pass

    def _do(self, shard: Shard) -> None:
        staged = do_shard(self.home, shard, self.kinds[shard.kind])
        self._since_merge += bool(staged)
        self._since_fold += "parts" in staged
        if self._since_fold == FAN_IN:
            self._since_fold = 0
            self._fold()
        if self._since_merge == MERGE_EVERY:
            self._since_merge = 0
            for table in staged.keys() - {"parts"}:
                merge(self.home.store, table, partial(self._waiting_files, table))

    def _fold(self) -> None:
        """Sums the parts that lie there, whoever wrote them."""
        widths = {pair.id: pair.sae.d_sae for pair in self.run.pairs}
        fold(self.home.store, widths, partial(self._waiting_files, "parts"))

    def _waiting_files(self, table: str) -> set[str]:
        """A table's files that are staged, of any run."""
        staged = self.home.ledger.staged()
        return file_names(text for shard in staged for text in (shard.staged or {}).get(table, []))

    def _finished(self) -> bool:
        with self.home.database.reading() as session:
            return session.get_one(Run, self.run.id).finished is not None

    def _wait(self) -> None:
        """Nothing to lease, but not finished: others hold the rest, unless they died."""
        publish_staged(self.home)
        if not self.home.ledger.reclaim():
            others = ", ".join(self.home.ledger.holders(self.run.id))
            if others and others != self._waiting_for:
                self.progress.say(f"waiting for {others}")
            self._waiting_for = others
            time.sleep(WAIT_SECONDS)

    def samples(self, shard: Shard, staged: Staged) -> Stats:
        """The dataset's rows."""
        assert shard.dataset_id is not None
        bar = self._drawn("samples", f"storing {self.spec.name}", self.found.n_samples)
        staged |= write_samples(self.home.store, self.spec, shard.dataset_id, self.found.sha256, bar)
        return {}

    def directions(self, shard: Shard, staged: Staged) -> Stats:
        """One SAE's decoder directions, and how well it fits the model."""
        pair = next(pair for pair in self.run.pairs if pair.sae_id == shard.sae_id)
        bar = self._drawn("directions", "storing directions", len(self.run.pairs))
        sae = self.sae(pair.sae)
        staged |= write_directions(self.home.store, pair.sae_id, sae)
        stats = self.fit(pair.sae, sae)
        bar.advance(1)
        return stats

    def fit(self, known: Sae, sae: indexer.saes.Sae) -> Stats:
        """What is unexplained by an SAE that is new here, over the dataset's first texts; nothing where another worker stores those yet."""
        self.home.store.refresh()
        recipe = sampled(self.recipe)
        texts = sample_texts(self.home.store, self.run.dataset_id, 0, min(TEXTS, self.found.n_samples), recipe)
        if not texts:
            return {}
        tokens = self.engine.plan.model.tokenizer.encode([t.text for t in texts], [t.ordinal for t in texts], recipe)
        residual = self.engine.residuals(tokens).get(known.layer)
        fvu = None if residual is None else unexplained(sae, residual, self.engine.plan.device)
        if residual is None or fvu is None:
            return {}
        if fvu >= WORSE:
            self.progress.say(
                f"{known.name} does not reconstruct the residuals of {self.run.model.name}: it leaves {fvu:.2f} of their variance "
                "unexplained, and their mean would leave 1.00; is it an SAE of another model?"
            )
        return {"fvu": fvu, "fvu_tokens": len(residual)}

    def sae(self, known: Sae) -> indexer.saes.Sae:
        """The tensors of one of the run's SAEs."""
        return self.engine.plan.release.load(known.layer)

    def encode(self, shard: Shard, staged: Staged) -> Stats:
        """Samples [first, stop) through the model and all SAEs."""
        store = self.home.store
        encoder = self.engine.for_run(self.run)
        rows = encoder.encode(
            self.tokens(shard), shard.ordinal, self._drawn("encode", f"indexing {self.spec.name}", self.found.n_samples)
        )
        staged["forward"] = []
        for table in rows.forward():
            staged["forward"] += write(store, "forward", table)
        staged["tokens"] = write(store, "tokens", rows.tokens(self.run.id))
        staged["parts"] = write(store, "parts", rows.parts())
        return asdict(rows.stats)

    def tokens(self, shard: Shard) -> list[Tokens]:
        """The shard's samples as the model reads them."""
        texts = sample_texts(self.home.store, self.run.dataset_id, shard.first, shard.stop, self.recipe)
        return self.engine.plan.model.tokenizer.encode([t.text for t in texts], [t.ordinal for t in texts], self.recipe)

    def _drawn(self, kind: str, title: str, total: int) -> Bar:
        """The bar of one kind of work, drawn once; the one before it is finished by then."""
        if kind not in self._bars:
            self._stack.close()
            done = self.home.ledger.tally([self.run.id])[self.run.id].encoded if kind == "encode" else 0
            self._bars[kind] = self._stack.enter_context(self.progress.bar(title, total, done))
        return self._bars[kind]

    def seal(self, shard: Shard, staged: Staged) -> Stats:
        """One pair's profile and postings."""
        assert shard.run_sae_id is not None
        store = self.home.store
        store.refresh()  # see what other processes committed
        with self.home.database.reading() as session:
            pair = session.get_one(RunSae, shard.run_sae_id)
            segments = segments_of(session, pair.id)
        bar = self._drawn("seal", f"sealing {self.spec.name}", len(self.run.pairs))
        profile = merged_profile(store, pair.id, pair.sae.d_sae)
        staged["profiles"] = write(store, "profiles", profile_row(pair.id, profile))
        staged["postings"] = []
        for segment in segments:
            source = Source(store, pair.id, segment.id, segment.first, segment.stop)
            staged["postings"] += write(store, "postings", postings(source, profile))
        bar.advance(1)
        return {}


def do_shard(home: Home, shard: Shard, work: Callable[[Shard, Staged], Stats]) -> Staged:
    """Does a leased shard, stages and publishes it; what it staged, nothing where the lease was lost on the way."""
    staged: Staged = {}
    try:
        told: dict[str, Any] = {"run": shard.run_id, "shard": shard.id, "first": shard.first, "stop": shard.stop}
        with tracing.span(f"index.{shard.kind}", **told), home.ledger.holding(shard):
            stats = work(shard, staged)
    except BaseException:
        discard(home.store, staged)
        raise
    try:  # whatever else interrupts this, the ledger may have the fragments by then: they stay, and are swept if it has not
        lasting = {table: fragments for table, fragments in staged.items() if table != "parts"}
        home.ledger.stage(shard, staged, {**stats, "bytes": size(lasting)})
    except LeaseLost:
        discard(home.store, staged)
        return {}
    with tracing.span("index.publish"):
        publish_staged(home)
    return staged


def publish_staged(home: Home) -> None:
    """Publishes whatever is staged, of any run, table by table, and then says so in the ledger.

    A shard counts as committed only when all its tables name its fragments. Dying in between repeats this from the start, where
    the tables that name them already are left alone.
    """
    shards = home.ledger.staged()

    def fragments(table: str) -> list[str]:
        return [fragment for shard in home.ledger.staged() for fragment in (shard.staged or {}).get(table, [])]

    for table in sorted({table for shard in shards for table in shard.staged or {}}):
        publish(home.store, table, partial(fragments, table))
    if shards:
        home.store.refresh()
        home.ledger.commit(shards)
