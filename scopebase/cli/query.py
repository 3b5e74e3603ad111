"""`scopebase query`: features that meet a condition over datasets, slices, labels and comparisons."""

from __future__ import annotations

import json as json_module
from typing import Annotated, Any, Optional

import typer
from pydantic import BaseModel, ValidationError

from schema.errors import InputError
from schema.wire.query import QuerySort
from scopebase.cli.answers import library
from scopebase.cli.console import print_json
from scopebase.cli.expression import parse, parse_pair
from scopebase.cli.options import AsOfOption, Home, Json, PoolOption, SaeOption, read_text, wants_json
from scopebase.cli.query_tables import show


def query(
    expression: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(
            help="A condition, such as 'gsm8k >= 5% and not math >= 5%', 'mmlu[subject=anatomy] and label ~ bone', "
            "'q(a, b) <= 0.05 and lift(a, b) >= 2', 'density <= 1%'. A number with % or a point is a share of the samples, "
            "a whole number is so many samples.",
            show_default=False,
        ),
    ] = None,
    where: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--where", help="The condition as JSON, or @FILE that holds it.", show_default=False),
    ] = None,
    sae: SaeOption = None,
    pool: PoolOption = "any",
    dataset: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--dataset", help="Shown beside those that the condition names; may be repeated."),
    ] = None,
    compare: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--compare", help="'A, B': two datasets or slices, for lift, difference and q.", show_default=False
        ),
    ] = None,
    group_by: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--group-by", help="A field: one column for each of its values.", show_default=False),
    ] = None,
    length_control: Annotated[
        bool, typer.Option("--length-control", help="Also compare samples of like length only.")
    ] = False,
    sort: Annotated[
        Optional[QuerySort],  # noqa: UP045
        typer.Option("--sort", help="What comes first; by default rate_difference or rate.", show_default=False),
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="Worst first.")] = False,
    samples: Annotated[int, typer.Option("--samples", min=0, max=10, help="Proving samples a feature.")] = 0,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Features shown.")] = 20,
    cursor: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--cursor", help="Where the next page begins.", show_default=False),
    ] = None,
    as_of: AsOfOption = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Features that meet a condition: any and, or, not over datasets, slices, labels and comparisons."""
    from api.services.query.query import query_features
    from schema.wire.query import FeatureQuery

    body = {
        "where": _condition(expression, where),
        "sae": sae,
        "pool": pool,
        "datasets": dataset or [],
        "compare": parse_pair(compare) if compare else None,
        "group_by": group_by,
        "length_control": length_control,
        "sort": sort,
        "reverse": reverse,
        "include": ["samples"] if samples else [],
        "samples": samples or 2,
        "limit": limit,
        "cursor": cursor,
        "as_of": as_of,
    }
    question = checked(FeatureQuery, body)
    with library(home) as books:
        answer = query_features(books, question)
    if wants_json(json):
        print_json(answer)
    else:
        show(answer)


def _condition(expression: str | None, where: str | None) -> Any:
    if (expression is None) == (where is None):
        raise InputError("give the condition as an expression or with --where, one of them")
    if expression is not None:
        return parse(expression)
    assert where is not None
    text = read_text(where[1:]) if where.startswith("@") else where
    try:
        return json_module.loads(text)
    except ValueError as error:
        raise InputError(f"--where: no JSON: {error}") from None


def checked(model: Any, body: dict[str, Any]) -> Any:
    """A request made of what was typed.

    Raises:
        InputError: it is not one; names the fields.
    """
    try:
        made: BaseModel = model.model_validate(body)
    except ValidationError as error:
        told = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:3])
        raise InputError("; ".join(told)) from None
    return made
