"""`scopebase label ...`: what features mean, made, found, discussed and taken back."""

from __future__ import annotations

import getpass
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from pydantic import BaseModel, ValidationError
from rich.text import Text

from schema.errors import InputError
from schema.wire.base import Page
from schema.wire.labels import (
    CommentItem,
    LabelChange,
    LabelEventItem,
    LabelItem,
    LabelSource,
    NewLabel,
)
from scopebase.cli.answers import library
from scopebase.cli.console import ERRORS, OUT, print_json, shown, table
from scopebase.cli.options import Home, Json, SaeOption, wants_json

if TYPE_CHECKING:
    from api.services.library import Library

app = typer.Typer(
    name="label", help="Labels: what features mean, shared in a lab.", no_args_is_help=True, rich_markup_mode=None
)
Uid = Annotated[
    str, typer.Argument(metavar="LABEL", help="The label's id; its first letters do where no other has them.")
]
Author = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--author", help="Who does it. [default: the user of this machine]", show_default=False),
]
Limit = Annotated[int, typer.Option("--limit", min=1, max=1000)]
Cursor = Annotated[Optional[str], typer.Option("--cursor", help="Where the next page begins.", show_default=False)]  # noqa: UP045
WIDTH = 70
"""Characters of a label's text in a table."""


def author_of(given: str | None) -> str:
    """Who does it: as given, else the user of this machine."""
    if given is not None and not 0 < len(given.strip()) <= 128:
        raise InputError("--author: 1 to 128 characters")
    try:
        return given or getpass.getuser()
    except (OSError, KeyError):
        raise InputError("this machine has no name for you; give one with --author") from None


@contextmanager
def checked() -> Iterator[None]:
    """A field that is wrong, in one sentence."""
    try:
        yield
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        raise InputError(f"{'.'.join(map(str, wrong['loc'])) or 'the label'}: {wrong['msg']}") from None


@app.command("set")
def set_(
    feature: Annotated[str, typer.Argument(metavar="FEATURE", help="<sae>/<index>, or LABEL to change that one.")],
    text: Annotated[Optional[str], typer.Argument(metavar="TEXT", show_default=False)] = None,  # noqa: UP045
    score: Annotated[Optional[float], typer.Option("--score", show_default=False)] = None,  # noqa: UP045
    score_method: Annotated[Optional[str], typer.Option("--score-method", show_default=False)] = None,  # noqa: UP045
    licence: Annotated[Optional[str], typer.Option("--licence", show_default=False)] = None,  # noqa: UP045
    version: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--version", help="Refuse if the label is not at this version.", show_default=False),
    ] = None,
    author: Author = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Label a feature, or change a label."""
    from api.services.labels import book

    given: dict[str, Any] = {"text": text, "score": score, "score_method": score_method, "licence": licence}
    given = {name: value for name, value in given.items() if value is not None}
    with library(home) as books, checked():
        if "/" in feature:
            if text is None:
                raise InputError("say what the feature means: scopebase label set FEATURE 'TEXT'")
            made = book.create(books, NewLabel(feature=feature, **given), author_of(author))
        else:
            uid = full_id(books, feature)
            seen = version or book.get(books, uid).version
            made = book.change(books, uid, LabelChange(version=seen, **given), author_of(author))
    _show(made, json)


@app.command("list")
def list_(
    sae: SaeOption = None,
    feature: Annotated[Optional[str], typer.Option("--feature", help="<sae>/<index>.", show_default=False)] = None,  # noqa: UP045
    author: Annotated[Optional[str], typer.Option("--author", show_default=False)] = None,  # noqa: UP045
    source: Annotated[Optional[LabelSource], typer.Option("--source", show_default=False)] = None,  # noqa: UP045
    text: Annotated[Optional[str], typer.Option("--text", help="Contained in the label.", show_default=False)] = None,  # noqa: UP045
    updated_since: Annotated[
        Optional[datetime],  # noqa: UP045
        typer.Option("--updated-since", help="Changed at or after, UTC.", show_default=False),
    ] = None,
    deleted: Annotated[bool, typer.Option("--deleted", help="The deleted ones instead.")] = False,
    limit: Limit = 50,
    cursor: Cursor = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Labels, newest first."""
    from api.services.labels import book

    which = book.Filter(sae, feature, author, source, text, updated_since, deleted)
    with library(home) as books:
        page = book.list_labels(books, which, limit, cursor)
    if wants_json(json):
        print_json(page)
        return
    show_labels(page.data)
    _more(page)


@app.command("show")
def show(label: Uid, home: Home = None, json: Json = False) -> None:
    """One label, with its provenance, comments and votes."""
    from api.services.labels import book, talk

    with library(home) as books:
        item = book.get(books, full_id(books, label))
        said: Page[CommentItem] = talk.comments(books, item.id)
    _show(item, json)
    if not wants_json(json):
        for comment in said.data:
            OUT.print(Text(f"{comment.at:%Y-%m-%d %H:%M} {shown(comment.author)}: {shown(comment.text)}", style="dim"))


