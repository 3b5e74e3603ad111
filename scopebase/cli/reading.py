"""`scopebase inspect | contrast | sample`: which features texts fire."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from pydantic import BaseModel, ValidationError
from rich.text import Text

from schema.errors import InputError
from schema.wire.contrast import ContrastAnswer, ContrastRequest, ContrastSort, SaeContrast
from schema.wire.reading import InspectAnswer, InspectRequest, ReadToken, SaeReading, SampleAnswer
from scopebase.cli.answers import library
from scopebase.cli.console import OUT, print_json, shown, table
from scopebase.cli.live import DeviceOption, SaeDirOption, load_live
from scopebase.cli.options import Home, Json, wants_json

if TYPE_CHECKING:
    from api.services.library import Library
    from schema.live import LiveModel

SaesOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--sae",
        help="<model>/<layer>-<set>; repeat for more. May be left out where the home has one SAE.",
        show_default=False,
    ),
]
ModelOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--model", help="Where the model lies, if not where it was indexed from.", show_default=False),
]
MaskOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--mask", help="Tokens that never fire; as in the SAE's newest run unless given.", show_default=False),
]
Top = Annotated[int, typer.Option("--top", min=0, max=1000, help="Strongest features shown of each token.")]
Overall = Annotated[int, typer.Option("--overall", min=0, max=1000, help="Strongest features shown of the whole text.")]


def inspect(
    text: Annotated[Optional[str], typer.Argument(help="The text; or give --token-ids.", show_default=False)] = None,  # noqa: UP045
    sae: SaesOption = None,
    token_ids: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--token-ids", help="Token ids instead of a text: 1,2,3.", show_default=False),
    ] = None,
    feature: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--feature", help="Only this feature, <sae>/<index>. Repeat for more.", show_default=False),
    ] = None,
    top: Top = 3,
    overall: Overall = 10,
    mask: MaskOption = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longer texts are cut here.")] = 512,
    model: ModelOption = None,
    sae_dir: SaeDirOption = None,
    device: DeviceOption = "auto",
    home: Home = None,
    json: Json = False,
) -> None:
    """Which features a text fires, token by token; loads the model."""
    from api.services.reading import inspect as ask

    asked: dict[str, Any] = {"text": text, "saes": sae or [], "features": feature or [], "top": top, "overall": overall}
    asked |= {"token_ids": _ids(token_ids), "mask": mask, "max_tokens": max_tokens}
    request = _checked(InspectRequest, asked)
    with library(home) as books:
        answer = ask(books, _loaded(books, sae or (), model, sae_dir, device), request)
    if wants_json(json):
        print_json(answer)
    else:
        show_inspect(answer, top)


def sample(
    dataset: Annotated[str, typer.Argument(help="NAME or NAME@VERSION.")],
    id_: Annotated[str, typer.Argument(metavar="ID", help="The sample's id.")],
    sae: SaesOption = None,
    top: Top = 3,
    overall: Overall = 10,
    home: Home = None,
    json: Json = False,
) -> None:
    """Which features a stored sample fires, token by token; loads no model."""
    from api.services.samples import stored_sample as ask

    with library(home) as books:
        answer = ask(books, dataset, id_, sae or (), top, overall)
    if wants_json(json):
        print_json(answer)
    else:
        show_sample(answer, top)


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
    sae: SaesOption = None,
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
    from api.services.contrast import contrast as ask

    sides: dict[str, Any] = {"positive": _texts(positive), "negative": _texts(negative)}
    if datasets is not None:
        one, comma, two = datasets.partition(",")
        if positive or negative or not comma:
            raise InputError(f"--datasets {datasets!r}: write POSITIVE,NEGATIVE, and give no texts with it")
        sides = {"positive": {"dataset": one}, "negative": {"dataset": two}}
    asked = {**sides, "saes": sae or [], "sort": sort, "limit": limit, "samples": samples, "seed": seed}
    request = _checked(ContrastRequest, asked)
    with library(home) as books:
        live = None if datasets is not None else _loaded(books, sae or (), model, sae_dir, device)
        answer = ask(books, live, request)
    if wants_json(json):
        print_json(answer)
    else:
        show_contrast(answer)


def _loaded(
    books: Library, names: Sequence[str], model: str | None, sae_dir: Sequence[str] | None, device: str
) -> LiveModel:
    """The SAEs' model, up to the deepest block that they need."""
    from api.services.reading import find_saes

    with books.home.database.reading() as session:
        saes = find_saes(session, None, names)
    return load_live(books.home, model or saes[0].model.source, sae_dir, device, [sae.layer for sae in saes])


