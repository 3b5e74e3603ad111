"""`scopebase vector ...`: directions to steer with, saved ones, and their files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from schema.errors import InputError
from schema.wire.reading import Mask
from schema.wire.vectors import ImportVector, Normalise, SaveVector, TokensRead, VectorFormat, VectorMade
from scopebase.cli.answers import library
from scopebase.cli.console import ERRORS, print_json
from scopebase.cli.live import DeviceOption, load_live
from scopebase.cli.options import AsOfOption, Home, Json, checked, wants_json
from scopebase.cli.rule_options import Author, Description, MaybeNumber, MaybeText, MaybeTexts, author_name, read_json
from scopebase.cli.vector_tables import show_deleted, show_feature, show_list, show_saved

if TYPE_CHECKING:
    from api.services.library import Library
    from indexer.live import Live

app = typer.Typer(name="vector", help="Steering vectors: a feature's direction, and saved ones.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME", help="A saved vector: NAME or NAME@VERSION.")]
Either = Annotated[
    str, typer.Argument(metavar="FEATURE|NAME", help="<model>/<layer>-<set>/<index>, or a saved vector.")
]


@app.command("show")
def show(
    name: Either,
    neighbours: Annotated[
        int, typer.Option("--neighbours", min=0, max=50, help="Nearest decoder directions of a feature.")
    ] = 0,
    as_of: AsOfOption = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """A feature's direction with its usual activations and strengths to begin with, or a saved vector."""
    from api.services.steering.directions import feature_vector
    from api.services.steering.vectors import show_vector

    with library(home) as books:
        if "/" in name:
            feature = feature_vector(books, name, neighbours, as_of)
            print_json(feature) if wants_json(json) else show_feature(feature)
        else:
            saved = show_vector(books, name)
            print_json(saved) if wants_json(json) else show_saved(saved)


@app.command("save")
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
        typer.Option("--layers", help="Residuals themselves, through the model: 3 or 0,3-5.", show_default=False),
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

    if request is not None:
        asked = read_json("--request", _text_of(request))
        body = checked(SaveVector, {**asked, "name": name} if isinstance(asked, dict) else {"name": name})
    else:
        body = checked(
            SaveVector,
            {
                "name": name,
                "description": description,
                "normalise": normalise,
                "components": _components(feature, vector),
                **_means(means, layers, sae, top, max_q, as_of, n, tokens, mask, max_tokens, seed),
            },
        )
    with library(home) as books:
        live = _load(books, body, model, device) if body.residual_means else None
        saved = save_vector(books, live, body, author_name(author))
    print_json(saved) if wants_json(json) else show_saved(saved)


@app.command("list")
def list_(
    name: Annotated[MaybeText, typer.Argument(help="Every version of this one.", show_default=False)] = None,
    model: Annotated[MaybeText, typer.Option("--model", help="Of this model.", show_default=False)] = None,
    layer: Annotated[MaybeNumber, typer.Option("--layer", help="At this layer.", show_default=False)] = None,
    author: Annotated[MaybeText, typer.Option("--author", help="By this one.", show_default=False)] = None,
    made: Annotated[VectorMade | None, typer.Option("--made", help="Made like this.", show_default=False)] = None,
    text: Annotated[MaybeText, typer.Option("--text", help="In name or description.", show_default=False)] = None,
    deleted: Annotated[bool, typer.Option("--deleted", help="Deleted ones too.")] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """The newest version of each saved vector."""
    from api.services.steering.vectors import Which, list_vectors

    which = Which(name, model, layer, author, made, text, deleted)
    with library(home) as books:
        page = list_vectors(books, which, limit=1000)
        data = [*page.data]
        while page.next_cursor:
            page = list_vectors(books, which, limit=1000, cursor=page.next_cursor)
            data += page.data
    print_json(page.model_copy(update={"data": data})) if wants_json(json) else show_list(data)


@app.command("export")
def export(
    name: Either,
    format: Annotated[VectorFormat, typer.Option("--format", help="What to write.")] = "json",
    to: Annotated[
        Path | None, typer.Option("--to", help="File. [default: standard output]", show_default=False)
    ] = None,
    home: Home = None,
) -> None:
    """Write a feature's direction or a saved vector as a file."""
    from api.services.steering.exchange import export_vector

    with library(home) as books:
        data, _ = export_vector(books, name, format)
    if format == "gguf" and b"direction.0" in data:
        ERRORS.print("note: llama.cpp refuses control vectors of layer 0; repeng and EasySteer read them", markup=False)
    if to is None:
        sys.stdout.buffer.write(data)
        return
    try:
        to.write_bytes(data)
    except OSError as error:
        raise InputError(f"--to {to} cannot be written: {error.strerror}") from None
    ERRORS.print(f"wrote {to}, {len(data):,} bytes", markup=False)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="safetensors, GGUF, JSON, or lm-eval's table.")],
    name: Annotated[
        MaybeText, typer.Option("--name", help="What the file says unless given.", show_default=False)
    ] = None,
    model: Annotated[
        MaybeText, typer.Option("--model", help="The home's model that it is for.", show_default=False)
    ] = None,
    layer_shift: Annotated[
        int, typer.Option("--layer-shift", help="Added to each layer: -1 for llama.cpp's cvector-generator.")
    ] = 0,
    description: Description = None,
    author: Author = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Take a vector in from a file. Pickles are never opened."""
    from api.services.steering.exchange import import_vector

    fields = {"name": name, "model": model, "description": description, "layer_shift": layer_shift, "file": file.name}
    options = checked(ImportVector, fields)
    data = _bytes_of(file)
    with library(home) as books:
        saved = import_vector(books, data, options, author_name(author))
    print_json(saved) if wants_json(json) else show_saved(saved)


@app.command("delete")
def delete(name: Name, author: Author = None, home: Home = None, json: Json = False) -> None:
    """Take a version, or every version of a name, out of use; what was made with it can still read it."""
    from api.services.steering.vectors import delete_vector

    with library(home) as books:
        page = delete_vector(books, name, author_name(author))
    print_json(page) if wants_json(json) else show_deleted(page.data)


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
    means: tuple[str, str] | None,
    layers: str | None,
    sae: list[str] | None,
    top: int | None,
    max_q: float | None,
    as_of: int | None,
    n: int,
    tokens: TokensRead,
    mask: Mask | None,
    max_tokens: int,
    seed: int,
) -> dict[str, Any]:
    """The part of the request that is a difference of two datasets."""
    if means is None:
        if layers is not None or sae:
            raise InputError("--layers and --sae belong to --means A B")
        return {}
    a, b = means
    if layers is None:
        return {"decoded_means": {"a": a, "b": b, "saes": sae or [], "top": top, "max_q": max_q, "as_of": as_of}}
    if sae:
        raise InputError("--sae decodes from the index and --layers reads through the model; give one of them")
    sides = {"a": {"dataset": a, "n": n}, "b": {"dataset": b, "n": n}}
    how = {"layers": _layers(layers), "tokens": tokens, "mask": mask, "max_tokens": max_tokens, "seed": seed}
    return {"residual_means": {**sides, **how}}


def _layers(text: str) -> list[int]:
    from indexer.saes import parse_layers

    return parse_layers(text)


def _load(books: Library, body: SaveVector, model: str | None, device: str) -> Live:
    """The model, up to the deepest block that is read."""
    from api.services.steering.residual import model_of

    assert body.residual_means is not None
    return load_live(
        books.home, model or model_of(books, body.residual_means), None, device, body.residual_means.layers
    )


def _text_of(path: str) -> str:
    return _bytes_of(Path(path)).decode("utf-8", "replace")


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
