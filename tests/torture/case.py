"""What is indexed while things break, what it should come to, and how the two are compared."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from sqlalchemy import select

import scopebase  # noqa: F401
from api.services.labels.book import Filter, create, list_labels
from api.services.library import Library
from indexer import run as running
from indexer.config import IndexConfig
from schema.home import Home, open_home
from schema.settings import Settings
from schema.tables import Dataset, Run, RunSae, Sae, Segment
from schema.verify import OWNER_BITS, verify
from schema.wire.labels import NewLabel
from tests.making import SONGS, TALES, make_model, make_release, write_jsonl
from tests.torture.children import done
from tests.torture.events import Events

TABLES = ("samples", "tokens", "forward", "profiles", "postings", "directions_32", "logits")
SAE = "tiny-qwen3/0-tiny"
DATASETS = ("songs", "tales")
Digest = dict[str, str]
"""Table -> SHA-256 of every row of it, in order. Numbers that a database gives out (PostgreSQL leaves some out after a crash) are
replaced by the names that they stand for."""


@dataclass(frozen=True)
class Case:
    """A small model, two SAEs, two datasets of several shards each."""

    folder: Path
    config: IndexConfig
    """Both datasets."""
    reference: Digest
    """Of a home where nothing happened."""
    events: int
    """Of the undisturbed command, on an empty home."""
    seconds: float
    begun: Path
    """A home in which only the first dataset is indexed, with labels."""
    labels: Sequence[str]
    """Their texts."""
    events_begun: int
    """Of the undisturbed command, on a home like `begun`."""
    events_outside: int
    """Of `events`, those that no transaction is open around."""
    n_bytes: int
    """Of a home where nothing happened."""

    @property
    def first(self) -> IndexConfig:
        return replace(self.config, datasets=self.config.datasets[:1])


def in_words_of_the_command(config: IndexConfig, settings: Settings) -> list[str]:
    """What is typed behind `scopebase` for it."""
    datasets = [word for name, path in config.datasets for word in ("--dataset", f"{name}={path}")]
    plan = ["--model", config.model, "--sae", config.sae, "--set", str(config.set_name), *datasets]
    return ["--home", str(settings.home), "index", *plan, "--batch-tokens", str(config.batch_tokens)]


def run_index(config: IndexConfig, settings: Settings) -> None:
    """The command, as a process of its own does it."""
    torch.set_num_threads(1)
    Events(None, lambda: None).watch()
    running.index(config, settings)


def make_case(folder: Path) -> Case:
    """Everything in children, so that the caller can still fork."""
    done(lambda: _make(folder))
    datasets = tuple((name, str(folder / f"{name}.jsonl")) for name in DATASETS)
    release = str(folder / "SAE-Res-Tiny-W64-L0_3")
    config = IndexConfig(str(folder / "tiny-qwen3"), release, datasets, set_name="tiny", batch_tokens=64)
    undisturbed, begun = Settings.read(folder / "undisturbed", {}), Settings.read(folder / "begun", {})
    begin = time.monotonic()
    events = int(done(lambda: _counted(config, undisturbed)))
    seconds = time.monotonic() - begin
    reference = json.loads(done(lambda: json.dumps(digest(undisturbed))))
    labels = [f"words of {number}" for number in range(5)]
    first = replace(config, datasets=datasets[:1])
    done(lambda: run_index(first, begun))
    done(lambda: add_labels(begun, labels))
    events_begun = int(done(lambda: _counted(config, copy_home(begun.home, folder / "counted-begun"))))
    outside = int(done(lambda: _counted(config, Settings.read(folder / "counted-outside", {}), outside=True)))
    n_bytes = sum(file.stat().st_size for file in undisturbed.home.rglob("*") if file.is_file())
    return Case(folder, config, reference, events, seconds, begun.home, labels, events_begun, outside, n_bytes)


def _make(folder: Path) -> None:
    make_model(folder / "tiny-qwen3")
    make_release(folder / "SAE-Res-Tiny-W64-L0_3", 2, 32, 64, 3)
    write_jsonl(folder / "songs.jsonl", SONGS[:24])
    write_jsonl(folder / "tales.jsonl", TALES[:20])


def _counted(config: IndexConfig, settings: Settings, outside: bool = False) -> str:
    torch.set_num_threads(1)
    events = Events(None, lambda: None, outside)
    events.watch()
    running.index(config, settings)
    return str(events.n)


def add_labels(settings: Settings, texts: Sequence[str]) -> None:
    """Labels that must never be lost."""
    home = open_home(settings)
    for number, text in enumerate(texts):
        create(Library(home), NewLabel(feature=f"{SAE}/{number}", text=text), "ann")
    home.close()


def copy_home(of: Path, to: Path) -> Settings:
    """A home of its own that begins like another."""
    shutil.copytree(of, to)
    return Settings.read(to, {})


def digest(settings: Settings) -> Digest:
    """Every row of every table."""
    home = open_home(settings)
    names, found = _owners(home), {}
    for table in (table for table in TABLES if home.store.has(table)):
        kind = table.partition("_")[0]
        bits = OWNER_BITS[kind]
        rows = home.store.latest(table).to_table(filter="key >= 0").to_pylist()
        named = [(names[kind].get(row["key"] >> bits, "nobody's"), row["key"] & ((1 << bits) - 1), row) for row in rows]
        hashed = hashlib.sha256()
        for owner, place, row in sorted(named, key=lambda each: each[:2]):
            hashed.update(repr((owner, place, {name: value for name, value in row.items() if name != "key"})).encode())
        found[table] = hashed.hexdigest()
    home.close()
    return found


def _owners(home: Home) -> dict[str, dict[int, str]]:
    """Kind of table -> number of an owner of rows -> its name."""
    with home.database.reading() as session:
        datasets = {each.id: each.name for each in session.scalars(select(Dataset))}
        saes = {each.id: each.name for each in session.scalars(select(Sae))}
        runs = {each.id: datasets[each.dataset_id] for each in session.scalars(select(Run))}
        pairs = {each.id: f"{runs[each.run_id]} {saes[each.sae_id]}" for each in session.scalars(select(RunSae))}
        segments = {each.id: f"{pairs[each.run_sae_id]} {each.first}" for each in session.scalars(select(Segment))}
    by_pair, by_sae = dict.fromkeys(("forward", "profiles"), pairs), dict.fromkeys(("directions", "logits"), saes)
    return {"samples": datasets, "tokens": runs, "postings": segments, **by_pair, **by_sae}


def problems(settings: Settings, expected: Digest, labels: Sequence[str] = ()) -> list[str]:
    """What is not as it should be: rows, parts left over, what `scopebase verify` finds, labels that are gone or there twice."""
    found = digest(settings)
    wrong = [f"{table} differs from the undisturbed" for table in expected if found.get(table) != expected[table]]
    home = open_home(settings)
    leftover = home.store.latest("parts").count_rows() - 1
    if leftover:
        wrong.append(f"parts: {leftover} rows left")
    verdict = verify(home, deep=True)
    wrong += [f"verify: {finding.where}: {finding.problem}" for finding in verdict.findings]
    wrong += missing_labels(home, labels)
    home.close()
    return wrong


def missing_labels(home: Home, labels: Sequence[str]) -> list[str]:
    """Of these texts, those that no label bears or that several do."""
    there = [label.text for label in list_labels(Library(home), Filter(), 1000).data]
    return [f"label {text!r} is there {there.count(text)} times" for text in labels if there.count(text) != 1]


def check(settings: Settings, expected: Digest, labels: Sequence[str] = ()) -> None:
    """Raises AssertionError where something is not as it should be; looks in a child."""
    said = done(lambda: "; ".join(problems(settings, expected, labels)))
    assert not said, said