def _ids(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--token-ids {text!r}: whole numbers with commas between, like 1,2,3") from None


def _texts(given: Sequence[str] | None) -> list[str]:
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


def _checked(shape: type[Any], asked: dict[str, Any]) -> Any:
    """The request, or a sentence that says what of it is wrong."""
    try:
        return shape(**asked)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if not isinstance(part, BaseModel))
        raise InputError(f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}") from None


def show_inspect(answer: InspectAnswer, top: int) -> None:
    cut = f", cut at {answer.max_tokens}" if answer.truncated else ""
    OUT.print(f"{answer.n_tokens:,} tokens{cut}, {answer.n_counting:,} of them count ({answer.model})", style="dim")
    for reading in answer.saes:
        _reading(answer.tokens, reading, top)


def show_sample(answer: SampleAnswer, top: int) -> None:
    OUT.print(
        f"{answer.dataset}@{answer.version} {shown(answer.id)}: {answer.n_tokens:,} tokens, {answer.n_counting:,} of them count",
        style="dim",
        markup=False,
    )
    for reading in answer.saes:
        _reading(answer.tokens, reading, top)


def _reading(tokens: Sequence[ReadToken], reading: SaeReading, top: int) -> None:
    """Tokens with their strongest features, then the strongest of the whole text."""
    OUT.print(Text(f"\n{reading.sae}", style="bold"))
    if top:
        made = table("", "token", "strongest features", right={""})
        for token, found in zip(tokens, reading.tokens, strict=True):
            cells = Text("  ").join(
                Text.assemble(
                    (str(each.index), "cyan"), f" {each.activation:.3g}", (_named(reading, each.index), "italic")
                )
                for each in found
            )
            piece = Text(shown(token.text).replace(" ", "␣"), style="dim" if token.counts is False else "green")
            made.add_row(
                str(token.position), piece, cells if found else Text("masked" if token.counts is False else "", "dim")
            )
        OUT.print(made)
    made = table("feature", "activation", "at", "tokens", "label", right={"feature", "activation", "tokens"})
    for each in reading.features:
        at = shown(tokens[each.position].text).replace(" ", "␣")
        made.add_row(
            str(each.index),
            f"{each.activation:.3g}",
            f"{each.position} {at}",
            str(each.tokens),
            shown(each.label or ""),
        )
    OUT.print(Text(f"\nStrongest of the {reading.n_features:,} features that fire", style="bold"))
    OUT.print(made)
    OUT.print(f"mask: {reading.provenance.mask}", style="dim", markup=False)


def _named(reading: SaeReading, index: int) -> str:
    label = reading.labels.get(index)
    return f" {shown(label)[:24]}" if label else ""


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
    heads = ("feature", "mean +", "mean −", "rate +", "rate −", "q")
    made = table(*heads, "label", right=set(heads))
    for item in each.data:
        q = "–" if item.q_value is None else f"{item.q_value:.1g}"
        means, rates = [f"{m:.3g}" for m in item.means], [f"{r:.0%}" for r in item.rates]
        made.add_row(str(item.index), *means, *rates, q, shown(item.label or ""))
    OUT.print(made)
    made_with = each.provenance
    OUT.print(
        f"{each.n_tested:,} features tested · mask: {made_with.mask} · snapshot {made_with.snapshot}",
        style="dim",
        markup=False,
    )
