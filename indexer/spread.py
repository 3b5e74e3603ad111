"""The main job by workers that are told shard by shard what to do: the same rows and reports as `indexer.run.index`.

Where no worker can hold the SAEs of all layers, they are cut into groups. Each group is a run of its own for each dataset, so that the
ledger, sealing and everything that reads know nothing of it; a worker holds one group at a time.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import torch

from indexer.config import Cluster, IndexConfig
from indexer.engine import Engine
from indexer.machines import one_machine
from indexer.on_ray import Crew
from indexer.prepare import Plan, prepare
from indexer.progress import Bar, Progress, Silent
from indexer.remote import Group, Job, Order
from indexer.run import register, report, runs_of, sae_names, spent_parts, take_up, tidy, versions
from indexer.seats import Ask, Seat
from indexer.subject import choose_device
from indexer.worker import Worker
from schema.catalog import known_sae, missing_logits
from schema.errors import InputError
from schema.home import Home, check_writable, find_home, make_home
from schema.ledger import Tally
from schema.records import RunReport
from schema.settings import Settings
from schema.tables import Run

STORE_SECONDS = 5.0
"""How often rows are looked for that nobody has stored yet."""


def index(
    config: IndexConfig, settings: Settings, cluster: Cluster, progress: Progress | None = None
) -> list[RunReport]:
    """Indexes the datasets with the workers of a cluster; goes on where an earlier call, of whichever engine, was interrupted.

    Raises:
        InputError: something asked for cannot be; the stores are as they were.
        WorkFailed: the work stopped; what is committed stays, and the same call goes on.
    """
    progress = progress or Silent()
    check_writable(settings)
    device = check_cluster(config.device, settings, cluster)
    plan = prepare(config, find_home(settings), progress, device)
    home = make_home(settings)
    try:
        take_up(home)
        groups, runs = register_groups(home, plan, cluster.layers_per_worker)
        added: list[str] = []
        if any(group.jobs for group in groups) or plan.logits:
            gpus = float(device.type == "cuda") if cluster.gpus_per_worker is None else cluster.gpus_per_worker
            crew = Crew(cluster, home, gpus, progress)
            with crew.at_work(partial(Order.of, plan, home, groups)):
                Spread(plan, home, groups, crew, progress).index()
                added = add_logits(plan, home, crew, progress)
        if spent_parts(home):
            tidy(home)
        worked = {job.run for group in groups for job in group.jobs}
        found = [each for run in runs for each in runs_of(home, plan, run)]
        reports = [report(home, each, already=each not in worked) for each in found]
        return [replace(each, logits=[name for name in each.saes if name in added]) for each in reports]
    finally:
        home.close()


def check_cluster(device: str, settings: Settings, cluster: Cluster) -> torch.device:
    """The kind of device that the workers have, which need not be here.

    Args:
        device: as it is asked for.

    Raises:
        InputError: a device is asked for by number, or a CPU together with GPUs, or a home on SQLite from outside the cluster.
    """
    if settings.database_file is not None and (cluster.address or "").startswith("ray://"):
        raise one_machine(f"the cluster at {cluster.address} is elsewhere")
    if cluster.gpus_per_worker:
        if device not in ("auto", "cuda"):
            raise InputError(
                f"--device {device} with --gpus-per-worker: Ray gives each worker its GPU; leave --device out"
            )
        return torch.device("cuda")
    chosen = choose_device("cpu" if cluster.gpus_per_worker == 0 and device == "auto" else device)
    if chosen.index is not None:
        raise InputError(f"--device {device}: Ray gives each worker its GPU; say --gpus-per-worker 1 instead")
    return chosen


def register_groups(home: Home, plan: Plan, layers: int | None) -> tuple[list[Group], list[Run]]:
    """The plan's SAEs in groups that a worker can hold, each with its unfinished runs; and of each dataset one run."""
    size = layers or len(plan.saes)
    ordered = sorted(plan.saes, key=lambda card: card.layer)
    groups = [Group(ordered[i : i + size], []) for i in range(0, len(ordered), size)]
    runs = []
    for spec, found in plan.datasets:
        for group in groups:
            made_with = versions(plan)
            run, finished = register(
                home, plan.model.card, plan.set_name, group.saes, found, plan.recipe, plan.batch_tokens, made_with
            )
            if not finished:
                group.jobs.append(Job(run.id, spec, replace(found, shards=[])))  # the ledger has them
        runs.append(run)
    return groups, runs


