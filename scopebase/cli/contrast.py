"""`scopebase contrast`: features that tell two sets of texts apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.text import Text

from schema.errors import InputError
from schema.wire.contrast import ContrastAnswer, ContrastRequest, ContrastSort, SaeContrast
from scopebase.cli.answers import library
from scopebase.cli.console import OUT, print_json, shown, table
from scopebase.cli.live import DeviceOption, ModelOption, SaeDirOption, SaesOption, load_for
from scopebase.cli.options import Home, Json, checked, wants_json
from scopebase.cli.rule_options import read_json

if TYPE_CHECKING:
    from api.services.library import Library

SideWhere = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help='With --datasets: only its samples like this, as JSON: \'{"language": "en"}\'.', show_default=False
    ),
]


def contrast(
    positive: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--positive",
            help="A text that shows what is looked for, or @FILE with one a line. Repeat.",
            show_default=False,
        ),
    ] = None,
    negative: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--negative", help="A text that does not, or @FILE with one a line. Repeat.", show_default=False),
    ] = None,
    datasets: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--datasets", help="Stored samples instead of texts: POSITIVE,NEGATIVE.", show_default=False),
    ] = None,
    positive_where: SideWhere = None,
    negative_where: SideWhere = None,
    sae: SaesOption = None,
    set_: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--set", help="The SAEs of every layer of this set.", show_default=False),
    ] = None,
    sort: Annotated[
        ContrastSort, typer.Option("--sort", help="By mean activation, or by the rate of texts that fire.")
    ] = "mean_difference",
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Features an SAE.")] = 20,
    samples: Annotated[
        int, typer.Option("--samples", min=1, help="Stored samples read a side, drawn where there are more.")
    ] = 1_000,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    model: ModelOption = None,
    sae_dir: SaeDirOption = None,
    device: DeviceOption = "auto",
    home: Home = None,
    json: Json = False,
) -> None:
    """Features that tell two sets of texts apart; loads the model for texts, and none for stored datasets."""
    from api.services.features.contrast import contrast as ask

    asked = {
        **sides_of(positive, negative, datasets, (positive_where, negative_where)),
        "saes": sae or [],
        "set": set_,
        "sort": sort,
        "limit": limit,
        "samples": samples,
        "seed": seed,
    }
    request = checked(ContrastRequest, asked)
    with library(home) as books:
        live = None if datasets is not None else load_for(books, sae or of_set(books, set_), model, sae_dir, device)
        answer = ask(books, live, request)
    if wants_json(json):
        print_json(answer)
    else:
        show_contrast(answer)


def sides_of(
    positive: Sequence[str] | None, negative: Sequence[str] | None, datasets: str | None, where: Sequence[str | None]
) -> dict[str, Any]:
    """Both sides of a contrast: texts, or two datasets, whole or sliced."""
    if datasets is None:
        return {"positive": read_texts(positive), "negative": read_texts(negative)}
    one, _, two = datasets.partition(",")
    if positive or negative or not (two or any(where)):
        raise InputError(f"--datasets {datasets!r}: write POSITIVE,NEGATIVE, and give no texts with it")
    options = ("--positive-where", "--negative-where")
    parts = [read_json(option, text) or {} for option, text in zip(options, where, strict=True)]
    names = (one, two or one)
    return {
        side: {"dataset": name, "where": part}
        for side, name, part in zip(("positive", "negative"), names, parts, strict=True)
    }


def of_set(books: Library, set_: str | None) -> list[str]:
    """The names of a set's SAEs."""
    from sqlalchemy import select

    from schema.tables import Sae

    with books.home.database.reading() as session:
        return list(session.scalars(select(Sae.name).where(Sae.set_name == set_))) if set_ else []


def read_texts(given: Sequence[str] | None) -> list[str]:
    """The texts; `@FILE` stands for the lines of a file."""
    texts = []
    for each in given or ():
        if not each.startswith("@"):
            texts.append(each)
            continue
        try:
            lines = Path(each[1:]).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{each[1:]} cannot be read: {error}") from None
        texts += [line for line in lines if line.strip()]
    return texts


def show_contrast(answer: ContrastAnswer) -> None:
    what = "mean activation" if answer.sort == "mean_difference" else "share of texts that fire"
    of = [
        f"{n:,}" + (f" of {all_:,}" if n < all_ else "") for n, all_ in zip(answer.n, answer.n_available, strict=True)
    ]
    OUT.print(f"{of[0]} positive and {of[1]} negative texts, by {what}", style="bold")
    for each in answer.data:
        _contrast_table(each)
    test = "Welch's t-test" if answer.test == "welch" else "Fisher's exact test"
    small = (
        ""
        if all(item.p_value is not None for each in answer.data for item in each.data)
        else "; too few texts for it here"
    )
    OUT.print(
        f"q: {test}, Benjamini-Hochberg over the features that fire in either{small} · seed {answer.seed}", style="dim"
    )


def _contrast_table(each: SaeContrast) -> None:
    OUT.print(Text(f"\n{each.sae}", style="bold"))
    heads = ("feature", "mean +", "mean −", "d", "rate +", "rate −", "q")
    made = table(*heads, "label", right=set(heads))
    for item in each.data:
        size = "–" if item.effect_size is None else f"{item.effect_size:.2f}"
        q = "–" if item.q_value is None else f"{item.q_value:.1g}"
        means, rates = [f"{m:.3g}" for m in item.means], [f"{r:.0%}" for r in item.rates]
        made.add_row(str(item.index), *means, size, *rates, q, shown(item.label or ""))
    OUT.print(made)
    made_with = each.provenance
    OUT.print(
        f"{each.n_tested:,} features tested · mask: {made_with.mask} · snapshot {made_with.snapshot}",
        style="dim",
        markup=False,
    )