@app.command("vote")
def vote(
    label: Uid,
    down: Annotated[bool, typer.Option("--down", help="Against it.")] = False,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Take your vote back.")] = False,
    author: Author = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Vote for a label; one vote each, which may be changed."""
    from api.services.labels import talk

    with library(home) as books:
        value = 0 if withdraw else -1 if down else 1
        _show(talk.vote(books, full_id(books, label), author_of(author), value), json)


@app.command("comment")
def comment(
    label: Uid,
    text: Annotated[str, typer.Argument(metavar="TEXT")],
    author: Author = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Say something about a label."""
    from api.services.labels import talk
    from schema.wire.labels import NewComment

    with library(home) as books, checked():
        said = NewComment(text=text)
        made = talk.comment(books, full_id(books, label), author_of(author), said.text)
    if wants_json(json):
        print_json(made)
    else:
        ERRORS.print("said")


@app.command("history")
def history(label: Uid, limit: Limit = 50, cursor: Cursor = None, home: Home = None, json: Json = False) -> None:
    """Every change of a label, newest first; of deleted labels too."""
    from api.services.labels import talk

    with library(home) as books:
        page: Page[LabelEventItem] = talk.history(books, full_id(books, label), limit, cursor)
    if wants_json(json):
        print_json(page)
        return
    made = table("when", "who", "did", "before", "after")
    for event in page.data:
        made.add_row(
            f"{event.at:%Y-%m-%d %H:%M}", shown(event.actor), event.action, *map(_fields, (event.before, event.after))
        )
    OUT.print(made)
    _more(page)


@app.command("undo")
def undo(label: Uid, author: Author = None, home: Home = None, json: Json = False) -> None:
    """Take a label's last change back. A deletion too; again, the one before."""
    from api.services.labels import talk

    with library(home) as books:
        _show(talk.undo(books, full_id(books, label), author_of(author)), json)


@app.command("remove")
def remove(label: Uid, author: Author = None, home: Home = None, json: Json = False) -> None:
    """Delete a label; `scopebase label undo` brings it back."""
    from api.services.labels import book

    with library(home) as books:
        _show(book.delete(books, full_id(books, label), author_of(author)), json)


def full_id(books: Library, start: str) -> str:
    """The id of the one label that begins so."""
    from api.services.labels.book import complete_id

    return complete_id(books, start)


def show_labels(items: Sequence[LabelItem]) -> None:
    """A row a label; one SAE is named once, above."""
    one = common_sae(items)
    made = table("label", "feature", "text", "by", "votes", title=one, right={"votes"})
    for item in items:
        feature = item.feature if one is None else str(item.index)
        made.add_row(short(item.id), feature, brief(item.text), by(item), str(item.votes or ""))
    OUT.print(made if items else "No labels. 'scopebase label describe' makes some of what is indexed.")


def common_sae(items: Iterable[LabelItem]) -> str | None:
    """The SAE of all of them; None where there are several."""
    saes = {item.sae for item in items}
    return saes.pop() if len(saes) == 1 else None


def short(uid: str) -> str:
    """Enough of an id to name it by: of one that says where it comes from, what follows that."""
    return uid.rpartition(":")[2][:12]


def brief(text: str) -> str:
    return shown(text if len(text) <= WIDTH else text[: WIDTH - 1] + "…")


def by(item: LabelItem) -> str:
    """Who says it."""
    who = item.explainer or item.author
    return shown(who if item.source == "person" else f"{who} ({item.source})")


def _fields(changed: dict[str, Any] | None) -> str:
    return "" if changed is None else brief(", ".join(f"{name}: {value}" for name, value in changed.items()))


def _more(page: Page[Any]) -> None:
    if page.next_cursor:
        OUT.print(f"the next page: --cursor {page.next_cursor}", style="dim", markup=False)


def _show(item: BaseModel, json: bool) -> None:
    if wants_json(json):
        print_json(item)
        return
    assert isinstance(item, LabelItem)
    state = "  deleted" if item.deleted else ""
    OUT.print(Text.assemble((item.feature, "bold cyan"), f"  {shown(item.text)}", (state, "red")))
    score = "" if item.score is None else f" · {item.score_method} {item.score:.3g}"
    came = f" · through {len(item.origin)} exchange{'s' if len(item.origin) > 1 else ''}" if item.origin else ""
    line = f"{item.id} · {by(item)} · version {item.version} · votes {item.votes}{score}{came}"
    OUT.print(Text(line, style="dim"))


def pack_path(given: str) -> Path:
    path = Path(given).expanduser()
    if not path.exists():
        raise InputError(f"there is no {path}; give a label pack: .jsonl, .jsonl.gz, .parquet, or a directory of those")
    return path
