"""`scopebase db upgrade | check`: the schema of the database."""

from __future__ import annotations

import typer

from schema.errors import HomeError
from scopebase.cli.console import OUT
from scopebase.cli.options import Home, settings

app = typer.Typer(help="The schema of the database.", no_args_is_help=True)


@app.command()
def upgrade(home: Home = None) -> None:
    """Make the database, or bring an older one up to date."""
    from schema.database import Database, check_revision, current_revision
    from schema.database import upgrade as to_newest
    from schema.home import check_writable

    where = settings(home)
    check_writable(where)
    if where.database_file is not None:
        where.database_file.parent.mkdir(parents=True, exist_ok=True)
    database = Database(where.database_url)
    before = check_revision(database)
    if before != "current":
        to_newest(database)
    OUT.print(
        f"schema {current_revision(database)}: {'was up to date' if before == 'current' else 'made' if before == 'empty' else 'upgraded'}"
    )


@app.command()
def check(home: Home = None) -> None:
    """Tell whether the database's schema is the one this Scopebase needs."""
    from schema.database import check_revision, current_revision, newest_revision
    from schema.home import find_home, open_database

    where = settings(home)
    if where.database_file is not None and not where.database_file.exists():
        raise HomeError(
            f"there is no database {where.database_file}; 'scopebase db upgrade' or 'scopebase index' makes one"
        )
    database = open_database(where)
    state = check_revision(database)
    if state != "current":
        raise HomeError(
            f"schema {current_revision(database)} is not {newest_revision()}; bring it up to date with 'scopebase db upgrade'"
        )
    find_home(where)
    OUT.print(f"schema {newest_revision()}: up to date")
