"""`scopebase delete run | dataset | sae`: with everything of it, out of both stores."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from schema.errors import InputError
from schema.wire.removals import RemovalAnswer
from scopebase.cli.console import ERRORS, OUT, print_json, size
from scopebase.cli.options import Home, Json, person, settings, wants_json

if TYPE_CHECKING:
    from api.services.removing import Choose

app = typer.Typer(help="Remove a run, a dataset or an SAE, with everything of it.", no_args_is_help=True)
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@app.command()
def run(
    number: Annotated[int, typer.Argument(help="As 'scopebase runs' lists it.")],
    yes: Yes = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """A run with everything that it wrote."""
    from api.services.removing import a_run

    _remove(a_run(number), yes, home, json)


@app.command()
def dataset(
    name: Annotated[str, typer.Argument(help="NAME, all versions of it, or NAME@VERSION.")],
    yes: Yes = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """A dataset with its rows, its runs, and the results of evaluations on it."""
    from api.services.removing import a_dataset

    _remove(a_dataset(name), yes, home, json)


@app.command()
def sae(
    name: Annotated[str, typer.Argument(help="<model>/<layer>-<set>")],
    with_labels: Annotated[bool, typer.Option("--with-labels", help="Its labels may go with it.")] = False,
    yes: Yes = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """An SAE with everything that was indexed with it."""
    from api.services.removing import a_sae

    _remove(a_sae(name, labels=with_labels), yes, home, json)


def _remove(choose: Choose, yes: bool, home: Path | None, json: bool) -> None:
    """Says what would go, asks, and does it."""
    from api.services.removing import do, tell
    from schema.home import open_home

    opened = open_home(settings(home))
    try:
        if not yes:
            _ask(tell(opened, choose))
        answer = do(opened, choose, person())
    finally:
        opened.close()
    if wants_json(json):
        print_json(answer)
    else:
        OUT.print(f"removed {_told(answer)}", markup=False, soft_wrap=True)


def _ask(answer: RemovalAnswer) -> None:
    if not sys.stdin.isatty():
        raise InputError(f"this would remove {_told(answer)}; say so with --yes")
    ERRORS.print(f"This removes {_told(answer)}.", markup=False, soft_wrap=True)
    typer.confirm("Remove it?", abort=True, err=True)


def _told(answer: RemovalAnswer) -> str:
    """In words: what goes, and how much that is."""
    if answer.kind == "run":
        return f"run {answer.name} ({size(answer.bytes)})"
    counts = [("run", len(answer.runs)), ("version", len(answer.datasets)), ("evaluation", answer.evaluations)]
    counts.append(("label", answer.labels))
    parts = [f"{n:,} {what}{'' if n == 1 else 's'}" for what, n in counts if n]
    return f"{answer.kind} {answer.name}" + (f" with {', '.join(parts)} ({size(answer.bytes)})" if parts else "")
