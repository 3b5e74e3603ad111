"""`scopebase export neuronpedia | delphi | dashboard | features-json`: feature data in other tools' files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from json import loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from schema.errors import InputError
from schema.wire.exchange import ExportReport
from scopebase.cli.answers import library
from scopebase.cli.console import OUT, DrawnProgress, print_json
from scopebase.cli.options import Home, Json, SaeOption, wants_json

if TYPE_CHECKING:
    from api.services.exchange.plan import Plan
    from api.services.library import Library

app = typer.Typer(
    name="export", help="Write feature data as other tools read it.", no_args_is_help=True, rich_markup_mode=None
)

OutOption = Annotated[Path, typer.Option("--out", help="The folder to write; the same call goes on with it.")]
DatasetsOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--dataset", help="Samples of these datasets only. Repeat for more.", show_default=False),
]
FeaturesOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--features", help="These only, like 0,5-9.", show_default=False),
]
TopOption = Annotated[int, typer.Option("--top", min=0, max=1000, help="Strongest examples a feature.")]
IntervalsOption = Annotated[int, typer.Option("--intervals", min=0, max=100, help="Intervals of activation.")]
EachOption = Annotated[int, typer.Option("--each", min=0, max=1000, help="Examples an interval.")]
WindowOption = Annotated[int, typer.Option("--window", min=1, max=65_535, help="Tokens an example.")]


@app.command("neuronpedia")
def neuronpedia(
    out: OutOption,
    sae: SaeOption = None,
    dataset: DatasetsOption = None,
    features: FeaturesOption = None,
    top: TopOption = 20,
    intervals: IntervalsOption = 5,
    each: EachOption = 5,
    window: WindowOption = 128,
    home: Home = None,
    json: Json = False,
) -> None:
    """Neuronpedia's v1 export: features, activations, explanations, source, release and model."""
    from api.services.neuronpedia.export import export_neuronpedia

    with library(home) as books:
        plan = _plan(books, sae, out, dataset, features, (top, intervals, each, window))
        with _bar(plan, len(plan.features)) as drawn:
            report = export_neuronpedia(drawn)
    _show(report, json)


@app.command("dashboard")
def dashboard(
    out: OutOption,
    sae: SaeOption = None,
    dataset: DatasetsOption = None,
    features: FeaturesOption = None,
    top: TopOption = 20,
    intervals: IntervalsOption = 5,
    each: EachOption = 5,
    window: WindowOption = 128,
    home: Home = None,
    json: Json = False,
) -> None:
    """SAEDashboard's intermediate batches."""
    from api.services.exchange.dashboard import export_dashboard

    with library(home) as books:
        plan = _plan(books, sae, out, dataset, features, (top, intervals, each, window))
        with _bar(plan, len(plan.features)) as drawn:
            report = export_dashboard(drawn)
    _show(report, json)


@app.command("features-json")
def features_json(
    out: OutOption,
    sae: SaeOption = None,
    dataset: DatasetsOption = None,
    features: FeaturesOption = None,
    top: TopOption = 20,
    intervals: IntervalsOption = 5,
    each: EachOption = 5,
    window: WindowOption = 128,
    home: Home = None,
    json: Json = False,
) -> None:
    """One JSON file a feature, as circuit-tracer and other tools of attribution graphs read them."""
    from api.services.exchange.feature_json import export_feature_json

    with library(home) as books:
        plan = _plan(books, sae, out, dataset, features, (top, intervals, each, window))
        with _bar(plan, len(plan.features)) as drawn:
            report = export_feature_json(drawn)
    _show(report, json)


@app.command("delphi")
def delphi(
    out: OutOption,
    sae: SaeOption = None,
    dataset: DatasetsOption = None,
    features: FeaturesOption = None,
    context: Annotated[int, typer.Option("--context", min=1, help="Tokens a row of the cache.")] = 256,
    window: Annotated[int, typer.Option("--window", min=1, help="Tokens an example: Delphi's example_ctx_len.")] = 32,
    splits: Annotated[int, typer.Option("--splits", help="Files the latents are spread over.")] = 5,
    hookpoint: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--hookpoint", help="Delphi's name of the layer. [default: layers.<n>]", show_default=False),
    ] = None,
    pad_token: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--pad-token", min=0, help="Token that fills windows. [default: the model's]", show_default=False),
    ] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Delphi's cache: every activation with its tokens, so that it labels features without the model."""
    from api.services.exchange.delphi import Shape, export_delphi

    with library(home) as books:
        plan = _plan(books, sae, out, dataset, features)
        model = plan.whole.sae.model
        pad = find_pad_token(model.source, model.revision) if pad_token is None else pad_token
        shape = Shape(context, window, splits, pad, hookpoint)
        with _bar(plan, sum(source.n_samples for source in plan.whole.sources)) as drawn:
            report = export_delphi(drawn, shape, model.source)
    _show(report, json)


def find_pad_token(source: str, revision: str) -> int:
    """The token that a model pads with, else the one that ends its texts, from its configuration on this machine.

    Raises:
        InputError: it cannot be told.
    """
    path: object = Path(source, "config.json")
    if not Path(source).is_dir():
        try:
            from huggingface_hub import try_to_load_from_cache

            path = try_to_load_from_cache(source, "config.json", revision=revision)
        except (ImportError, ValueError):
            path = None
    config = loads(Path(path).read_bytes()) if isinstance(path, str | Path) and Path(path).is_file() else {}
    for name in ("pad_token_id", "eos_token_id"):
        value = config.get(name)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, int) and value >= 0:
            return value
    raise InputError(f"which token model {source} pads with cannot be told here; name its id with --pad-token")


def _plan(
    books: Library,
    sae: str | None,
    out: Path,
    dataset: list[str] | None,
    features: str | None,
    choice: tuple[int, int, int, int] | None = None,
) -> Plan:
    from api.services.exchange.examples import Choice
    from api.services.exchange.plan import plan

    return plan(books, sae, out, dataset or (), features, Choice(*choice) if choice else None)


@contextmanager
def _bar(plan: Plan, total: int) -> Iterator[Plan]:
    """The plan, telling a bar how far it is."""
    with DrawnProgress().bar(f"export {plan.whole.sae.name}", total) as bar:
        yield replace(plan, advance=bar.advance)


def _show(report: ExportReport, json: bool) -> None:
    if wants_json(json):
        print_json(report)
        return
    examples = "" if report.n_examples is None else f", {report.n_examples:,} examples"
    OUT.print(
        f"{report.n_features:,} features ({report.n_firing:,} fire somewhere){examples}: {report.files:,} files in "
        f"{report.folder}",
        markup=False,
        soft_wrap=True,
    )
    provenance = report.provenance
    OUT.print(
        f"datasets: {', '.join(provenance.runs)} · mask: {provenance.mask} · snapshot {provenance.snapshot}",
        style="dim",
        markup=False,
    )
