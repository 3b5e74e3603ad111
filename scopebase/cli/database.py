"""`scopebase db upgrade | check`: the schema of the database."""

from __future__ import annotations

from typing import Literal

import typer

from schema.errors import HomeError
from schema.wire.base import SchemaState
from scopebase.cli.console import OUT, print_json
from scopebase.cli.options import Home, Json, settings, wants_json

State = Literal["made", "upgraded", "up to date"]
_DONE: dict[str, State] = {"current": "up to date", "empty": "made", "older": "upgraded"}

app = typer.Typer(help="The schema of the database.", no_args_is_help=True)


@app.command()
def upgrade(home: Home = None, json: Json = False) -> None:
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
    _show(current_revision(database) or "", _DONE[before], json)


@app.command()
def check(home: Home = None, json: Json = False) -> None:
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
    _show(newest_revision(), "up to date", json)


def _show(revision: str, state: State, json: bool) -> None:
    if wants_json(json):
        print_json(SchemaState(revision=revision, state=state))
    else:
        OUT.print(f"schema {revision}: {state}")
