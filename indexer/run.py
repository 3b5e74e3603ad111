"""The whole job: plan, register, work, tidy up, report.

    row -> text -> tokens -> residuals -> what fires -> forward rows, tokens, parts   (shard by shard)
                                                     -> profile, postings             (when all are in)
    SAE -> directions (first), logits (last)

Whoever runs the same command on the same home shares the work; whoever runs it after a crash goes on with it.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

from sqlalchemy import select

from indexer.config import IndexConfig
from indexer.engine import Engine
from indexer.logits import write_logits
from indexer.prepare import Plan, prepare
from indexer.progress import Bar, Progress, Silent
from indexer.saes.known import load_known
from indexer.survey import DatasetSpec
from indexer.worker import Stats, Worker, do_shard, publish_staged
from schema.catalog import finished_pairs, open_logits, register_dataset, register_model, register_run, register_sae
from schema.errors import InputError
from schema.home import Home, check_writable, find_home, make_home
from schema.layout import SAMPLE_BITS, directions_table, sample_key
from schema.names import SaeName
from schema.publish import Staged
from schema.recipe import Recipe
from schema.records import ModelCard, RunReport, SaeCard, Survey
from schema.removals import trim
from schema.settings import Settings
from schema.tables import Dataset, Run, RunSae, Sae, Shard
from schema.upkeep import drop_cut_indexes, maintain, remove_rows


def index(config: IndexConfig, settings: Settings, progress: Progress | None = None) -> list[RunReport]:
    """Indexes the datasets; goes on where an earlier call was interrupted; does nothing where all is done.

    Returns:
        For each dataset the runs that hold it with the SAEs asked for, earlier ones first.

    Raises:
        InputError: something asked for cannot be; the stores are as they were.
        WorkFailed: the work stopped; what is committed stays, and the same call goes on.
    """
    progress = progress or Silent()
    check_writable(settings)
    plan = prepare(config, find_home(settings), progress)
    home = make_home(settings)
    engine = Engine(plan, progress)
    try:
        with home.store.faults():
            take_up(home)
            reports = [each for spec, found in plan.datasets for each in index_one(home, engine, spec, found, progress)]
            added = add_logits(home, engine, progress)
            if spent_parts(home):  # an earlier call died between finishing its run and tidying up
                tidy(home)
        return [replace(each, logits=[name for name in each.saes if name in added]) for each in reports]
    finally:
        home.close()


def take_up(home: Home) -> None:
    """Ends what others had begun: what one was removing goes, what one had staged is published, the shards of the dead are free.

    Indexes that a full disk cut off go too, before anything is read by them.
    """
    for table in home.tables():
        drop_cut_indexes(home.store, table)
    trim(home)
    publish_staged(home)
    home.ledger.reclaim()


def index_one(home: Home, engine: Engine, spec: DatasetSpec, found: Survey, progress: Progress) -> list[RunReport]:
    """One dataset of a plan: the run of what was missing, and those that others had finished before."""
    plan = engine.plan
    run, finished = register(
        home, plan.model.card, plan.set_name, plan.saes, found, plan.recipe, plan.batch_tokens, versions(plan)
    )
    if not finished:
        Worker(home, engine, run, spec, found, progress).work()
        tidy(home)
    return [report(home, each, already=finished or each != run.id) for each in runs_of(home, plan, run)]


def runs_of(home: Home, plan: Plan, run: Run) -> list[int]:
    """The finished runs that hold a run's dataset with the plan's SAEs."""
    with home.database.reading() as session:
        asked = set(session.scalars(select(Sae.id).where(Sae.name.in_(sae_names(plan, plan.saes)))))
        done = finished_pairs(session, session.get_one(Dataset, run.dataset_id), Recipe(**run.recipe))
    return sorted({each for sae, each in done.items() if sae in asked})


def sae_names(plan: Plan, cards: Sequence[SaeCard]) -> list[str]:
    """The ids of a plan's SAEs."""
    return [str(SaeName(plan.model.card.name, card.layer, plan.set_name)) for card in cards]


