"""`scopebase label search | embed`: features by what their labels say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from schema.wire.labels import FeaturesFound, How
from scopebase.cli.answers import library
from scopebase.cli.console import ERRORS, OUT, DrawnProgress, print_json, table
from scopebase.cli.labels import Limit, brief, by, checked, common_sae
from scopebase.cli.options import Home, Json, MeaningOption, SaeOption, wants_json

if TYPE_CHECKING:
    from api.services.library import Library


def search(
    text: Annotated[str, typer.Argument(metavar="TEXT")],
    sae: SaeOption = None,
    how: Annotated[How, typer.Option("--how", help="text: by words; meaning: by a sentence model; both.")] = "text",
    meaning: MeaningOption = None,
    limit: Limit = 20,
    home: Home = None,
    json: Json = False,
) -> None:
    """Features by what their labels say."""
    from api.services.labels.features import find_features
    from schema.wire.labels import LabelSearch

    with library(home) as books, checked():
        with_meaning(books, meaning)
        asked = LabelSearch(text=text, sae=sae, how=how, limit=limit)
        found: FeaturesFound = find_features(books, asked.text, asked.sae, asked.how, asked.limit)
    if wants_json(json):
        print_json(found)
        return
    one = common_sae(each.label for each in found.data)
    made = table("feature", "score", "label", "by", "votes", title=one, right={"score", "votes"})
    for each in found.data:
        feature = each.id if one is None else str(each.index)
        made.add_row(feature, f"{each.score:.3f}", brief(each.label.text), by(each.label), str(each.label.votes or ""))
    OUT.print(made if found.data else "No label says that.")


def embed(meaning: MeaningOption = None, home: Home = None) -> None:
    """Give every label its vector. Search by meaning needs it; it does a few by itself."""
    from api.services.labels import search

    with library(home) as books:
        with_meaning(books, meaning)
        with DrawnProgress().bar("labels read by the sentence model") as bar:
            n = search.embed(books, bar.advance)
    ERRORS.print(f"{n:,} changes of labels read")


def with_meaning(books: Library, source: str | None) -> None:
    """Joins the library with the sentence model that is named."""
    from scopebase.meaning import SentenceModel

    books.meaning = SentenceModel(source) if source else None
