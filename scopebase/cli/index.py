"""`scopebase index`: the main job."""

from __future__ import annotations

import os
from collections import Counter
from typing import Annotated

import typer

from schema import tracing
from schema.errors import InputError
from schema.records import RunReport
from schema.settings import Settings
from schema.wire.base import Page
from schema.wire.catalog import EstimateAnswer, RunItem
from scopebase import __version__
from scopebase.cli import index_options as o
from scopebase.cli.console import ERRORS, OUT, DrawnProgress, duration, number, print_json, size, table
from scopebase.cli.options import Home, Json, settings, wants_json
from scopebase.cli.workers import check_engine, parse_workers, run


def index(
    model: o.Model,
    sae: o.Sae,
    dataset: o.Datasets,
    set_name: o.SetName = None,
    layers: o.Layers = "all",
    text_field: o.TextField = "text",
    template: o.Template = None,
    id_field: o.IdField = None,
    limit: o.Limit = None,
    bad_rows: o.BadRows = "stop",
    max_tokens: o.MaxTokens = 512,
    mask: o.Mask = "special,first",
    batch_tokens: o.BatchTokens = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    logits: o.Logits = "auto",
    model_name: o.ModelName = None,
    engine: o.Engine = "local",
    workers: o.Workers = "auto",
    address: o.Address = None,
    gpus_per_worker: o.GpusPerWorker = None,
    cpus_per_worker: o.CpusPerWorker = None,
    layers_per_worker: o.LayersPerWorker = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell tokens, bytes and time, and write nothing.")] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Run datasets through a model and its SAEs, and store which features fire.

    Run it again after any interruption: it goes on where it stopped. Run it again when complete: it says so and writes nothing.
    """
    try:
        from indexer.config import Cluster, IndexConfig, parse_dataset_option
        from indexer.estimate import estimate
    except ImportError as error:
        raise InputError(
            f"indexing needs torch and transformers ({error.name} is missing); pip install 'scopebase[index]'"
        ) from None

    config = IndexConfig(
        model=model,
        sae=sae,
        datasets=tuple(parse_dataset_option(text) for text in dataset),
        layers=layers,
        set_name=set_name,
        model_name=model_name,
        text_field=text_field,
        template=template,
        id_field=id_field,
        limit=limit,
        bad_rows=bad_rows,
        max_tokens=max_tokens,
        mask=mask,
        batch_tokens=batch_tokens,
        device=device,
        dtype=dtype,
        logits=logits,
    )
    cluster = Cluster(address, parse_workers(workers), cpus_per_worker, gpus_per_worker, layers_per_worker)
    check_engine(engine, cluster)
    progress = DrawnProgress()
    if dry_run:
        answer = estimate(config, settings(home), progress)
        if wants_json(json):
            print_json(answer)
        else:
            show_estimate(answer)
        return
    tracing.start("index", __version__)
    with tracing.span("index", parent=os.environ.get(tracing.PARENT)):
        reports = run(engine, config, settings(home), cluster, progress)
    if wants_json(json):
        print_json(runs_page(settings(home), reports))
    else:
        show_reports(settings(home), reports)


def names_to_ask(where: Settings, reports: list[RunReport], sae: str) -> list[str]:
    """What to call these runs in a question: the dataset's name, unless that means a newer run by now."""
    from schema.home import open_home
    from schema.lookup import find_sources

    with open_home(where).database.reading() as session:
        newest = find_sources(session, sae, [report.dataset for report in reports]).sources
    other = (sae in report.saes and source.run != report.run for report, source in zip(reports, newest, strict=True))
    return [f"{r.dataset}@run{r.run}" if differs else r.dataset for r, differs in zip(reports, other, strict=True)]


def runs_page(where: Settings, reports: list[RunReport]) -> Page[RunItem]:
    """The finished runs in the shape of `/v1/runs`."""
    from api.services.catalog import runs_by_id
    from schema.home import open_home

    with open_home(where).database.reading() as session:
        return Page(data=runs_by_id(session, [report.run for report in reports]), next_cursor=None)


def show_estimate(answer: EstimateAnswer) -> None:
    made = table("dataset", "samples", "tokens", "95 % interval", "", right={"samples", "tokens", "95 % interval"})
    for each in answer.datasets:
        low, high = each.n_tokens_interval
        exact = low == high
        made.add_row(
            each.name,
            f"{each.n_samples:,}",
            f"{each.n_tokens:,}",
            "exact" if exact else f"{low:,}–{high:,}",
            "finished" if each.finished else "",
        )
    OUT.print(made)
    OUT.print(
        f"\n{answer.n_tokens:,} tokens through {answer.n_saes} SAEs give about {number(answer.n_activations)} activations, "
        f"{size(answer.bytes)} on disk ({answer.bytes_per_activation:.2f} bytes each) in {duration(answer.seconds)}."
    )
    if answer.n_logits:
        OUT.print(f"Logit effects of {answer.n_logits} SAEs come on top: {answer.logit_work:.1e} multiply-adds.")
    OUT.print(
        f"Measured on {answer.measured_tokens:,} of these tokens: {number(answer.tokens_per_second)} tokens/s "
        f"({answer.device}, {answer.dtype}). Nothing was written.",
        style="dim",
    )


def show_reports(where: Settings, reports: list[RunReport]) -> None:
    made = table(
        "dataset",
        "samples",
        "tokens",
        "SAEs",
        "activations",
        "on disk",
        "",
        right={"samples", "tokens", "SAEs", "activations", "on disk"},
    )
    for r in reports:
        state = "was complete" if r.already else "complete"
        name = r.dataset if r.version == 1 else f"{r.dataset}@{r.version}"
        made.add_row(
            name, f"{r.n_samples:,}", f"{r.n_tokens:,}", str(len(r.saes)), number(r.n_activations), size(r.bytes), state
        )
    OUT.print(made)
    for r in reports:
        for count, what in (
            (r.n_truncated, "texts were cut at the token limit (--max-tokens)"),
            (r.n_empty, "samples have no token that counts under the mask; they count as samples with no feature"),
            (r.n_saturated, "activations lie beyond float16 and were stored as 65504"),
        ):
            if count:
                ERRORS.print(f"{r.dataset}: {count:,} {what}", style="yellow", markup=False)
    logits = {sae for r in reports for sae in r.logits}
    if logits:
        OUT.print(f"Logit effects of {len(logits)} SAE{'s' if len(logits) > 1 else ''} were added.")
    elif all(r.already for r in reports):
        OUT.print("All was complete, nothing was written.")
    sae = _shared_sae(reports)
    names = names_to_ask(where, [r for r in reports if sae in r.saes], sae)
    question = "overlap" if len(names) > 1 else "redundancy"
    OUT.print(f"\nNext: scopebase {question} {' '.join(names)} --sae {sae}", markup=False)


def _shared_sae(reports: list[RunReport]) -> str:
    """An SAE from the middle of those with which most datasets are there."""
    times = Counter(sae for r in reports for sae in r.saes)
    most = [sae for sae, n in times.items() if n == max(times.values())]
    return most[len(most) // 2]