def add_logits(home: Home, engine: Engine, progress: Progress) -> list[str]:
    """The logit effects of a plan's SAEs, one shard each, where they are wanted and not there yet; names the SAEs."""
    plan = engine.plan
    if not plan.logits:
        return []
    try:
        saes = open_logit_shards(home, engine)
    except InputError as error:
        if plan.config.logits == "yes":
            raise
        progress.say(f"logit effects are left out: {error}")
        return []
    with progress.bar("computing logit effects", sum(card.d_sae for card in plan.logits)) as bar:
        while do_logits(home, engine, saes, bar) is not None:
            progress.border()
    tidy(home)
    return [sae.name for sae in saes.values()]


def open_logit_shards(home: Home, engine: Engine) -> dict[int, Sae]:
    """The SAEs whose logits a plan wants, by id, with a shard each.

    Raises:
        InputError: the model's head is not where it is looked for.
    """
    assert engine.head is not None  # found before anything is written
    home.ensure_table("logits")
    names = sae_names(engine.plan, engine.plan.logits)
    with home.database.writing(alone=True) as session:
        saes = {sae.id: sae for sae in session.scalars(select(Sae).where(Sae.name.in_(names)))}
        open_logits(session, list(saes))
    return saes


def do_logits(home: Home, engine: Engine, saes: Mapping[int, Sae], bar: Bar) -> Shard | None:
    """Leases the logits of one of these SAEs and makes them; None where there are none to be had."""
    plan = engine.plan

    def work(shard: Shard, staged: Staged) -> Stats:
        assert shard.sae_id is not None
        sae = load_known(saes[shard.sae_id], [plan.release])
        staged |= write_logits(home.store, shard.sae_id, sae, engine.head, plan.model.tokenizer, plan.device, bar)
        return {}

    shard = home.ledger.lease_logits(list(saes))
    if shard is not None:
        do_shard(home, shard, work)
    return shard


def register(
    home: Home,
    model_card: ModelCard,
    set_name: str,
    cards: Sequence[SaeCard],
    found: Survey,
    recipe: Recipe,
    batch_tokens: int,
    made_with: dict[str, str],
) -> tuple[Run, bool]:
    """The run of one dataset, in one transaction with all that it needs, and whether it is finished."""
    home.ensure_table(directions_table(model_card.d_model))
    with home.database.writing(alone=True) as session:
        model = register_model(session, model_card)
        saes = [register_sae(session, model, set_name, card) for card in cards]
        dataset = register_dataset(session, found)
        run, finished = register_run(session, dataset, model, saes, recipe, found, batch_tokens, made_with)
    with home.database.reading() as session:
        return session.get_one(Run, run.id), finished


def versions(plan: Plan) -> dict[str, str]:
    """What a result may depend on beside its recipe."""
    found = {"python": platform.python_version(), "device": str(plan.device)}
    for package in ("scopebase", "torch", "transformers", "tokenizers"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def tidy(home: Home) -> None:
    """After a run: parts of finished runs are not needed any more, small fragments are merged, key indexes brought up to date.

    Answers do not depend on it: whoever is in the way, the next command tidies up.
    """
    for pair in spent_parts(home):
        remove_rows(home.store, "parts", sample_key(pair), sample_key(pair + 1))
    for table in home.tables():
        maintain(home.store, table, home.ledger.idle)
    home.store.refresh()


def spent_parts(home: Home) -> list[int]:
    """Pairs of finished runs whose parts are still there."""
    keys = home.store.latest("parts").to_table(columns=["key"], filter="key >= 0").column("key").to_numpy()
    pairs = sorted({int(pair) for pair in keys >> SAMPLE_BITS})
    with home.database.reading() as session:
        finished = select(RunSae.id).join(Run).where(RunSae.id.in_(pairs), Run.finished.is_not(None))
        return sorted(session.scalars(finished))


def report(home: Home, run_id: int, *, already: bool) -> RunReport:
    """What a finished run says of itself."""
    with home.database.reading() as session:
        run = session.get_one(Run, run_id)
        names = ("tokens", "masked", "empty", "truncated", "activations", "saturated", "bytes")
        return RunReport(
            run=run.id,
            dataset=run.dataset.name,
            version=run.dataset.version,
            saes=[pair.sae.name for pair in run.pairs],
            n_samples=run.dataset.n_samples,
            already=already,
            **{f"n_{name}" if name != "bytes" else name: run.counts.get(name, 0) for name in names},
        )
