"""`scopebase vector save`: a sum, or a difference of means, under a name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from schema.errors import InputError
from schema.wire.reading import Mask
from schema.wire.vectors import Normalise, ResidualMeans, Sample, SaveVector, TokensRead
from scopebase.cli.answers import library
from scopebase.cli.console import print_json
from scopebase.cli.live import DeviceOption, load_live
from scopebase.cli.options import AsOfOption, Home, Json, checked, wants_json
from scopebase.cli.rule_options import (
    Author,
    BasedOn,
    Description,
    MaybeNumber,
    MaybeText,
    MaybeTexts,
    author_name,
    read_json,
)
from scopebase.cli.vector_tables import show_saved

if TYPE_CHECKING:
    from api.services.library import Library
    from indexer.live import Live


def save(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A new version is made where it exists.")],
    feature: Annotated[
        MaybeTexts,
        typer.Option("--feature", metavar="FEATURE[:WEIGHT]", help="Repeat for a sum of several.", show_default=False),
    ] = None,
    vector: Annotated[
        MaybeTexts,
        typer.Option("--vector", metavar="NAME[:WEIGHT]", help="A saved one in the sum.", show_default=False),
    ] = None,
    normalise: Annotated[
        Normalise, typer.Option("--normalise", help="components: each at length 1; result: each layer's sum.")
    ] = "none",
    means: Annotated[
        tuple[str, str] | None,
        typer.Option("--means", metavar="A B", help="Towards dataset A, away from B.", show_default=False),
    ] = None,
    sae: Annotated[
        MaybeTexts, typer.Option("--sae", help="Of --means from the index; one a layer.", show_default=False)
    ] = None,
    top: Annotated[
        MaybeNumber, typer.Option("--top", min=1, help="Only the features that differ most.", show_default=False)
    ] = None,
    max_q: Annotated[
        float | None, typer.Option("--max-q", help="Only features that differ at this rate.", show_default=False)
    ] = None,
    layers: Annotated[
        MaybeText,
        typer.Option("--layers", help="Residuals themselves, through the model: all or 0,3-5.", show_default=False),
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Texts of each dataset that the model reads.")] = 128,
    tokens: Annotated[TokensRead, typer.Option("--tokens", help="all that count, or each text's last.")] = "all",
    mask: Annotated[Mask | None, typer.Option("--mask", help="Of the texts.", show_default=False)] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longer texts are cut here.")] = 512,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the texts that are drawn.")] = 0,
    request: Annotated[
        MaybeText,
        typer.Option("--request", metavar="FILE", help="The whole request as JSON instead.", show_default=False),
    ] = None,
    as_of: AsOfOption = None,
    based_on: BasedOn = None,
    description: Description = None,
    author: Author = None,
    model: Annotated[
        MaybeText, typer.Option("--model", help="Whose residuals; the datasets' unless given.", show_default=False)
    ] = None,
    device: DeviceOption = "auto",
    home: Home = None,
    json: Json = False,
) -> None:
    """Save a sum of features and vectors, or the difference of two datasets' means, under a name."""
    from api.services.steering.vectors import save_vector

    with library(home) as books:
        if request is not None:
            body = _written(name, request, based_on)
        else:
            index = {"saes": sae or [], "top": top, "max_q": max_q, "as_of": as_of}
            reading = {"tokens": tokens, "mask": mask, "max_tokens": max_tokens, "seed": seed}
            asked: dict[str, Any] = {"name": name, "description": description, "normalise": normalise}
            asked |= {
                "based_on": based_on,
                "components": _components(feature, vector),
                **_means(books, means, layers, index, reading, n),
            }
            body = checked(SaveVector, asked)
        live = _load(books, body.residual_means, model, device) if body.residual_means else None
        saved = save_vector(books, live, body, author_name(author))
    print_json(saved) if wants_json(json) else show_saved(saved)


def _written(name: str, path: str, based_on: int | None) -> SaveVector:
    """A request that stands in a file."""
    asked = read_json("--request", _text_of(path))
    given = {"name": name} if based_on is None else {"name": name, "based_on": based_on}
    return checked(SaveVector, {**asked, **given} if isinstance(asked, dict) else given)


def _components(features: list[str] | None, vectors: list[str] | None) -> list[dict[str, Any]] | None:
    parts = [_component("feature", text) for text in features or ()] + [
        _component("vector", text) for text in vectors or ()
    ]
    return parts or None


def _component(kind: Literal["feature", "vector"], text: str) -> dict[str, Any]:
    name, colon, weight = text.rpartition(":")
    if not colon:
        return {kind: text}
    try:
        return {kind: name, "weight": float(weight)}
    except ValueError:
        raise InputError(f"--{kind} {text!r}: what follows ':' is its weight, a number") from None


def _means(
    books: Library,
    means: tuple[str, str] | None,
    layers: str | None,
    index: dict[str, Any],
    reading: dict[str, Any],
    n: int,
) -> dict[str, Any]:
    """The part of the request that is a difference of two datasets.

    Args:
        index: what only the difference from the index takes.
        reading: what only the one through the model takes.
        n: texts of each dataset that the model reads.
    """
    asked = [f"--{name.replace('_', '-').replace('saes', 'sae')}" for name, value in index.items() if value]
    if means is None:
        if layers is not None or asked:
            raise InputError(f"{asked[0] if asked else '--layers'} belongs to --means A B")
        return {}
    a, b = means
    if layers is None:
        return {"decoded_means": {"a": a, "b": b, **index}}
    if asked:
        raise InputError(f"{asked[0]} is for the index and --layers reads through the model; give one of them")
    sides = {"a": {"dataset": a, "n": n}, "b": {"dataset": b, "n": n}}
    return {"residual_means": {**sides, "layers": _layers(books, layers, a), **reading}}


def _layers(books: Library, text: str, dataset: str) -> list[int]:
    from api.services.steering.residual import model_of
    from indexer.saes import parse_layers

    return list(range(model_of(books, dataset).n_layers)) if text == "all" else parse_layers(text)


def _load(books: Library, asked: ResidualMeans, model: str | None, device: str) -> Live:
    """The model, up to the deepest block that is read."""
    from api.services.steering.residual import model_of

    sides = [side.dataset if isinstance(side, Sample) else None for side in (asked.a, asked.b)]
    found = [model or model_of(books, dataset).source for dataset in sides]  # an unknown name is told before loading
    return load_live(books.home, found[0], None, device, asked.layers)


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
