"""`scopebase vector ...`: directions to steer with, saved ones, and their files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from schema.errors import InputError
from schema.wire.vectors import ImportVector, VectorFormat, VectorMade
from scopebase.cli import vector_saving
from scopebase.cli.answers import library
from scopebase.cli.console import ERRORS, print_json
from scopebase.cli.options import AsOfOption, Home, Json, checked, wants_json
from scopebase.cli.rule_options import Author, BasedOn, Description, MaybeNumber, MaybeText, author_name
from scopebase.cli.vector_tables import show_deleted, show_feature, show_list, show_saved

app = typer.Typer(name="vector", help="Steering vectors: a feature's direction, and saved ones.", no_args_is_help=True)
app.command("save")(vector_saving.save)
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
    based_on: BasedOn = None,
    description: Description = None,
    author: Author = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Take a vector in from a file. Pickles are never opened."""
    from api.services.steering.exchange import import_vector

    fields = {"name": name, "model": model, "description": description, "layer_shift": layer_shift, "file": file.name}
    options = checked(ImportVector, {**fields, "based_on": based_on})
    data = bytes_of(file)
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


def bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
