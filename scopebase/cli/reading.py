"""`scopebase inspect | sample`: which features a text fires, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Optional

import typer
from rich.text import Text

from schema.errors import InputError
from schema.wire.reading import InspectAnswer, InspectRequest, ReadToken, SaeReading, SampleAnswer
from scopebase.cli.answers import library
from scopebase.cli.console import OUT, print_json, shown, table
from scopebase.cli.live import DeviceOption, ModelOption, SaeDirOption, SaesOption, load_for
from scopebase.cli.options import Home, Json, checked, wants_json

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
    from api.services.features.reading import inspect as ask

    asked: dict[str, Any] = {"text": text, "saes": sae or [], "features": feature or [], "top": top, "overall": overall}
    asked |= {"token_ids": _ids(token_ids), "mask": mask, "max_tokens": max_tokens}
    request = checked(InspectRequest, asked)
    with library(home) as books:
        answer = ask(books, load_for(books, sae or (), model, sae_dir, device), request)
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
    from api.services.features.samples import stored_sample as ask

    with library(home) as books:
        answer = ask(books, dataset, id_, sae or (), top, overall)
    if wants_json(json):
        print_json(answer)
    else:
        show_sample(answer, top)


def _ids(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--token-ids {text!r}: whole numbers with commas between, like 1,2,3") from None


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
