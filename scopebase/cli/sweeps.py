"""`scopebase sweep ...`: which feature, and how strongly: proposed by contrast, tried at several strengths beside controls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from schema.errors import InputError
from schema.wire.contrast import ContrastSort, ProposeRequest
from schema.wire.sweeps import SweepAnswer, SweepRequest
from scopebase.cli import sweep_options as o
from scopebase.cli.answers import library
from scopebase.cli.console import ERRORS, DrawnProgress, print_json
from scopebase.cli.contrast import SideWhere, of_set, sides_of
from scopebase.cli.live import DeviceOption, ModelOption, SaeDirOption, SaesOption, load_for, load_generator
from scopebase.cli.options import Home, Json, checked, wants_json
from scopebase.cli.rule_options import Author, author_name
from scopebase.cli.sweep_tables import show_proposals, show_sweep, show_sweeps, show_texts

if TYPE_CHECKING:
    from api.services.library import Library
    from schema.generation import Generator

app = typer.Typer(
    name="sweep",
    help="Which feature to steer with, and how strongly, measured beside random controls.",
    no_args_is_help=True,
)
Strings = Optional[list[str]]  # noqa: UP045 - Typer on Python 3.11 reads this form


@app.command("propose")
def propose(
    positive: Annotated[
        Strings, typer.Option("--positive", help="A text that shows the behaviour, or @FILE.", show_default=False)
    ] = None,
    negative: Annotated[
        Strings, typer.Option("--negative", help="A text that does not, or @FILE.", show_default=False)
    ] = None,
    datasets: Annotated[
        o.MaybeText, typer.Option("--datasets", help="Instead of texts: POSITIVE,NEGATIVE.", show_default=False)
    ] = None,
    positive_where: SideWhere = None,
    negative_where: SideWhere = None,
    sae: SaesOption = None,
    set_: Annotated[
        o.MaybeText, typer.Option("--set", help="The SAEs of every layer of this set.", show_default=False)
    ] = None,
    sort: Annotated[ContrastSort, typer.Option("--sort", help="By mean activation, or by rate.")] = "mean_difference",
    n: Annotated[int, typer.Option("--n", min=1, max=100, help="Features proposed, over all layers.")] = 5,
    most_q: Annotated[float, typer.Option("--most-q", min=0.0, max=1.0, help="Largest q-value.")] = 0.05,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Stored samples read a side.")] = 1_000,
    seed: o.SeedOption = 0,
    model: ModelOption = None,
    sae_dir: SaeDirOption = None,
    device: DeviceOption = "auto",
    home: Home = None,
    json: Json = False,
) -> None:
    """Features that stand for a behaviour, over several layers, with strengths to begin with."""
    from api.services.sweeps.propose import propose as ask

    asked = {
        **sides_of(positive, negative, datasets, (positive_where, negative_where)),
        "saes": sae or [],
        "set": set_,
        "sort": sort,
        "propose": n,
    }
    request = checked(ProposeRequest, {**asked, "most_q": most_q, "samples": samples, "seed": seed})
    with library(home) as books:
        named = sae or of_set(books, set_)
        live = None if datasets is not None else load_for(books, named, model, sae_dir, device)
        answer = ask(books, live, request)
    if wants_json(json):
        print_json(answer)
    else:
        show_proposals(answer)


@app.command("run")
def run(
    name: Annotated[o.MaybeText, typer.Argument(help="What it is stored under.", show_default=False)] = None,
    target: o.Target = None,
    strengths: o.Strengths = "0.05,0.1,0.2,0.35",
    unit: o.UnitOption = "residual_norm",
    mode: o.ModeOption = "add",
    prompt: o.Prompts = None,
    dataset: o.PromptsDataset = None,
    n: o.PromptsN = 32,
    tokens: o.PromptsTokens = 16,
    chat: o.Chat = False,
    effect: o.Effects = None,
    less: o.Less = False,
    samples: o.Samples = 1,
    max_tokens: o.MaxTokens = 64,
    temperature: o.Temperature = 1.0,
    seed: o.SeedOption = 0,
    random_features: o.RandomFeatures = 3,
    random_directions: o.RandomDirections = 0,
    negative: o.Negative = True,
    most_perplexity: o.MostPerplexity = 1.5,
    file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--request", help="All of this as JSON, as POST /v1/sweeps takes it, in place of it.", show_default=False
        ),
    ] = None,
    author: Author = None,
    model: ModelOption = None,
    sae_dir: SaeDirOption = None,
    device: DeviceOption = "auto",
    home: Home = None,
    json: Json = False,
) -> None:
    """Try a direction at several strengths. Run again after an interruption: it goes on where it stopped."""
    if file is not None:
        request = o.request_from(file)
    else:
        request = checked(
            SweepRequest,
            {
                "name": name or "",
                "target": o.targets(target, mode, unit),
                "strengths": o.numbers("--strengths", strengths),
                "prompts": o.prompts(prompt, dataset, n, tokens),
                "chat": chat,
                "samples": samples,
                "max_tokens": max_tokens,
                "temperature": temperature,
                "seed": seed,
                "effects": o.effects(effect),
                "want": "less" if less else "more",
                "controls": {
                    "random_features": random_features,
                    "random_directions": random_directions,
                    "negative": negative,
                },
                "bounds": {"perplexity": most_perplexity},
            },
        )
    with library(home) as books:
        answer = run_request(books, request, author_name(author), model, sae_dir, device)
    _print(answer, json)


def run_request(
    books: Library,
    request: SweepRequest,
    author: str,
    model: str | None,
    sae_dir: Sequence[str] | None,
    device: str,
) -> SweepAnswer:
    """Loads the model and does what is left of a sweep."""
    generator = load_generator(books.home, model or model_of(books, request), sae_dir, device)
    try:
        return do(books, generator, request, author)
    finally:
        generator.close()


def do(books: Library, generator: Generator, request: SweepRequest, author: str) -> SweepAnswer:
    """What is left of a sweep, with a bar on standard error."""
    from api.services.sweeps.book import begin
    from api.services.sweeps.book import show_sweep as find
    from api.services.sweeps.work import work

    if not begin(books, generator, request, author):
        ERRORS.print(f"sweep {request.name} is complete already; nothing is left to do", markup=False)
        return find(books, request.name)
    with _bar(request.name, find(books, request.name).n_points) as tell:
        done = work(books, generator, request.name, threading.Event(), tell)
    assert done is not None
    return done


@app.command("list")
def list_(home: Home = None, json: Json = False) -> None:
    """The newest first."""
    from api.services.sweeps.book import list_sweeps

    with library(home) as books:
        page = list_sweeps(books, 1000, None, {})
        data = [*page.data]
        while page.next_cursor:
            page = list_sweeps(books, 1000, page.next_cursor, {})
            data += page.data
    if wants_json(json):
        print_json(page.model_copy(update={"data": data}))
    else:
        show_sweeps(data)


@app.command("show")
def show(name: o.SweepName, home: Home = None, json: Json = False) -> None:
    """What a sweep found: effect and cost by strength, beside the controls, and the strength that it suggests."""
    _print(_find(name, home), json)


@app.command("texts")
def texts(
    name: o.SweepName,
    point: Annotated[int, typer.Option("--point", min=0, help="Its number in 'sweep show'.")] = 0,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000)] = 10,
    home: Home = None,
    json: Json = False,
) -> None:
    """What was generated at one point."""
    from api.services.sweeps.book import sweep_texts

    with library(home) as books:
        page = sweep_texts(books, name, point, limit, None)
    if wants_json(json):
        print_json(page)
    else:
        show_texts(page.data)


@app.command("delete")
def delete(name: o.SweepName, author: Author = None, home: Home = None, json: Json = False) -> None:
    """Remove a sweep with its points and texts."""
    from api.services.sweeps.book import delete_sweep

    with library(home) as books:
        item = delete_sweep(books, name, author_name(author))
    if wants_json(json):
        print_json(item)
    else:
        ERRORS.print(f"deleted sweep {item.name}: {item.n_done} of {item.n_points} points", markup=False)


@app.command("plot")
def plot(
    name: o.SweepName,
    out: Annotated[Path, typer.Argument(metavar="FILE", help="Ends in .svg, or in .html for a page.")],
    home: Home = None,
) -> None:
    """Draw a sweep; needs matplotlib (pip install 'scopebase[plot]')."""
    from api.services.sweeps.page import sweep_html
    from api.services.sweeps.plot import plot_svg

    draw = {".svg": plot_svg, ".html": sweep_html}.get(out.suffix)
    if draw is None:
        raise InputError(f"{out}: name it .svg for the picture, or .html for a page with the texts")
    made = draw(_find(name, home))
    try:
        out.write_text(made, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror}") from None
    ERRORS.print(f"wrote {out}", markup=False)


def model_of(books: Library, request: SweepRequest) -> str:
    """Where the model of the first feature, or the home's only one, was indexed from."""
    named = next((spec.feature.rpartition("/")[0] for spec in request.target if spec.feature is not None), None)
    return model_of_sae(books, named)


def model_of_sae(books: Library, sae: str | None) -> str:
    """Where an SAE's model, or the home's only one, was indexed from."""
    from sqlalchemy import select

    from schema.lookup import find_sae
    from schema.tables import Model

    with books.home.database.reading() as session:
        if sae is not None:
            return find_sae(session, sae).model.source
        sources = list(session.scalars(select(Model.source)))
    if len(sources) == 1:
        return sources[0]
    raise InputError("which model? name one with --model ('scopebase models' lists them)")


def _find(name: str, home: Path | None) -> SweepAnswer:
    from api.services.sweeps.book import show_sweep as find

    with library(home) as books:
        return find(books, name)


def _print(answer: SweepAnswer, json: bool) -> None:
    if wants_json(json):
        print_json(answer)
    else:
        show_sweep(answer)


@contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[int, int], None]]:
    with DrawnProgress().bar(f"sweep {title}", total) as bar:

        def tell(done: int, _tokens: int) -> None:
            bar.advance(done - bar.done)

        yield tell
