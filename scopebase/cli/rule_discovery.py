"""`scopebase rule discover | transfer`: finding rules."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from schema.errors import InputError
from schema.wire.discovery import DiscoverBody, TransferBody
from schema.wire.rules import Choice, RuleBody
from scopebase.cli.answers import library
from scopebase.cli.console import OUT, print_json
from scopebase.cli.discovery_tables import show_discovery, show_transfer
from scopebase.cli.options import AsOfOption, Home, Json, PoolOption, wants_json
from scopebase.cli.rule_options import (
    Author,
    Description,
    Group,
    Ks,
    LabelField,
    MaybeText,
    Positive,
    Saes,
    Seed,
    Share,
    Where,
    author_name,
    body_of,
    numbers,
    read_json,
    saes_for,
)


def discover(
    dataset: Annotated[str, typer.Argument(help="The labelled dataset.")],
    sae: Saes = None,
    label_field: LabelField = "label",
    positive: Positive = "1",
    where: Where = None,
    pool: PoolOption = "any",
    k: Ks = "1,2,5,10",
    m: Annotated[str, typer.Option("--m", help="How many layers, one feature each, with commas.")] = "1,2,3,5",
    discovery_share: Share = 0.8,
    seed: Seed = 0,
    baselines: Annotated[bool, typer.Option("--baselines/--no-baselines", help="Train heads to compare with.")] = True,
    probe_all: Annotated[
        bool, typer.Option("--probe-all", help="Train them on all features of each layer too.")
    ] = False,
    efficiency: Annotated[bool, typer.Option("--efficiency", help="Repeat with 100 % to 1 % of the data.")] = False,
    save: Annotated[
        MaybeText, typer.Option("--save", help="Store the rule under this name.", show_default=False)
    ] = None,
    choose: Annotated[
        MaybeText,
        typer.Option("--choose", help="Store another than the chosen one: SAE:K, or m:M.", show_default=False),
    ] = None,
    description: Description = None,
    author: Author = None,
    as_of: AsOfOption = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Find the features that tell two classes apart, layer by layer, and measure the rules that they make."""
    from api.services.rules.book import make_rule
    from api.services.rules.discovery import discover as ask

    fields: dict[str, Any] = {} if baselines else {"baselines": []}
    if efficiency:
        fields["efficiency"] = {}
    with library(home) as books:
        body = body_of(
            DiscoverBody,
            dataset=dataset,
            saes=saes_for(books, sae, [dataset]),
            label_field=label_field,
            positive=positive,
            where=read_json("--where", where) or {},
            pool=pool,
            k=numbers("--k", k),
            m=numbers("--m", m),
            discovery_share=discovery_share,
            seed=seed,
            probe_all=probe_all,
            as_of=as_of,
            **fields,
        )
        made = (
            body_of(RuleBody, name=save, discovery=body, choice=_choice(choose), description=description)
            if save
            else None
        )
        answer = ask(books, body)
        stored = make_rule(books, made, author_name(author)) if made else None
    if wants_json(json):
        print_json(answer)
        return
    show_discovery(answer)
    if stored:
        OUT.print(f"\nStored as {stored.id}; next: scopebase rule evaluate {stored.name} DATASET ...", markup=False)


def transfer(
    datasets: Annotated[list[str], typer.Argument(help="Two or more datasets, or one with --group-by.")],
    sae: Saes = None,
    label_field: LabelField = "label",
    positive: Positive = "1",
    group_by: Group = None,
    pool: PoolOption = "any",
    k: Ks = "1,2,5,10",
    discovery_share: Share = 0.8,
    seed: Seed = 0,
    as_of: AsOfOption = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Discover on each dataset and measure on all of them: how well a rule moves from language to language."""
    from api.services.rules.transfer import transfer as ask

    with library(home) as books:
        body = body_of(
            TransferBody,
            datasets=datasets,
            saes=saes_for(books, sae, datasets),
            label_field=label_field,
            positive=positive,
            group_by=group_by,
            pool=pool,
            k=numbers("--k", k),
            discovery_share=discovery_share,
            seed=seed,
            as_of=as_of,
        )
        answer = ask(books, body)
    if wants_json(json):
        print_json(answer)
    else:
        show_transfer(answer)


def _choice(text: str | None) -> Choice | None:
    if text is None:
        return None
    sae, _, number = text.rpartition(":")
    if not number.isdecimal() or not sae:
        raise InputError(f"--choose {text!r}: <sae>:<k>, or m:<number of layers>")
    return body_of(Choice, m=int(number)) if sae == "m" else body_of(Choice, sae=sae, k=int(number))
