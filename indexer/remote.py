"""A worker in a process of its own that does one shard whenever it is told to. What tells it (`indexer.on_ray`) knows no model, and this
knows nothing of Ray.

It holds the model and one group of SAEs at a time. All that it does goes through the ledger, like the work of any other worker.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from indexer.config import IndexConfig
from indexer.engine import Engine
from indexer.prepare import Plan
from indexer.progress import Bar
from indexer.run import do_logits, open_logit_shards
from indexer.saes import open_release
from indexer.subject import Described, choose_device
from indexer.survey import DatasetSpec
from indexer.worker import Worker
from schema.errors import WorkFailed
from schema.home import Home, open_home
from schema.recipe import Recipe
from schema.records import SaeCard, Survey
from schema.settings import Settings
from schema.tables import Run

KINDS = ("directions", "encode", "seal")
"""The dataset's rows are stored by who was given its file."""
CARRIED = ("SCOPEBASE_", "AWS_", "GOOGLE_", "AZURE_", "HF_")
"""Variables that reach a worker unless its machine has its own: the addresses and keys of stores and of the hub."""


@dataclass(frozen=True)
class Job:
    """One run: a dataset through one group of SAEs."""

    run: int
    spec: DatasetSpec
    found: Survey


@dataclass(frozen=True)
class Group:
    """The SAEs that a worker holds at once, and the runs that need them."""

    saes: list[SaeCard]
    jobs: list[Job]


@dataclass(frozen=True)
class Order:
    """A command as a worker elsewhere needs it: what was asked for, where the stores are, and what reading found."""

    config: IndexConfig
    settings: Settings
    identity: str
    """The id of the activation store."""
    revision: str
    """The model's."""
    set_name: str
    recipe: Recipe
    batch_tokens: int
    device: str
    threads: int
    logits: list[SaeCard]
    groups: list[Group]
    environ: dict[str, str]

    @classmethod
    def of(cls, plan: Plan, home: Home, groups: list[Group], threads: int) -> Order:
        """The order that carries a plan out. Addresses of files become absolute: another process may stand elsewhere."""
        config = replace(plan.config, model=_absolute(plan.config.model), sae=_absolute(plan.config.sae))
        environ = {name: value for name, value in os.environ.items() if name.startswith(CARRIED)}
        return cls(
            config=config,
            settings=home.settings.absolute(),
            identity=home.store.identity() or "",
            revision=plan.model.card.revision,
            set_name=plan.set_name,
            recipe=plan.recipe,
            batch_tokens=plan.batch_tokens,
            device=plan.device.type,
            threads=threads,
            logits=plan.logits,
            groups=groups,
            environ=environ,
        )

    def plan(self, group: int) -> Plan:
        """The plan of one group, made anew on this machine.

        Raises:
            InputError: the model, the SAEs or the device are not here.
            WorkFailed: the model here is another one.
        """
        config = self.config
        model = Described(config.model, config.model_name)
        if model.card.revision != self.revision:
            raise WorkFailed(
                f"model {config.model} has revision {model.card.revision[:12]} on {socket.gethostname()}, "
                f"{self.revision[:12]} where the command runs; give all machines the same, or name it as owner/name@revision"
            )
        dtype = getattr(torch, self.recipe.dtype)
        held = self.groups[group]
        return Plan(
            config=config,
            model=model,
            release=open_release(config.sae),
            set_name=self.set_name,
            saes=held.saes,
            device=choose_device(self.device),
            dtype=dtype,
            batch_tokens=self.batch_tokens,
            recipe=self.recipe,
            datasets=[(job.spec, job.found) for job in held.jobs],
            logits=self.logits,
        )


def _absolute(source: str) -> str:
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source


@dataclass(frozen=True)
class Hello:
    """Who a worker is."""

    owner: str
    """Its name in the ledger."""
    host: str
    pid: int
    scopebase: str


@dataclass(frozen=True)
class Done:
    """What one shard was."""

    kind: str
    tokens: int
    """Of an encoded shard, those that went through the model."""


def installed() -> str:
    """Scopebase's version on this machine."""
    try:
        return version("scopebase")
    except PackageNotFoundError:  # a checkout that was never installed
        return "0.0.0"


class Counting:
    """A progress that nobody sees and that counts tokens."""

    def __init__(self) -> None:
        self.tokens = 0

    def say(self, text: str) -> None: ...

    def bar(self, title: str, total: int | None = None, done: int = 0) -> AbstractContextManager[Bar]:
        return nullcontext(self)

    def advance(self, amount: int, tokens: int = 0) -> None:
        self.tokens += tokens

    def note(self, text: str) -> None: ...

    def border(self) -> None: ...


class RemoteWorker:
    """One process's worker. Nothing of the model is loaded before the first shard that needs it."""

    def __init__(self, order: Order) -> None:
        for name, value in order.environ.items():
            os.environ.setdefault(name, value)
        torch.set_num_threads(order.threads)
        self.order = order
        self.home = open_home(order.settings)
        if self.home.store.identity() != order.identity:
            raise WorkFailed(
                f"{socket.gethostname()} does not see the activation store {order.settings.store_url}; "
                "put it into a bucket or a directory that all machines share (SCOPEBASE_STORE_URL)"
            )
        self.progress = Counting()
        self._group = -1
        self._engine: Engine | None = None
        self._workers: dict[int, Worker] = {}

    def hello(self) -> Hello:
        return Hello(self.home.ledger.owner, socket.gethostname(), os.getpid(), installed())

    def step(self, group: int, runs: Sequence[int]) -> Done | None:
        """Does one shard of these runs of a group; None where there is none to be had."""
        self._hold(group)
        for job in self.order.groups[group].jobs:
            if job.run in runs:
                before = self.progress.tokens
                shard = self._worker(job).step(KINDS)
                if shard is not None:
                    return Done(shard.kind, self.progress.tokens - before)
        return None

    def logits(self, group: int) -> Done | None:
        """Makes the logits of one SAE that wants them; None where there are none to be had.

        Raises:
            InputError: the model's head is not where it is looked for; nothing was written.
        """
        engine = self._hold(group)
        saes = open_logit_shards(self.home, engine)
        return None if do_logits(self.home, engine, saes, self.progress) is None else Done("logits", 0)

    def _hold(self, group: int) -> Engine:
        """The engine of a group; the one before it goes first."""
        if self._engine is None or self._group != group:
            self._workers.clear()
            self._engine = None
            self._engine = Engine(self.order.plan(group), self.progress)
            self._group = group
        return self._engine

    def _worker(self, job: Job) -> Worker:
        assert self._engine is not None
        if job.run not in self._workers:
            with self.home.database.reading() as session:
                run = session.get_one(Run, job.run)
            self._workers[job.run] = Worker(self.home, self._engine, run, job.spec, job.found, self.progress)
        return self._workers[job.run]
