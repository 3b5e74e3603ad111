"""A disk that is full somewhere in the middle: one sentence, and the same command goes on where there is room again."""

from __future__ import annotations

import os
import subprocess
from functools import partial
from pathlib import Path

from schema.settings import Settings
from tests.torture.case import run_index
from tests.torture.children import REFUSED, Child
from tests.torture.world import World, in_words, told

PAGE = 4096
ROOM = 64 << 20


def can_mount(folder: Path) -> bool:
    """Whether a file system can be made here; only root can."""
    folder.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], capture_output=True).returncode:
        return False
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    return True


def full(world: World) -> str:
    """A file system of a random size between too small for the first table and large enough; grown a little after each failure."""
    disk = world.folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(disk)], check=True)
    try:
        return _filled(world, disk)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def _filled(world: World, disk: Path) -> str:
    whole = world.rng.random() < 0.5
    settings = (
        Settings.read(disk / "home", {})
        if whole
        else Settings(disk, f"sqlite:///{world.folder / 'scopebase.db'}", str(disk / "store"))
    )
    size = world.rng.randrange(8 * PAGE, int(world.case.n_bytes * 0.8), PAGE)
    failures = 0
    for _ in range(6):
        _resize(disk, size)
        ended = Child(partial(run_index, world.case.config, settings)).wait()
        in_words(ended)
        if ended.status != REFUSED:
            break
        assert "full" in ended.said, ended.said
        failures += 1
        size = _used(disk) + world.rng.randrange(4 * PAGE, 200 * PAGE, PAGE)
    _resize(disk, ROOM)
    world.survived(settings)
    return told(f"{'home' if whole else 'store'} on a disk that was full {failures} times", failures > 0)


def _resize(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def _used(disk: Path) -> int:
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize
