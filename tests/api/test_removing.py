"""Removing runs, datasets and SAEs: everything of them goes from both stores, everything else stays as it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import func, select

from api.app import create_app
from api.gate.access import Access
from api.services.catalog import runs
from api.services.labels.book import create
from api.services.library import Library
from api.services.questions.overlap import overlap
from api.services.removing import a_dataset, a_run, a_sae, do, tell
from indexer.run import index
from schema import removals
from schema.errors import Conflict, Forbidden, NotFound
from schema.home import Home, open_home
from schema.keys import create_key
from schema.layout import FENCE, SAMPLE_BITS
from schema.lookup import newest_snapshot
from schema.settings import Settings
from schema.tables import Dataset, Removal, Run, RunSae, Sae, Shard
from schema.wire.labels import NewLabel
from scopebase.cli import main
from scopebase.client import Client
from tests.indexer.test_run import config, everything
from tests.scopebase.test_client import serving

NAMES = ("problems", "songs", "tales")
SAE = "tiny-qwen3/1-tiny"
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def settings(
    tmp_path: Path, database_url: str, indexed: Settings, index_args: dict[str, Any], data_dir: Path
) -> Settings:
    """A home of its own: a copy on SQLite, indexed anew on PostgreSQL."""
    if database_url.startswith("sqlite"):
        shutil.copytree(indexed.home, tmp_path / "home")
        return Settings.read(tmp_path / "home", {})
    made = Settings.read(tmp_path / "home", {"SCOPEBASE_DATABASE_URL": database_url})
    index(config(index_args, data_dir, names=NAMES, layers="all"), made)
    return made


@pytest.fixture
def home(settings: Settings) -> Iterator[Home]:
    opened = open_home(settings)
    yield opened
    opened.close()


def owners(home: Home, table: str) -> set[int]:
    """Whose rows a table keyed by samples holds."""
    keys = home.store.latest(table).to_table(columns=["key"]).column("key").to_numpy()
    return {int(owner) for owner in np.unique(keys[keys != FENCE] >> SAMPLE_BITS)}


def ids(home: Home, table: Any) -> set[int]:
    with home.database.reading() as session:
        return set(session.scalars(select(table.id)))


def contents(settings: Settings) -> dict[str, list[str]]:
    """Every row of the store, but for its owner's number."""
    return {
        name: sorted(repr({key: value for key, value in row.items() if key != "key"}) for row in rows)
        for name, rows in everything(settings).items()
    }


def test_a_removed_run_is_nowhere_and_the_others_answer_as_before(home: Home) -> None:
    before = overlap(Library(home), SAE, ["songs", "tales"])
    with home.database.reading() as session:
        run = session.scalars(select(Run).join(Dataset).where(Dataset.name == "problems")).one()
        gone = {pair.id for pair in run.pairs}
    answer = do(home, a_run(run.id), "ann")
    assert (answer.runs, answer.pairs, answer.snapshot) == ([run.id], len(gone), 4)
    assert answer.bytes == run.counts["bytes"]
    for table in ("forward", "profiles"):
        assert owners(home, table) == ids(home, RunSae)
    assert not gone & ids(home, RunSae)
    assert owners(home, "tokens") == ids(home, Run)
    assert owners(home, "samples") == ids(home, Dataset), "the dataset's rows stay: another run may read them"
    library = Library(home)
    after = overlap(library, SAE, ["songs", "tales"])
    assert after.provenance.snapshot == 4
    assert after.model_copy(update={"provenance": before.provenance}) == before
    with pytest.raises(NotFound, match="'problems' was not indexed with"):
        overlap(library, SAE, ["problems", "songs"])


def test_the_same_index_command_makes_it_again(
    home: Home, settings: Settings, index_args: dict[str, Any], data_dir: Path
) -> None:
    before = contents(settings)
    do(home, a_dataset("songs"), "ann")
    assert {len(rows) for rows in contents(settings).values()} != {len(rows) for rows in before.values()}
    index(config(index_args, data_dir, names=NAMES, layers="all"), settings)
    assert contents(settings) == before
    with home.database.reading() as session:
        assert newest_snapshot(session) == 5
        assert session.scalar(select(func.count()).select_from(Run)) == 3


@on_sqlite
def test_answers_as_of_an_earlier_snapshot_are_refused_only_where_they_would_differ(home: Home) -> None:
    with home.database.reading() as session:
        order = [run.dataset.name for run in session.scalars(select(Run).order_by(Run.finished))]
    library = Library(home)
    overlap(library, SAE, order[:2], as_of=3)  # a service that has answered it before refuses it too
    do(home, a_dataset(order[0]), "ann")
    assert overlap(library, SAE, order[1:], as_of=3).provenance.snapshot == 3
    with pytest.raises(Conflict, match=f"as of 3 there was an index of {order[0]} that was removed since"):
        overlap(library, SAE, order[:2], as_of=3)


@on_sqlite
def test_an_sae_goes_from_every_run_and_its_labels_only_where_that_is_said(home: Home) -> None:
    library = Library(home)
    create(library, NewLabel(feature=f"{SAE}/3", text="rhymes"), "ann")
    with pytest.raises(Conflict, match="has 1 labels, which would go with it; export them first"):
        do(home, a_sae(SAE, labels=False), "ann")
    answer = do(home, a_sae(SAE, labels=True), "ann")
    assert (answer.runs, answer.pairs, answer.labels) == ([], 3, 1)
    assert owners(home, "forward") == owners(home, "profiles") == ids(home, RunSae)
    assert len(ids(home, Sae)) == 3
    with pytest.raises(NotFound, match="no SAE named"):
        overlap(library, SAE, ["songs", "tales"])
    assert overlap(library, "tiny-qwen3/2-tiny", ["songs", "tales"]).datasets[0].n_samples


