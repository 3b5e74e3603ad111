"""Every kind of damage is found, named, and mended where it can be; a whole home is clean."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
import torch
from sqlalchemy import select, update

from indexer.golden import check_golden, check_sae
from indexer.run import index
from schema.errors import Conflict
from schema.home import Home, open_home
from schema.layout import PROFILES, feature_key, sample_key
from schema.settings import Settings
from schema.steer import SteeringVector
from schema.store import Store
from schema.tables import Model, Run, RunSae, Sae, Segment, Shard
from schema.upkeep import remove_rows
from schema.verify import verify
from scopebase.cli import main
from tests.indexer.test_run import config

NAMES = ("problems", "songs", "tales")


@pytest.fixture
def home(tmp_path: Path, indexed: Settings) -> Iterator[Home]:
    shutil.copytree(indexed.home, tmp_path / "home")
    opened = open_home(Settings.read(tmp_path / "home", {}))
    yield opened
    opened.close()


def first_pair(home: Home) -> RunSae:
    with home.database.reading() as session:
        return session.scalars(select(RunSae).order_by(RunSae.id)).first() or pytest.fail("no pair")


def replace_rows(home: Home, table: str, rows: pa.Table) -> None:
    for key in rows.column("key").to_pylist():
        remove_rows(home.store, table, key, key + 1)
    lance.write_dataset(rows, home.store.uri(table), mode="append")


def test_a_whole_home_is_clean(home: Home) -> None:
    verdict = verify(home, deep=True)
    assert verdict.findings == []
    assert verdict.clean
    assert verdict.counts["finished runs"] == 3
    assert verdict.counts["rows of profiles"] == 12
    assert verdict.counts["data files"] > 6


def test_rows_that_nobody_owns_are_found_and_removed(home: Home) -> None:
    row = home.store.latest("tokens").to_table(filter="key >= 0", limit=1)
    stray = row.set_column(0, row.schema.field("key"), pa.array([sample_key(99, 3)], pa.int64()))
    lance.write_dataset(stray, home.store.uri("tokens"), mode="append")
    found = verify(home)
    assert [(f.where, f.mended) for f in found.findings] == [("tokens, owner 99", False)]
    assert not found.clean
    assert verify(home, mend=True).clean
    assert verify(home).findings == []


def lose_forward(home: Home) -> None:
    key = sample_key(first_pair(home).id, 4)
    remove_rows(home.store, "forward", key, key + 1)


def double_forward(home: Home) -> None:
    key = sample_key(first_pair(home).id, 4)
    lance.write_dataset(
        home.store.latest("forward").to_table(filter=f"key = {key}"), home.store.uri("forward"), mode="append"
    )


def lose_profile(home: Home) -> None:
    key = sample_key(first_pair(home).id)
    remove_rows(home.store, "profiles", key, key + 1)


def lose_tokens(home: Home) -> None:
    key = sample_key(first_pair(home).run_id, 0)
    remove_rows(home.store, "tokens", key, key + 1)


def lose_postings(home: Home) -> None:
    with home.database.reading() as session:
        segment = session.scalars(select(Segment.id).where(Segment.run_sae_id == first_pair(home).id)).first()
    assert segment is not None
    remove_rows(home.store, "postings", feature_key(segment, 7), feature_key(segment, 8))


def lose_segment(home: Home) -> None:
    with home.database.writing() as session:
        session.execute(update(Segment).where(Segment.run_sae_id == first_pair(home).id).values(stop=Segment.stop - 1))


def miscount(home: Home) -> None:
    """A profile in which one feature fires in one sample more."""
    row = home.store.rows("profiles", [sample_key(first_pair(home).id)])
    values = row.column("samples_any").combine_chunks().values.to_numpy().copy()
    values[int(np.flatnonzero(values)[0])] += 1
    place = PROFILES.get_field_index("samples_any")
    column = pa.ListArray.from_arrays([0, len(values)], pa.array(values)).cast(PROFILES.field(place).type)
    replace_rows(home, "profiles", row.set_column(place, PROFILES.field(place), column))


@pytest.mark.parametrize(
    ("damage", "said", "deep"),
    [
        (lose_forward, "rows of forward and not", False),
        (double_forward, "rows of forward and not", False),
        (lose_profile, "0 rows of profiles and not 1", False),
        (lose_tokens, "rows of tokens and not", False),
        (lose_postings, "255 rows of postings and not 256", False),
        (lose_segment, "that do not cover its", False),
        (miscount, r"a profile of tiny-qwen3/\d-tiny that counts \d+ samples for feature", True),
    ],
)
def test_a_damaged_run_is_taken_out_and_the_same_command_makes_it_anew(
    home: Home,
    damage: Callable[[Home], None],
    said: str,
    deep: bool,
    index_args: dict[str, Any],
    data_dir: Path,
) -> None:
    run = first_pair(home).run_id
    damage(home)
    found = verify(home, deep=deep)
    assert [f.where.split(",")[0] for f in found.findings] == [f"run {run}"]
    assert re.search(said, found.findings[0].problem)
    assert verify(home, mend=True, deep=deep).clean
    with home.database.reading() as session:
        assert session.get(Run, run) is None
    index(config(index_args, data_dir, names=NAMES, layers="all"), home.settings)
    assert verify(home, deep=True).findings == []


def test_a_miscounted_profile_is_seen_only_by_counting_anew(home: Home) -> None:
    miscount(home)
    assert verify(home).findings == []
    assert len(verify(home, deep=True).findings) == 1


def test_lost_and_cut_files_are_named(home: Home) -> None:
    folder = Path(home.store.uri("postings"), "data")
    files = sorted(folder.iterdir(), key=lambda path: -path.stat().st_size)
    files[0].write_bytes(files[0].read_bytes()[:-10])
    found = verify(home)
    assert [f.where for f in found.findings] == [f"postings, {files[0].name}"]
    assert "bytes and not" in found.findings[0].problem
    files[0].unlink()
    found = verify(Home(home.settings, home.database, Store(home.store.url)))
    assert (found.findings[0].problem, found.clean) == ("the file is not there", False)


def test_a_saved_vector_with_other_bytes_is_named(home: Home) -> None:
    with home.database.writing() as session:
        model = session.scalars(select(Model)).one()
        for name, said in (("calm", b"\1" * 128), ("loud", b"\2" * 128)):
            sha256 = hashlib.sha256(said).hexdigest()
            row = {"layers": [0], "d_model": 32, "data": b"\1" * 128, "sha256": sha256, "author": "ann"}
            session.add(SteeringVector(name=name, version=1, model_id=model.id, **row))
    verdict = verify(home)
    assert verdict.counts["saved vectors"] == 2
    assert [(f.where, f.problem) for f in verdict.findings] == [
        ("vector loud@1", "its bytes have another hash than when it was saved")
    ]


def test_nothing_is_mended_while_something_is_indexed(home: Home) -> None:
    with home.database.writing() as session:
        shard = session.scalars(select(Shard).limit(1)).one()
        shard.state, shard.owner, shard.leased_until = "leased", "host 1", 4e9
    assert verify(home).clean
    with pytest.raises(Conflict, match="something is being indexed"):
        verify(home, mend=True)


def test_saes_encode_here_as_they_should(home: Home) -> None:
    assert check_golden(torch.device("cpu")) == []
    with home.database.reading() as session:
        known = session.scalars(select(Sae)).all()
    assert [check_sae(sae, torch.device("cpu")) for sae in known] == [None] * 4


def test_an_encoder_that_subtracts_the_bias_is_found_out(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    from indexer.saes import Sae as Tensors

    real = Tensors.encoder_tensors

    def subtracting(self: Tensors) -> Any:
        weight, bias = real(self)
        return weight, bias - weight @ self.b_dec

    monkeypatch.setattr(Tensors, "encoder_tensors", subtracting)
    assert any(problem.startswith("top-k") for problem in check_golden(torch.device("cpu")))


def test_the_command_prints_a_verdict_and_exits_by_it(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(*args: str) -> int:
        monkeypatch.setattr("sys.argv", ["scopebase", "--home", str(home.settings.home), "verify", *args])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    assert call("--saes") == 0
    assert capsys.readouterr().out.rstrip().endswith("clean")
    lose_profile(home)
    assert call() == 1
    out = capsys.readouterr().out
    assert "WRONG: run" in out
    assert "1 thing is wrong" in out
    assert call("--mend") == 0
    assert "mended: run" in capsys.readouterr().out
