"""`scopebase label describe | explain`: labels that no person wrote."""

from __future__ import annotations

import os
from typing import Annotated, Optional

import typer

from schema.errors import InputError
from schema.wire.labels import ExplainReport
from scopebase.cli.answers import library
from scopebase.cli.console import ERRORS, OUT, DrawnProgress, print_json, shown, table
from scopebase.cli.labels import Author, author_of, brief, common_sae
from scopebase.cli.options import Home, Json, SaeOption, wants_json

MOST_FEATURES = 1 << 24


FeaturesOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--features", help="Such as 0-99,512. [default: all that fire]", show_default=False),
]


def describe(
    sae: SaeOption = None,
    features: FeaturesOption = None,
    author: Author = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Label features by their firing tokens, without a model. Run again after indexing more."""
    from api.services.labels.describing import store_descriptions

    wanted = parse_features(features)
    with library(home) as books, DrawnProgress().bar("samples read") as bar:
        report = store_descriptions(books, sae, author_of(author), wanted, bar.reach)
    if wants_json(json):
        print_json(report)
    else:
        OUT.print(
            f"{report.sae}: {report.described:,} features described, {report.written:,} of them anew; "
            f"{report.never_firing:,} never fire",
            markup=False,
        )


def explain(
    endpoint: Annotated[str, typer.Option("--endpoint", help="OpenAI-compatible, such as http://localhost:8000/v1.")],
    model: Annotated[str, typer.Option("--model", help="The explainer model, as the endpoint calls it.")],
    sae: SaeOption = None,
    features: FeaturesOption = None,
    shown: Annotated[int, typer.Option("--shown", min=1, max=200, help="Samples shown to the model.")] = 12,
    score: Annotated[
        int, typer.Option("--score", min=0, max=100, help="Held-out samples for a detection score; 0 for none.")
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the silent samples of the score.")] = 0,
    at_once: Annotated[int, typer.Option("--at-once", min=1, max=64, help="Features asked about at once.")] = 4,
    max_requests: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--max-requests", min=1, help="Stop before more.", show_default=False),
    ] = None,
    max_tokens: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--max-tokens", min=1, help="Stop when so many are used.", show_default=False),
    ] = None,
    key_env: Annotated[
        str, typer.Option("--key-env", help="Environment variable that holds the endpoint's key.")
    ] = "OPENAI_API_KEY",
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds for an answer.")] = 60.0,
    again: Annotated[bool, typer.Option("--again", help="Also what this model explained before.")] = False,
    author: Author = None,
    home: Home = None,
    json: Json = False,
) -> int:
    """Label features by an explainer model behind a chat endpoint. Run again, it goes on; failures are not stored."""
    from api.services.labels.chat import Budget
    from api.services.labels.explaining import Plan, explain
    from scopebase.chat import Endpoint

    wanted = parse_features(features)
    chat = Endpoint(endpoint, model, os.environ.get(key_env), Budget(max_requests, max_tokens), timeout)
    with library(home) as books, DrawnProgress().bar("features") as bar:
        plan = Plan(shown, score, seed, again, at_once)
        report = explain(books, sae, wanted, chat, author_of(author), plan, bar.reach)
    chat.close()
    if wants_json(json):
        print_json(report)
    else:
        show_report(report)
    return 1 if report.failed else 0


def show_report(report: ExplainReport) -> None:
    if report.data:
        one = common_sae(report.data)
        made = table("feature", "label", "score", title=one, right={"score"})
        for item in report.data:
            made.add_row(
                item.feature if one is None else str(item.index),
                brief(item.text),
                "" if item.score is None else f"{item.score:.2f}",
            )
        OUT.print(made)
    OUT.print(
        f"{len(report.data):,} labelled, {report.skipped:,} were before, {report.never_firing:,} never fire, "
        f"{len(report.failed):,} failed, {report.left:,} left; {report.requests:,} requests, {report.tokens:,} tokens",
        markup=False,
    )
    for each in report.failed[:10]:
        ERRORS.print(f"{each.feature}: {shown(each.reason)}", markup=False, soft_wrap=True)
    if report.stopped:
        ERRORS.print(f"stopped: {report.stopped}; the same command goes on", markup=False, soft_wrap=True)


def parse_features(text: str | None) -> list[int] | None:
    """`0-99,512` as indexes; None for all."""
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not first.isdecimal() or (dash and not last.isdecimal()) or len(first + last) > 16:
            raise InputError(f"--features {text!r}: indexes and ranges such as 0-99,512")
        begin, stop = int(first), int(last or first) + 1
        if not begin < stop <= MOST_FEATURES:
            raise InputError(f"--features {text!r}: {part.strip()!r} is no range of features")
        found += range(begin, stop)
    return found
