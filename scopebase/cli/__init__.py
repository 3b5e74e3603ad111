"""The command line. One module a group of commands; what each needs is imported when it runs, so that `--help` is quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from schema.errors import ScopebaseError
from scopebase import __version__
from scopebase.cli import (
    answers,
    audit,
    backup,
    catalog,
    chat,
    contrast,
    database,
    delete,
    demo,
    evaluation,
    export,
    features,
    gap,
    generate,
    import_,
    index,
    jobs,
    key,
    label_makers,
    label_packs,
    label_search,
    labels,
    query,
    reading,
    recipe,
    rules,
    serve,
    suite,
    sweeps,
    vector,
    verify,
    work,
)
from scopebase.cli.console import ERRORS
from scopebase.cli.options import GLOBALS

UsageError: Any = typer.BadParameter.__mro__[
    1
]  # Typer brings Click along under a name of its own and exports only this child
app = typer.Typer(
    name="scopebase",
    help="The feature database for sparse autoencoders of language models.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"scopebase {__version__}")
        raise typer.Exit


@app.callback()
def callback(
    home: Annotated[
        Optional[Path],  # noqa: UP045 - Typer on Python 3.11 reads this form
        typer.Option(
            help="The home: database and activation store. [env: SCOPEBASE_HOME; default: ./scopebase-data]",
            show_default=False,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    GLOBALS.home, GLOBALS.json = home, json


app.command("index")(index.index)
app.command("work")(work.work)
app.command("overlap")(answers.overlap)
app.command("diff")(answers.diff)
app.command("redundancy")(answers.redundancy)
app.command("feature")(features.feature)
app.command("match")(features.match)
app.command("inspect")(reading.inspect)
app.command("sample")(reading.sample)
app.command("contrast")(contrast.contrast)
app.command("query")(query.query)
app.command("generate")(generate.generate)
app.command("chat")(chat.chat)
app.command("gap")(gap.gap)
app.command("subset")(suite.subset)
app.command("suite")(suite.suite)
app.command("preservation")(evaluation.preservation)
app.command("failures")(evaluation.failures)
app.command("models")(catalog.models)
app.command("saes")(catalog.saes)
app.command("datasets")(catalog.datasets)
app.command("runs")(catalog.runs)
app.command("serve")(serve.serve)
app.command("audit")(audit.audit)
app.command("verify")(verify.verify)
app.command("backup")(backup.backup)
app.command("restore")(backup.restore)
app.command("demo")(demo.demo)
app.add_typer(rules.app, name="rule")
sweeps.app.command("recipe")(recipe.recipe)
app.add_typer(sweeps.app, name="sweep")
app.add_typer(vector.app, name="vector")
app.add_typer(jobs.app, name="jobs")
app.add_typer(key.app, name="key")
app.add_typer(database.app, name="db")
app.add_typer(delete.app, name="delete")
app.add_typer(evaluation.app, name="evaluation")
app.add_typer(export.app, name="export")
app.add_typer(import_.app, name="import")
labels.app.command("search")(label_search.search)
labels.app.command("embed")(label_search.embed)
labels.app.command("export")(label_packs.export)
labels.app.command("import")(label_packs.import_)
labels.app.command("describe")(label_makers.describe)
labels.app.command("explain")(label_makers.explain)
app.add_typer(labels.app, name="label")


def main() -> None:
    """Runs a command; a refusal is one line on standard error and the exit status of its kind."""
    try:
        status = app(standalone_mode=False)
    except ScopebaseError as error:
        ERRORS.print(f"scopebase: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_status)
    except (OSError, ValueError, RuntimeError) as error:
        known = _of_the_bucket(error)
        if known is None:
            raise
        ERRORS.print(f"scopebase: {known}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(known.exit_status)
    except UsageError as error:
        where = f" ('{error.ctx.command_path} --help' says more)" if error.ctx else ""
        ERRORS.print(f"scopebase: {error.format_message()}{where}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except (typer.Abort, KeyboardInterrupt):
        ERRORS.print("scopebase: interrupted; the same command goes on where it stopped", markup=False, highlight=False)
        sys.exit(130)
    except BrokenPipeError:  # `scopebase ... | head`
        sys.exit(0)
    sys.exit(status if isinstance(status, int) else 0)


def _of_the_bucket(error: Exception) -> ScopebaseError | None:
    """What a bucket said in the middle of a read, in one sentence; None where it was somebody else's word."""
    from schema.settings import Settings

    url = Settings.read().store_url
    if "://" not in url or isinstance(error, BrokenPipeError):
        return None
    from schema.bucket import fault_of

    return fault_of(url, error)
