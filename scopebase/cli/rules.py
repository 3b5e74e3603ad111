"""`scopebase rule ...`: stored rules, what they were measured to do, and what they say of samples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter

from schema.wire.expressions import Expression
from schema.wire.rules import ClassifyBody, EvaluateBody, RuleBody
from scopebase.cli import rule_discovery
from scopebase.cli.answers import library
from scopebase.cli.console import print_json
from scopebase.cli.live import DeviceOption, ModelOption, SaeDirOption, load_for
from scopebase.cli.options import AsOfOption, Home, Json, PoolOption, wants_json
from scopebase.cli.rule_options import (
    Author,
    BasedOn,
    Description,
    Group,
    MaybeFlag,
    MaybeText,
    MaybeTexts,
    RuleName,
    Version,
    Where,
    author_name,
    body_of,
    checked,
    read_json,
)
from scopebase.cli.rule_tables import show_classified, show_drift, show_evaluation, show_rule, show_rules

app = typer.Typer(
    name="rule", help="Rules: boolean expressions over features that classify texts.", no_args_is_help=True
)
app.command("discover")(rule_discovery.discover)
app.command("transfer")(rule_discovery.transfer)


@app.command("set")
def set_(
    name: RuleName,
    expression: Annotated[str, typer.Argument(help="As JSON, or a file that holds it.")],
    pool: PoolOption = "any",
    based_on: BasedOn = None,
    description: Description = None,
    author: Author = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Store an expression as the next version of a rule."""
    from api.services.rules.book import make_rule

    text = (
        Path(expression).read_text(encoding="utf-8")
        if not expression.lstrip().startswith("{") and Path(expression).is_file()
        else expression
    )
    parsed = checked(TypeAdapter(Expression), read_json("the expression", text))
    body = body_of(RuleBody, name=name, expression=parsed, pool=pool, based_on=based_on, description=description)
    with library(home) as books:
        rule = make_rule(books, body, author_name(author))
    if wants_json(json):
        print_json(rule)
    else:
        show_rule(rule)


@app.command("list")
def list_(
    name: Annotated[MaybeText, typer.Argument(help="Every version of this rule.", show_default=False)] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """The newest version of each rule."""
    from api.services.rules.book import list_rules

    with library(home) as books:
        page = list_rules(books, name, limit=1000)
        data = [*page.data]
        while page.next_cursor:
            page = list_rules(books, name, limit=1000, cursor=page.next_cursor)
            data += page.data
    if wants_json(json):
        print_json(page.model_copy(update={"data": data}))
    else:
        show_rules(data)


@app.command("show")
def show(name: RuleName, version: Version = None, home: Home = None, json: Json = False) -> None:
    """One version of a rule, and how it was made."""
    from api.services.rules.book import show_rule as ask

    with library(home) as books:
        rule = ask(books, name, version)
    if wants_json(json):
        print_json(rule)
    else:
        show_rule(rule)


@app.command("sign")
def sign(name: RuleName, version: Version = None, author: Author = None, home: Home = None, json: Json = False) -> None:
    """Say that you stand for this version."""
    from api.services.rules.book import sign_rule

    with library(home) as books:
        rule = sign_rule(books, name, version, author_name(author))
    if wants_json(json):
        print_json(rule)
    else:
        show_rule(rule)


@app.command("drift")
def drift(name: RuleName, version: Version = None, home: Home = None, json: Json = False) -> None:
    """What changed under a rule since it was made."""
    from api.services.rules.drift import drift_of

    with library(home) as books:
        answer = drift_of(books, name, version)
    if wants_json(json):
        print_json(answer)
    else:
        show_drift(answer)


@app.command("evaluate")
def evaluate(
    name: RuleName,
    datasets: Annotated[list[str], typer.Argument(help="Labelled datasets.")],
    version: Version = None,
    label_field: Annotated[
        MaybeText, typer.Option("--label-field", help="As in the discovery unless given.", show_default=False)
    ] = None,
    positive: Annotated[
        MaybeText, typer.Option("--positive", help="As in the discovery unless given.", show_default=False)
    ] = None,
    where: Where = None,
    group_by: Group = None,
    include_discovery: Annotated[
        bool, typer.Option("--include-discovery", help="Also on the samples it was discovered on.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the bootstrap.")] = 0,
    author: Author = None,
    as_of: AsOfOption = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Measure a rule on labelled datasets, beside the trivial predictor; the result is stored."""
    from api.services.rules.evaluate import evaluate as ask

    body = body_of(
        EvaluateBody,
        datasets=datasets,
        version=version,
        label_field=label_field,
        positive=positive,
        where=read_json("--where", where) or {},
        group_by=group_by,
        include_discovery=include_discovery,
        seed=seed,
        as_of=as_of,
    )
    with library(home) as books:
        answer = ask(books, name, body, author_name(author))
    if wants_json(json):
        print_json(answer)
    else:
        show_evaluation(answer)


@app.command("classify")
def classify(
    name: RuleName,
    texts: Annotated[
        MaybeTexts, typer.Argument(metavar="[TEXT]...", help="Texts, read through the model.", show_default=False)
    ] = None,
    dataset: Annotated[
        MaybeText, typer.Option("--dataset", help="Its stored samples, in place of texts.", show_default=False)
    ] = None,
    ids: Annotated[MaybeTexts, typer.Option("--id", help="These samples only.", show_default=False)] = None,
    where: Where = None,
    only: Annotated[MaybeFlag, typer.Option("--positive/--negative", help="Only those.", show_default=False)] = None,
    version: Version = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Samples shown.")] = 10,
    cursor: Annotated[
        MaybeText, typer.Option("--cursor", help="Where the next page begins.", show_default=False)
    ] = None,
    as_of: AsOfOption = None,
    model: ModelOption = None,
    sae_dir: SaeDirOption = None,
    device: DeviceOption = "auto",
    home: Home = None,
    json: Json = False,
) -> None:
    """What a rule says of texts or of stored samples, with the tokens that decided."""
    from api.services.rules.book import show_rule as find
    from api.services.rules.classify import classify as ask

    body = body_of(
        ClassifyBody,
        version=version,
        texts=texts or None,
        dataset=dataset,
        ids=ids or None,
        where=read_json("--where", where) or {},
        only=only,
        limit=limit,
        cursor=cursor,
        as_of=as_of,
    )
    with library(home) as books:
        live = load_for(books, [*find(books, name, version).saes], model, sae_dir, device) if texts else None
        answer = ask(books, name, body, live)
    if wants_json(json):
        print_json(answer)
    else:
        show_classified(answer)