class Spread:
    """The unfinished runs of a plan, spread over a crew."""

    def __init__(self, plan: Plan, home: Home, groups: list[Group], crew: Crew, progress: Progress) -> None:
        self.plan, self.home, self.groups, self.crew, self.progress = plan, home, groups, crew, progress
        self.jobs = {job.run: job for group in groups for job in group.jobs}
        self.tallies: dict[int, Tally] = {}
        self._stored = 0.0

    def index(self) -> None:
        """Works until all runs are finished, by this command or together with others."""
        if not self.jobs:
            return
        self._store_rows(self.progress)
        self.tallies = self.home.ledger.tally(self.jobs)
        names = list(dict.fromkeys(job.spec.name for job in self.jobs.values()))
        title = f"indexing {names[0] if len(names) == 1 else f'{len(names)} datasets'}"
        total = sum(job.found.n_samples for job in self.jobs.values())
        with self.progress.bar(title, total, self._encoded()) as bar:
            self.crew.work(self._ask, partial(self._over, bar), bar)
        tidy(self.home)

    def _store_rows(self, progress: Progress) -> None:
        """The datasets' rows, by this process: it is the one that can read their files for certain."""
        engine = Engine(self.plan, progress)
        self._stored = time.monotonic()
        for run, job in self.jobs.items():
            if run in self.tallies and self.tallies[run].encoded:
                continue
            with self.home.database.reading() as session:
                worker = Worker(self.home, engine, session.get_one(Run, run), job.spec, job.found, progress)
            worker.work_off("samples")

    def _encoded(self) -> int:
        return sum(tally.encoded for tally in self.tallies.values())

    def _over(self, bar: Bar) -> bool:
        before = self._encoded()
        self.tallies = self.home.ledger.tally(self.jobs)
        bar.advance(self._encoded() - before)
        if time.monotonic() - self._stored > STORE_SECONDS:  # whoever else was storing rows may have died
            self._store_rows(Silent())
        return all(tally.finished for tally in self.tallies.values())

    def _ask(self, seat: Seat) -> Ask:
        seat.group = self._group_for(seat)
        return "step", (seat.group, [job.run for job in self.groups[seat.group].jobs if not self._finished(job)])

    def _finished(self, job: Job) -> bool:
        return self.tallies[job.run].finished

    def _group_for(self, seat: Seat) -> int:
        """The SAEs that a worker should hold next: those that it has, while there is work for them, else where most waits for each worker.

        Another group has to be loaded, so that it is taken only where there are more shards than workers that hold it.
        """
        others = [s.group for s in self.crew.seats if s is not seat]
        waiting = [sum(self.tallies[job.run].open for job in group.jobs) for group in self.groups]
        if seat.group >= 0 and waiting[seat.group]:
            return seat.group
        most = max(range(len(self.groups)), key=lambda group: waiting[group] / (1 + others.count(group)))
        return most if seat.group < 0 or waiting[most] > others.count(most) else seat.group


def add_logits(plan: Plan, home: Home, crew: Crew, progress: Progress) -> list[str]:
    """The logit effects of the plan's SAEs, where they are wanted and not there yet; names the SAEs."""
    names = sae_names(plan, plan.logits)
    if not names:
        return []
    with home.database.reading() as session:
        saes = [sae.id for name in names if (sae := known_sae(session, name)) is not None]

    def over() -> bool:
        with home.database.reading() as session:
            return not missing_logits(session, saes)

    try:
        with progress.bar("computing logit effects", len(saes)) as bar:
            crew.work(lambda seat: ("logits", (max(0, seat.group),)), over, bar)
    except InputError as error:
        if plan.config.logits == "yes":
            raise
        progress.say(f"logit effects are left out: {error}")
        return []
    tidy(home)
    return names
