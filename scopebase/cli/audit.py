"""`scopebase audit`: who wrote what."""

from __future__ import annotations

import json as encoding
from datetime import datetime
from typing import Annotated

import typer
from rich.text import Text

from scopebase.cli.answers import library
from scopebase.cli.console import OUT, print_json, shown, table
from scopebase.cli.options import Home, Json, wants_json


def audit(
    actor: Annotated[
        str | None, typer.Option("--actor", help="Only this key's or person's.", show_default=False)
    ] = None,
    action: Annotated[
        str | None, typer.Option("--action", help="Only this; 'label.*' for all of a kind.", show_default=False)
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", help="Only what was done to this.", show_default=False)
    ] = None,
    since: Annotated[
        datetime | None, typer.Option("--since", help="Only from this day or moment on, UTC.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Entries shown.")] = 20,
    cursor: Annotated[
        str | None, typer.Option("--cursor", help="Where the next page begins.", show_default=False)
    ] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """The log of writes, newest first."""
    from api.services.access.audit import entries

    with library(home) as books, books.home.database.reading() as session:
        page = entries(session, actor, action, target, since, limit, cursor)
    if wants_json(json):
        print_json(page)
        return
    made = table("when (UTC)", "who", "did", "to", "more")
    for entry in page.data:
        more = "" if entry.detail is None else encoding.dumps(entry.detail, ensure_ascii=False)
        words = (shown(word) for word in (entry.actor, entry.action, entry.target, more))
        made.add_row(f"{entry.at:%Y-%m-%d %H:%M:%S}", *(Text(word) for word in words))
    OUT.print(made)
    if page.next_cursor:
        OUT.print(f"\nThe next page: --cursor {page.next_cursor}", style="dim", markup=False)
