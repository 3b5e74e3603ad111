"""Options that the commands of `scopebase rule` share, and requests made of them."""

from __future__ import annotations

import getpass
import json as json_
from typing import TYPE_CHECKING, Annotated, Any, Optional, TypeVar

import typer
from pydantic import TypeAdapter, ValidationError

from schema.errors import InputError
from schema.wire.base import Wire

if TYPE_CHECKING:
    from api.services.library import Library

Body = TypeVar("Body", bound=Wire)
MaybeText = Optional[str]  # noqa: UP045 - Typer on Python 3.11 reads this form
MaybeTexts = Optional[list[str]]  # noqa: UP045
MaybeNumber = Optional[int]  # noqa: UP045
MaybeFlag = Optional[bool]  # noqa: UP045

Saes = Annotated[
    MaybeTexts,
    typer.Option(
        "--sae",
        help="Once for each layer; all SAEs that the dataset was indexed with unless given.",
        show_default=False,
    ),
]
LabelField = Annotated[str, typer.Option("--label-field", help="The field that holds the class.")]
Positive = Annotated[str, typer.Option("--positive", help="Its value in the positive class.")]
Where = Annotated[
    MaybeText, typer.Option("--where", help='A slice, as JSON: \'{"language": "en"}\'.', show_default=False)
]
Ks = Annotated[str, typer.Option("--k", help="How many features of a layer, with commas.")]
Share = Annotated[float, typer.Option("--discovery-share", help="The rest is held out.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of the split and the bootstrap.")]
Version = Annotated[MaybeNumber, typer.Option("--version", min=1, help="The newest unless given.", show_default=False)]
Author = Annotated[MaybeText, typer.Option("--author", help="Your user name unless given.", show_default=False)]
BasedOn = Annotated[
    MaybeNumber,
    typer.Option(
        "--based-on",
        min=0,
        help="The newest version that you know, 0 for none: refused if there is another.",
        show_default=False,
    ),
]
Description = Annotated[MaybeText, typer.Option("--description", show_default=False)]
RuleName = Annotated[str, typer.Argument(metavar="NAME", help="The rule's name.")]
Group = Annotated[MaybeText, typer.Option("--group-by", help="Each value of this field apart.", show_default=False)]


def saes_for(books: Library, named: list[str] | None, datasets: list[str]) -> list[str]:
    """Those named, or every SAE that has all of the datasets, if they are of one set."""
    from api.services.rules.ground import saes_of

    return named or saes_of(books, datasets)


def author_name(author: str | None) -> str:
    return author or getpass.getuser()


def numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text!r}: whole numbers with commas, like 1,2,5,10") from None


def read_json(what: str, text: str | None) -> Any:
    if text is None:
        return None
    try:
        return json_.loads(text)
    except ValueError as error:
        raise InputError(f"{what} {text[:60]!r} is no JSON: {error}") from None


def checked(adapter: TypeAdapter[Any], value: Any) -> Any:
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise InputError(_sentence(error)) from None


def body_of(shape: type[Body], **fields: Any) -> Body:
    """A request, refused in the words that the service uses."""
    try:
        return shape(**fields)
    except ValidationError as error:
        raise InputError(_sentence(error)) from None


def _sentence(error: ValidationError) -> str:
    parts = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}".removeprefix(": ") for each in error.errors())
    return "; ".join(parts)[:1000]