@on_sqlite
def test_a_run_that_loses_an_sae_is_as_large_as_one_made_without_it(
    home: Home, tmp_path: Path, index_args: dict[str, Any], data_dir: Path
) -> None:
    def songs(of: Home) -> Run:
        with of.database.reading() as session:
            return session.scalars(select(Run).join(Dataset).where(Dataset.name == "songs")).one()

    before = songs(home).counts
    told = tell(home, a_sae(SAE, labels=False))
    assert do(home, a_sae(SAE, labels=False), "ann").bytes == told.bytes > 0
    other = Settings.read(tmp_path / "other", {})
    index(config(index_args, data_dir, names=("songs",), layers="0,2-3"), other)
    without = open_home(other)
    left, wanted = songs(home).counts, songs(without).counts
    without.close()
    assert left["bytes"] == pytest.approx(wanted["bytes"], rel=0.1)
    assert left["bytes"] < 0.85 * before["bytes"]
    assert left["activations"] == wanted["activations"] < before["activations"]
    assert left["tokens"] == wanted["tokens"]
    with home.database.reading() as session:
        (item,) = (each for each in runs(session).data if each.dataset.startswith("songs"))
    assert (item.bytes, item.n_activations) == (left["bytes"], left["activations"])


def test_what_is_being_indexed_is_not_removed(home: Home) -> None:
    with home.database.writing() as session:
        shard = session.scalars(select(Shard).where(Shard.kind == "encode").limit(1)).one()
        shard.state, shard.owner, shard.leased_until = "leased", "host 1", removals.clock(session) + 60
        run = shard.run_id
    before = owners(home, "forward")
    assert run is not None
    with pytest.raises(Conflict, match=f"run {run} is being indexed by host 1"):
        do(home, a_run(run), "ann")
    assert owners(home, "forward") == before
    assert run in ids(home, Run)


def test_who_dies_before_the_store_is_trimmed_leaves_it_to_the_next_command(
    home: Home, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("api.services.removing.trim", dies)
    with pytest.raises(KeyboardInterrupt):
        do(home, a_dataset("songs"), "ann")
    monkeypatch.undo()
    assert owners(home, "samples") - ids(home, Dataset), "rows that nobody owns"
    assert removals.trim(home) == 1
    assert owners(home, "samples") == ids(home, Dataset)
    assert owners(home, "forward") == ids(home, RunSae)
    with home.database.writing() as session:  # a minute later
        session.scalars(select(Removal)).one().created_at -= timedelta(seconds=61)
    assert removals.trim(home) == 0
    with home.database.reading() as session:
        assert session.scalars(select(Removal)).one().trimmed_at is not None


@on_sqlite
def test_rows_that_a_late_committer_publishes_go_too(home: Home) -> None:
    """A committer may have read the ledger just before the removal, and publish just after it."""
    import lance

    with home.database.reading() as session:
        run = session.scalars(select(Run).join(Dataset).where(Dataset.name == "tales")).one()
    rows = home.store.latest("tokens").to_table(
        filter=f"key >= {run.id << SAMPLE_BITS} AND key < {(run.id + 1) << SAMPLE_BITS}"
    )
    do(home, a_run(run.id), "ann")
    lance.write_dataset(rows, home.store.uri("tokens"), mode="append")
    assert run.id in owners(home, "tokens")
    removals.trim(home)
    assert run.id not in owners(home, "tokens")


@on_sqlite
@pytest.mark.parametrize(
    ("choose", "error", "said"),
    [
        (lambda: a_run(77), NotFound, "there is no run 77"),
        (lambda: a_dataset("song"), NotFound, "did you mean songs"),
        (lambda: a_dataset("songs@run2"), Conflict, "songs@run2 names a run; remove run 2, or the dataset songs"),
        (lambda: a_sae("tiny-qwen3/9-tiny", labels=False), NotFound, "no SAE named"),
    ],
)
def test_what_is_not_there_is_said(
    library: Library, choose: Callable[[], Any], error: type[Exception], said: str, database_url: str
) -> None:
    with pytest.raises(error, match=said):
        tell(library.home, choose())


@on_sqlite
def test_only_an_admin_removes_over_http(home: Home) -> None:
    with home.database.writing() as session:
        secrets = [create_key(session, scope, scope, None, "ann")[1] for scope in ("write", "admin")]
    with serving(create_app(home, access=Access(auth=True))) as url:
        with Client(url, secrets[0]) as writer, pytest.raises(Forbidden, match="write, and not admin"):
            writer.remove_dataset("songs")
        with Client(url, secrets[1]) as admin:
            answer = admin.remove_dataset("songs")
            assert (answer.kind, answer.datasets, len(answer.runs)) == ("dataset", ["songs@1"], 1)
            with pytest.raises(NotFound):
                admin.remove_dataset("songs")
            assert admin.remove_sae(SAE).pairs == 2
            with pytest.raises(NotFound, match="there is no run 99"):
                admin.remove_run(99)
            assert [entry.action for entry in admin.audit().data][:2] == ["sae.remove", "dataset.remove"]


@on_sqlite
def test_the_command_says_what_goes_and_wants_a_yes(
    settings: Settings, home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCOPEBASE_DATABASE_URL", settings.database_url)
    before = ids(home, Run)

    def call(*args: str) -> int:
        monkeypatch.setattr("sys.argv", ["scopebase", "--home", str(settings.home), "delete", *args])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    assert call("dataset", "songs") == 2
    assert "this would remove dataset songs with 1 run, 1 version" in capsys.readouterr().err
    assert ids(home, Run) == before
    assert call("dataset", "songs", "--yes") == 0
    assert "removed dataset songs with 1 run" in capsys.readouterr().out
    assert len(ids(home, Run)) == 2
