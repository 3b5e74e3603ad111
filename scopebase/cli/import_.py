"""`scopebase import neuronpedia | delphi | dashboard`: what other tools wrote, taken in as labels or compared with the index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from schema.errors import InputError
from schema.settings import Settings
from schema.wire.exchange import CompareAnswer
from schema.wire.labels import ImportReport, Policy
from scopebase.cli.answers import library
from scopebase.cli.console import OUT, DrawnProgress, print_json, table
from scopebase.cli.index import runs_page, show_reports
from scopebase.cli.label_packs import show_report
from scopebase.cli.labels import Author, author_of
from scopebase.cli.options import Home, Json, SaeOption, settings, wants_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from api.services.exchange.compare import Theirs
    from api.services.library import Library
    from schema.tables import Sae
    from schema.wire.packs import PackLabel

app = typer.Typer(name="import", help="Take in what other tools wrote.", no_args_is_help=True, rich_markup_mode=None)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder that the tool wrote.")]
Check = Annotated[
    bool, typer.Option("--check", help="Compare largest activations and densities with the index; write nothing.")
]
DatasetsOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--dataset", help="Compare with these datasets only. Repeat for more.", show_default=False),
]
TakenOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--dataset",
        metavar="NAME",
        help="Take the cache itself in, as a dataset of this name. With --check: compare with these only.",
        show_default=False,
    ),
]
PolicyOption = Annotated[
    Policy, typer.Option("--policy", help="For labels that are here with other words: skip, update or duplicate.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only report what would be done.")]
Licence = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--licence", help="Noted with each label, such as CC-BY-4.0.", show_default=False),
]
Hookpoint = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--hookpoint", help="Delphi's name of the layer, where it wrote several.", show_default=False),
]


@app.command("neuronpedia")
def neuronpedia(
    folder: Folder,
    sae: SaeOption = None,
    check: Check = False,
    dataset: DatasetsOption = None,
    licence: Licence = None,
    policy: PolicyOption = "skip",
    dry_run: DryRun = False,
    author: Author = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Explanations of a v1 export become labels of the SAE."""
    from api.services.neuronpedia.reading import read_explanations, read_features, source_folder

    with library(home) as books:
        found = _sae(books, sae)
        source = source_folder(_there(folder), found)
        if check:
            _show_comparison(_compared(books, found, "neuronpedia", read_features(source), dataset), json)
            return
        report = _taken(books, found, source, read_explanations(source, found), (author, policy, dry_run, licence))
    _show_report(report, json)


@app.command("delphi")
def delphi(
    folder: Folder,
    sae: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--sae",
            help="The SAE's id; with --dataset also its release, as `scopebase index` takes it. Optional where there is one.",
            show_default=False,
        ),
    ] = None,
    check: Check = False,
    dataset: TakenOption = None,
    hookpoint: Hookpoint = None,
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--model", help="With --dataset: the model, where the cache does not say it.", show_default=False),
    ] = None,
    model_name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--model-name", help="With --dataset: the model's name in ids.", show_default=False),
    ] = None,
    set_name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--set", help="With --dataset and a release: name of the set in SAE ids.", show_default=False),
    ] = None,
    layer: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            "--layer", min=0, help="With --dataset and a release: which layer, where no name tells.", show_default=False
        ),
    ] = None,
    mask: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--mask",
            help="With --dataset: tokens that never fire: none, special, first, or special,first. "
            "[default: what the cache says, else none]",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--dtype",
            help="With --dataset: the arithmetic that the model was run in. [default: what the cache says, else unknown]",
            show_default=False,
        ),
    ] = None,
    licence: Licence = None,
    policy: PolicyOption = "skip",
    dry_run: DryRun = False,
    author: Author = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Explanations that Delphi wrote become labels of the SAE, with their scores; with --dataset, its activations a dataset.

    With --dataset, run it again after any interruption: it goes on where it stopped. When complete it says so and writes nothing.
    """
    from api.services.exchange.delphi_labels import read_delphi_labels
    from api.services.exchange.delphi_reading import cache_of, read_delphi

    if dataset and not check:
        if dry_run:
            raise InputError(
                "--dry-run is for labels; --check compares a cache with what is indexed and writes nothing"
            )
        cache = cache_of(_there(folder), hookpoint, layer)
        _take_in_delphi(cache, sae, dataset, (layer, model, model_name, set_name, mask, dtype), settings(home), json)
        return
    with library(home) as books:
        found = _sae(books, sae)
        if check:
            cache = cache_of(_there(folder), hookpoint, found.layer)
            _show_comparison(_compared(books, found, "delphi", read_delphi(cache), dataset), json)
            return
        labels = read_delphi_labels(_there(folder), hookpoint, found.layer)
        report = _taken(books, found, folder, labels, (author, policy, dry_run, licence))
    _show_report(report, json)


def _take_in_delphi(
    cache: Path,
    sae: str | None,
    dataset: list[str],
    given: tuple[int | None, str | None, str | None, str | None, str | None, str | None],
    where: Settings,
    json: bool,
) -> None:
    """A cache becomes a dataset with its run."""
    try:
        from indexer.caches.subjects import Taking
        from indexer.caches.taking import take_in_delphi
    except ImportError as error:
        raise InputError(
            f"taking a cache in needs torch and transformers ({error.name} is missing); pip install 'scopebase[index]'"
        ) from None
    if len(dataset) > 1:
        raise InputError("a cache becomes one dataset: give --dataset once")
    report = take_in_delphi(Taking(cache, sae, dataset[0], *given), where, DrawnProgress())
    if wants_json(json):
        print_json(runs_page(where, [report]))
    else:
        show_reports(where, [report])


@app.command("dashboard")
def dashboard(
    folder: Folder, sae: SaeOption = None, dataset: DatasetsOption = None, home: Home = None, json: Json = False
) -> None:
    """Compare SAEDashboard's batches with the index: largest activations and densities. Writes nothing."""
    from api.services.exchange.dashboard import read_dashboard

    with library(home) as books:
        theirs = read_dashboard(_there(folder))
        _show_comparison(_compared(books, _sae(books, sae), "dashboard", theirs, dataset), json)


