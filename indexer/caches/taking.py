"""Taking a cache of Delphi in as a dataset with its run, through the same ledger as indexing.

    cache -> checked, samples spelled -> dataset, run -> forward rows, tokens, parts -> profile, postings

Whoever runs the same command after a crash goes on with it; once it is complete it writes nothing.
"""

from __future__ import annotations

import json
import platform
import tempfile
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

import indexer.saes
from indexer.caches.delphi import Cache, CachedSample, Checked, Ints
from indexer.caches.rows import CachedPair, CacheEncoder
from indexer.caches.spelling import Speller
from indexer.caches.subjects import Subjects, Taking, find_subjects
from indexer.prepare import CPU_BATCH_TOKENS
from indexer.progress import Progress, Silent
from indexer.run import register, report, take_up, tidy
from indexer.saes.known import load_known
from indexer.survey import DatasetSpec, ShardSize, survey
from indexer.worker import Stats, Worker
from schema.errors import Conflict, InputError
from schema.home import Home, check_writable, find_home, make_home
from schema.names import check_dataset
from schema.recipe import DTYPES, UNKNOWN, Recipe
from schema.records import RunReport, Survey, Tokens
from schema.settings import Settings
from schema.tables import Run, Sae, Shard


def take_in_delphi(asked: Taking, settings: Settings, progress: Progress | None = None) -> RunReport:
    """Takes a cache in; goes on where an earlier call was interrupted; does nothing where all is done.

    Raises:
        InputError, Conflict: the cache cannot be of this SAE, or anything asked for cannot be; the stores are as they were.
    """
    progress = progress or Silent()
    check_writable(settings)
    check_dataset(asked.dataset)
    cache = Cache(asked.folder)
    subjects = find_subjects(asked, cache, find_home(settings), progress)
    with progress.bar(f"checking {asked.folder.name}") as bar:
        checked = cache.check(subjects.sae.k, subjects.sae.d_sae, bar.advance)
    recipe = _recipe(asked, cache, subjects, checked)
    speller = Speller(subjects.tokenizer, recipe)
    if checked.negative:
        progress.say(f"{checked.negative:,} values of the cache are not positive: they do not fire, and are left out")
    with tempfile.TemporaryDirectory(prefix="scopebase-") as folder:
        spec = DatasetSpec(asked.dataset, str(Path(folder, "samples.jsonl")), recipe, id_field="id")
        firsts, lengths = _write_samples(cache, speller, Path(spec.source), progress)
        found = survey(spec, ShardSize.for_batches(CPU_BATCH_TOKENS))
        found = replace(found, source=str(asked.folder.resolve()))
        with closing(make_home(settings)) as home:
            take_up(home)
            return _work(
                home, subjects, recipe, spec, found, _Engine(cache, checked, speller, firsts, lengths), progress
            )


def _work(
    home: Home,
    subjects: Subjects,
    recipe: Recipe,
    spec: DatasetSpec,
    found: Survey,
    engine: _Engine,
    progress: Progress,
) -> RunReport:
    made_with = {"python": platform.python_version(), "scopebase": version("scopebase"), "origin": "delphi"}
    run, finished = register(
        home, subjects.model, subjects.set_name, [subjects.sae], found, recipe, CPU_BATCH_TOKENS, made_with
    )
    if not finished:
        CacheWorker(home, engine, subjects, run, spec, found, progress).work()
    tidy(home)
    return report(home, run.id, already=finished)


@dataclass(frozen=True)
class _Engine:
    """What a worker encodes with: the cache instead of a model."""

    cache: Cache
    checked: Checked
    speller: Speller
    firsts: Ints
    lengths: Ints

    def for_run(self, run: Run) -> CacheEncoder:
        (pair,) = run.pairs
        cached = CachedPair(pair.id, pair.sae.layer, pair.sae.d_sae)
        return CacheEncoder(self.cache, self.checked.pieces, self.firsts, cached, run.batch_tokens)


class CacheWorker(Worker):
    """A worker that finds tokens and activations in a cache."""

    def __init__(
        self,
        home: Home,
        engine: _Engine,
        subjects: Subjects,
        run: Run,
        spec: DatasetSpec,
        found: Survey,
        progress: Progress,
    ) -> None:
        super().__init__(home, engine, run, spec, found, progress)  # type: ignore[arg-type]  # gives rows as an engine does
        self._from, self._subjects = engine, subjects

    def tokens(self, shard: Shard) -> list[Tokens]:
        here = range(shard.first, shard.stop)
        firsts, lengths = self._from.firsts, self._from.lengths
        return [
            self._from.speller.tokens(i, self._from.cache.token_ids(int(firsts[i]), int(firsts[i] + lengths[i])))
            for i in here
        ]

    def sae(self, known: Sae) -> indexer.saes.Sae:
        release = self._subjects.release
        return release.load(known.layer) if release is not None else load_known(known)

    def fit(self, known: Sae, sae: indexer.saes.Sae) -> Stats:
        """A cache has no residuals to hold a reconstruction against."""
        return {}


def _recipe(asked: Taking, cache: Cache, subjects: Subjects, checked: Checked) -> Recipe:
    """How the activations were made: as asked, as the cache says, else unknown."""
    if asked.dtype not in (None, *DTYPES):
        raise InputError(f"--dtype {asked.dtype!r}: one of {', '.join(DTYPES)}")
    said = cache.manifest.get("recipe", {})
    tokenizer_sha256 = subjects.model.tokenizer_sha256
    if said.get("tokenizer_sha256", tokenizer_sha256) != tokenizer_sha256:
        raise Conflict(f"{asked.folder} was made with another tokenizer than that of model {subjects.model.name}")
    sha256 = cache.manifest.get("provenance", {}).get("sae_sha256", subjects.sae.sha256)
    if sha256 != subjects.sae.sha256:
        raise Conflict(
            f"{asked.folder} is of an SAE with tensors {sha256[:12]}, {asked.sae} has {subjects.sae.sha256[:12]}: "
            "activations of one say nothing of the other"
        )
    return Recipe(
        max_tokens=int(said.get("max_tokens", cache.context)),
        mask=asked.mask or said.get("mask", "none"),
        dtype=asked.dtype or said.get("dtype", UNKNOWN),
        tokenizer_sha256=tokenizer_sha256,
        origin=f"delphi {checked.sha256}",
    )


def _write_samples(cache: Cache, speller: Speller, path: Path, progress: Progress) -> tuple[Ints, Ints]:
    """The samples as rows of a file, spelled; where each begins in the cache, and how long it is. Those of no text are left out."""
    firsts, lengths, silent = [], [], 0
    with path.open("w", encoding="utf-8") as file, progress.bar("spelling samples") as bar:
        for sample in cache.samples():
            text, _ = speller.spell(cache.token_ids(sample.first, sample.first + sample.n_tokens).tolist())
            if not text.strip():
                silent += 1
                continue
            file.write(_row(sample, text) + "\n")
            firsts.append(sample.first)
            lengths.append(sample.n_tokens)
            bar.advance(1)
    if silent:
        progress.say(f"{silent:,} samples of the cache hold no text and are left out")
    if not firsts:
        raise InputError(f"{cache.folder} holds no text")
    return np.array(firsts, np.int64), np.array(lengths, np.int64)


def _row(sample: CachedSample, text: str) -> str:
    return json.dumps({**sample.fields, "id": sample.id, "text": text})
