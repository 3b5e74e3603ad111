"""A disk that is really full: one sentence, nothing lost, and the same command goes on once there is room."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.services.library import Library
from api.services.questions.overlap import overlap
from indexer.run import index
from schema.errors import WorkFailed
from schema.home import open_home
from schema.settings import Settings
from tests.indexer.test_run import config, everything
from tests.lengths import LONG

PAGE = 4096
ROOM = "size=64m"
STEP = (12 if LONG else 36) * PAGE
"""By how much the disk grows after each failure."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own in memory, of 64 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", ROOM, "tmpfs", str(folder)], capture_output=True)
    if mount.returncode:
        pytest.skip("nothing can be mounted here; only root fills a disk of its own")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{size}", str(disk)], check=True)


def leave(disk: Path, n_bytes: int) -> None:
    """Makes the disk so small that only so much is free."""
    found = os.statvfs(disk)
    used = (found.f_blocks - found.f_bfree) * found.f_frsize
    resize(disk, f"size={used + n_bytes // PAGE * PAGE}")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, index_args: dict[str, Any], data_dir: Path) -> Settings:
    """Songs and problems, then tales, on a disk with room."""
    settings = Settings.read(tmp_path_factory.mktemp("undisturbed") / "home", {})
    for names in (("songs", "problems"), ("tales",)):
        index(config(index_args, data_dir, names=names, layers="1,2", batch_tokens=512), settings)
    return settings


def asked(settings: Settings) -> Any:
    """An answer over what was complete before the disk was full."""
    home = open_home(settings)
    answer = overlap(Library(home), "tiny-qwen3/2-tiny", ["songs", "problems"], "any", 1)
    home.close()
    return answer.model_dump(exclude={"provenance"})


def test_a_store_that_fills_up_at_any_point_loses_nothing(
    disk: Path, tmp_path: Path, undisturbed: Settings, index_args: dict[str, Any], data_dir: Path
) -> None:
    """From a disk on which an empty table has no room, with a little more after each failure."""
    settings = Settings(disk, f"sqlite:///{tmp_path / 'scopebase.db'}", str(disk / "store"))
    said: list[str] = []
    sizes = itertools.count(4 * PAGE, STEP)
    for names in (("songs", "problems"), ("tales",)):
        plan = config(index_args, data_dir, names=names, layers="1,2", batch_tokens=512)
        for size in sizes:
            resize(disk, f"size={size}")
            try:
                index(plan, settings)
                break
            except WorkFailed as error:
                said.append(str(error))
            if names == ("tales",):
                assert asked(settings) == asked(undisturbed)
    assert everything(settings) == everything(undisturbed)
    assert len(said) > (8 if LONG else 2)
    assert {text.partition(";")[0] for text in said} == {f"the disk of {settings.store_url} is full"}


@pytest.mark.skipif(not LONG, reason="make torture fills it; the suite fills a store")
def test_a_home_whose_disk_is_full_goes_on_when_there_is_room(
    disk: Path, undisturbed: Settings, index_args: dict[str, Any], data_dir: Path
) -> None:
    """Database and store on the full disk; whichever notices first, the command ends with 1 and one sentence."""
    settings = Settings.read(disk / "home", {})
    before = config(index_args, data_dir, names=("songs", "problems"), layers="1,2", batch_tokens=512)
    index(before, settings)
    leave(disk, 100_000)
    command = [sys.executable, "-m", "scopebase", "--home", str(settings.home), "index", "--layers", "1,2"]
    tales = [
        "--batch-tokens",
        "512",
        "--max-tokens",
        str(before.max_tokens),
        "--dataset",
        f"tales={data_dir}/tales.jsonl",
    ]
    source = ["--set", "tiny", "--model", before.model, "--sae", before.sae]
    done = subprocess.run([*command, *tales, *source], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert re.fullmatch("scopebase: .* full; .* run the same command again.*", done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr
    assert asked(settings) == asked(undisturbed)

    resize(disk, ROOM)
    again = subprocess.run([*command, *tales, *source], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert everything(settings) == everything(undisturbed)