def _there(folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    return folder


def _sae(books: Library, name: str | None) -> Sae:
    from schema.lookup import find_sae

    with books.home.database.reading() as session:
        return find_sae(session, name)


def _taken(
    books: Library,
    sae: Sae,
    folder: Path,
    labels: Iterable[PackLabel],
    how: tuple[str | None, Policy, bool, str | None],
) -> ImportReport:
    from api.services.exchange.incoming import Taking, take_in

    author, policy, dry_run, licence = how
    taking = Taking(author_of(author), policy, dry_run, licence)
    with DrawnProgress().bar("labels") as bar:
        return take_in(books, sae, str(folder), labels, taking, lambda n, _total: bar.advance(n))


def _compared(
    books: Library, sae: Sae, format: str, theirs: Iterable[Theirs], dataset: list[str] | None
) -> CompareAnswer:
    from api.services.exchange.compare import compare
    from api.services.exchange.whole import find_whole

    with books.home.database.reading() as session:
        whole = find_whole(session, sae, dataset or ())
    return compare(books, whole, format, theirs)


def _show_report(report: ImportReport, json: bool) -> None:
    if wants_json(json):
        print_json(report)
    else:
        show_report(report)


def _show_comparison(answer: CompareAnswer, json: bool) -> None:
    if wants_json(json):
        print_json(answer)
        return
    OUT.print(
        f"{answer.n_compared:,} features compared with {answer.sae}: the largest activation is the same (to 1 %) in "
        f"{answer.n_same_max:,}; {answer.n_only_here:,} fire only here, {answer.n_only_there:,} only there",
        style="bold",
        markup=False,
    )
    OUT.print(
        f"rank correlation of largest activations {_shown(answer.rank_correlation_max)}, of densities "
        f"{_shown(answer.rank_correlation_density)}",
        markup=False,
    )
    if answer.n_same_max < answer.n_compared:
        columns = ("max here", "max there", "density here", "density there")
        made = table("feature", *columns, title="The furthest apart", right=set(columns))
        for each in answer.furthest:
            there = "–" if each.their_density is None else f"{each.their_density:.4%}"
            densities = (f"{each.density:.4%}", there)
            made.add_row(str(each.index), f"{each.max_activation:.4g}", f"{each.their_max_activation:.4g}", *densities)
        OUT.print(made)
    OUT.print(
        f"datasets: {', '.join(answer.provenance.runs)} · mask: {answer.provenance.mask} · "
        f"snapshot {answer.provenance.snapshot}",
        style="dim",
        markup=False,
    )


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
