"""`--dry-run`: what a command would cost, from its own texts and a short measurement on this machine. Writes nothing that stays."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lance
import numpy as np

from indexer.config import IndexConfig
from indexer.engine import Engine
from indexer.logits import logit_work
from indexer.prepare import Plan, prepare
from indexer.progress import Progress, Silent
from indexer.shard import PairEncoder, ShardEncoder, ShardRows
from indexer.survey import CheckedRows, DatasetSpec
from schema.catalog import dataset_version, finished_pairs, known_sae
from schema.home import Home, check_writable, find_home
from schema.names import SaeName
from schema.records import Survey, Tokens
from schema.settings import Settings
from schema.wire.catalog import DatasetEstimate, EstimateAnswer

EXACT_SAMPLES = 2_000
TRIAL_BATCHES = 3
POSTING_BYTES = 1.8  # samples and maxima with zstd


@dataclass(frozen=True)
class Tokenised:
    """Some of a dataset's texts as tokens."""

    tokens: list[Tokens]
    n_samples: int

    def total(self) -> tuple[int, tuple[int, int]]:
        """Tokens of the whole dataset with a 95 % interval."""
        lengths = np.array([len(t.ids) for t in self.tokens])
        mean = lengths.mean()
        if len(lengths) == self.n_samples:
            return int(lengths.sum()), (int(lengths.sum()),) * 2
        error = 1.96 * lengths.std(ddof=1) / np.sqrt(len(lengths))
        return round(mean * self.n_samples), (
            round((mean - error) * self.n_samples),
            round((mean + error) * self.n_samples),
        )


@dataclass(frozen=True)
class Trial:
    """A short measurement."""

    n_tokens: int
    n_activations: int
    n_bytes: float
    seconds: float


def estimate(config: IndexConfig, settings: Settings, progress: Progress | None = None) -> EstimateAnswer:
    """Tokens, bytes and time of an index command.

    Raises:
        InputError: what would also keep the command itself from working.
    """
    progress = progress or Silent()
    check_writable(settings)
    home = find_home(settings)
    plan = prepare(config, home, progress)
    tokenised = [_tokenise(plan, spec, found, progress) for spec, found in plan.datasets]
    trial = _measure(plan, [t for each in tokenised for t in each.tokens], progress)
    datasets = []
    for each, (_, found) in zip(tokenised, plan.datasets, strict=True):
        n_tokens, interval = each.total()
        finished = home is not None and _is_finished(home, plan, found)
        datasets.append(
            DatasetEstimate(
                name=found.name,
                n_samples=found.n_samples,
                n_tokens=n_tokens,
                n_tokens_interval=interval,
                finished=finished,
            )
        )
    n_tokens = sum(d.n_tokens for d in datasets if not d.finished)
    n_activations = round(trial.n_activations / trial.n_tokens * n_tokens)
    rate, density = trial.n_tokens / trial.seconds, trial.n_bytes / max(1, trial.n_activations)
    return EstimateAnswer(
        datasets=datasets,
        n_saes=len(plan.saes),
        n_tokens=n_tokens,
        n_activations=n_activations,
        tokens_per_second=rate,
        seconds=n_tokens / rate,
        bytes=round(n_activations * density),
        bytes_per_activation=density,
        n_logits=len(plan.logits),
        logit_work=sum(logit_work(c.d_sae, len(plan.model.tokenizer), c.d_model) for c in plan.logits),
        measured_tokens=trial.n_tokens,
        device=str(plan.device),
        dtype=plan.recipe.dtype,
    )


def _tokenise(plan: Plan, spec: DatasetSpec, found: Survey, progress: Progress) -> Tokenised:
    """All texts of a small dataset, evenly spread ones of a large one."""
    stride = max(1, found.n_samples // EXACT_SAMPLES)

    def texts() -> Iterator[str]:
        for number, sample in enumerate(CheckedRows(spec)):
            if number % stride == 0:
                yield plan.recipe.render(json.loads(sample.record))

    with progress.bar(f"tokenising {spec.name}"):
        chosen = list(texts())
        return Tokenised(plan.model.tokenizer.encode(chosen, range(len(chosen)), plan.recipe), found.n_samples)


def _measure(plan: Plan, tokens: list[Tokens], progress: Progress) -> Trial:
    """Encodes a few batches' worth of evenly spread texts as a shard would be, after one batch to warm up."""
    engine = Engine(plan, progress)
    encoders = engine.encoders({card.layer: card.sha256 for card in plan.saes})
    pairs = [PairEncoder(i, card.layer, encoders[card.layer]) for i, card in enumerate(plan.saes)]
    worker = ShardEncoder(engine.subject, pairs, plan.batch_tokens)
    chosen = _some(tokens, TRIAL_BATCHES * plan.batch_tokens)
    list(worker.encode(_some(chosen, plan.batch_tokens // 4), 0).forward())
    begin = time.perf_counter()
    rows = worker.encode(chosen, 0)
    with tempfile.TemporaryDirectory() as folder:
        n_bytes = float(sum(_written(rows, Path(folder))))
        seconds = time.perf_counter() - begin
    n_bytes += POSTING_BYTES * sum(rows.stats.postings.values())
    return Trial(sum(len(t.ids) for t in chosen), rows.stats.activations, n_bytes, seconds)


def _written(rows: ShardRows, folder: Path) -> Iterator[int]:
    for number, table in enumerate(rows.forward()):
        lance.write_dataset(table, folder / str(number), data_storage_version="2.2")
        yield sum(file.stat().st_size for file in (folder / str(number) / "data").iterdir())


def _some(tokens: list[Tokens], budget: int) -> list[Tokens]:
    """Evenly spread texts of about so many tokens."""
    total = sum(len(t.ids) for t in tokens)
    return tokens[:: max(1, total // budget)]


def _is_finished(home: Home, plan: Plan, found: Survey) -> bool:
    with home.database.reading() as session:
        dataset = dataset_version(session, found)
        if dataset is None:
            return False
        saes = [known_sae(session, str(SaeName(plan.model.card.name, card.layer, plan.set_name))) for card in plan.saes]
        done = finished_pairs(session, dataset, plan.recipe)
        return all(sae is not None and sae.id in done for sae in saes)
