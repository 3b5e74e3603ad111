"""`scopebase backup` and `scopebase restore`: both stores, to one consistent point."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scopebase.cli.console import ERRORS, OUT, size
from scopebase.cli.options import Home, settings


def backup(
    folder: Annotated[Path, typer.Argument(help="A directory that is not there yet.", show_default=False)],
    home: Home = None,
) -> None:
    """Copy both stores to one consistent point, while they are used."""
    from schema.backup import back_up
    from schema.home import open_home

    opened = open_home(settings(home))
    try:
        with ERRORS.status("backing up") as status:
            made = back_up(opened, folder, status.update)
    finally:
        opened.close()
    OUT.print(
        f"{folder}: {sum(made.rows.values()):,} rows and {len(made.files) - 1:,} files, {size(made.n_bytes)}, schema {made.revision}",
        markup=False,
        soft_wrap=True,
    )


def restore(
    folder: Annotated[Path, typer.Argument(help="A backup.", show_default=False)],
    home: Home = None,
) -> None:
    """Make a home of a backup; its database may be of another kind than the one that was backed up."""
    from schema.backup import restore as bring_back

    where = settings(home)
    with ERRORS.status("restoring") as status:
        made = bring_back(folder, where, status.update)
    OUT.print(
        f"{where.home}: as it was at {made.made_at}; 'scopebase verify' holds both stores against each other",
        markup=False,
        soft_wrap=True,
    )
