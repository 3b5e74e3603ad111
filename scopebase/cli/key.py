"""`scopebase key create | list | revoke`: API keys."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.text import Text

from schema.errors import InputError
from schema.wire.access import KeyItem, NewKey
from schema.wire.base import Page
from schema.words import Scope
from scopebase.cli.console import ERRORS, OUT, print_json, table
from scopebase.cli.options import Home, Json, person, settings, wants_json

if TYPE_CHECKING:
    from schema.lab import Key

app = typer.Typer(help="API keys: who may ask the service, and what they may do.", no_args_is_help=True)
STYLES = {"live": "green", "expired": "yellow", "revoked": "dim"}
KeyName = Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is; the audit log knows it by this name.")]


@app.command()
def create(
    name: KeyName,
    scope: Annotated[
        Scope,
        typer.Option("--scope", help="What it may do: ask; also label; also write rules and imports; everything."),
    ] = "read",
    expires: Annotated[str, typer.Option("--expires", help="12h, 90d, 4w or never.")] = "90d",
    secret_env: Annotated[
        str | None,
        typer.Option(
            "--secret-env",
            help="The variable that holds the secret to use, for a deployment's first key; a second time changes nothing.",
            show_default=False,
        ),
    ] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Make a key and print it, once: only its hash is kept."""
    from schema.home import open_home
    from schema.keys import create_key, find_given, lifetime

    lasts = lifetime(expires)
    given = None if secret_env is None else _given(secret_env)
    found = open_home(settings(home))
    try:
        with found.database.writing(alone=True) as session:
            known = find_given(session, name, given) if given else None
            key, secret = (known, given) if known else create_key(session, name, scope, lasts, person(), given)
            made = NewKey(**_item(key).model_dump(), secret=secret or "")
    finally:
        found.close()
    if wants_json(json):
        print_json(made)
        return
    if given is None:
        OUT.print(secret, markup=False, soft_wrap=True)
    until = "for ever" if made.expires_at is None else f"until {made.expires_at:%Y-%m-%d %H:%M} UTC"
    keep = f"its secret is what {secret_env} holds" if given else "keep the key, it cannot be shown again"
    ERRORS.print(f"{name} may {', '.join(made.scopes)} {until}; {keep}", markup=False, soft_wrap=True)


@app.command("list")
def list_all(home: Home = None, json: Json = False) -> None:
    """Keys, the expired and revoked ones too."""
    from schema.home import open_home
    from schema.keys import list_keys

    found = open_home(settings(home))
    try:
        with found.database.reading() as session:
            page = Page[KeyItem](data=[_item(key) for key in list_keys(session)], next_cursor=None)
    finally:
        found.close()
    if wants_json(json):
        print_json(page)
        return
    made = table("key", "begins", "may", "state", "made", "expires", "last used")
    for k in page.data:
        moments = (f"{at:%Y-%m-%d}" if at else "never" for at in (k.created_at, k.expires_at, k.used_at))
        made.add_row(k.id, f"{k.prefix}…", k.scopes[-1], Text(k.state, style=STYLES[k.state]), *moments)
    OUT.print(made)


@app.command()
def revoke(name: KeyName, home: Home = None, json: Json = False) -> None:
    """End a key, for good; a running service knows within two seconds."""
    from schema.home import open_home
    from schema.keys import revoke_key

    found = open_home(settings(home))
    try:
        with found.database.writing(alone=True) as session:
            item = _item(revoke_key(session, name, person()))
    finally:
        found.close()
    if wants_json(json):
        print_json(item)
    else:
        OUT.print(f"{name}: revoked on {item.revoked_at:%Y-%m-%d %H:%M} UTC", markup=False)


def _given(variable: str) -> str:
    found = os.environ.get(variable)
    if not found:
        raise InputError(
            f"--secret-env {variable}: that variable is not set; put the secret there, or leave the option out"
        )
    return found


def _item(key: Key) -> KeyItem:
    from schema.keys import state_of

    moments = {name: getattr(key, name) for name in ("created_at", "expires_at", "revoked_at", "used_at")}
    return KeyItem(
        id=key.name, prefix=key.prefix, scopes=cast("list[Scope]", key.scopes), state=state_of(key), **moments
    )
