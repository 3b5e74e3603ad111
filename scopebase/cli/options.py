"""Options that every command takes, before or after its name."""

from __future__ import annotations

import getpass
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Optional, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from schema.errors import InputError
from schema.records import Pool
from schema.settings import Settings

Request = TypeVar("Request", bound=BaseModel)


@dataclass
class Globals:
    """What stood before the command's name."""

    home: Path | None = None
    json: bool = False


GLOBALS = Globals()

Home = Annotated[Optional[Path], typer.Option("--home", help="The home to use.", show_default=False)]  # noqa: UP045
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
SaeOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--sae", help="<model>/<layer>-<set>; may be left out where the home has one SAE.", show_default=False
    ),
]
PoolOption = Annotated[
    Pool, typer.Option("--pool", help="any: fires at some token; last: at the last one, as in the paper.")
]
MinSamplesOption = Annotated[
    int, typer.Option("--min-samples", help="A footprint holds what fires in at least so many samples.")
]
AsOfOption = Annotated[Optional[int], typer.Option("--as-of", help="Answer as of this snapshot.", show_default=False)]  # noqa: UP045
MeaningOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--meaning",
        envvar="SCOPEBASE_MEANING",
        help="Sentence model: a sentence-transformers directory or name.",
        show_default=False,
    ),
]


def settings(home: Path | None) -> Settings:
    return Settings.read(home or GLOBALS.home)


def wants_json(json: bool) -> bool:
    return json or GLOBALS.json


def checked(shape: type[Request], asked: dict[str, Any]) -> Request:
    """The request, or a sentence that says what of it is wrong."""
    try:
        return shape(**asked)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}") from None


def read_text(path: str) -> str:
    """A small file that a person named.

    Raises:
        InputError: it cannot be read as text.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"{path}: {reason}") from None


def person() -> str:
    """Who types, for the audit log."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return f"user {os.getuid()}"
