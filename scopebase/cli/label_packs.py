"""`scopebase label export | import`: labels from lab to lab."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from schema.errors import InputError
from schema.wire.labels import ImportReport, LabelSource, PackFormat, Policy
from scopebase.cli.answers import library
from scopebase.cli.console import ERRORS, OUT, DrawnProgress, print_json, shown, table
from scopebase.cli.labels import Author, author_of, brief, pack_path
from scopebase.cli.options import Home, Json, SaeOption, wants_json

if TYPE_CHECKING:
    from api.services.labels.book import Filter

SHOWN = 10
"""Conflicts shown in the terminal; --json has a thousand."""


def export(
    to: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--to",
            help="File (.jsonl, .jsonl.gz, .parquet); for Neuronpedia's rows also a directory. [default: standard output]",
            show_default=False,
        ),
    ] = None,
    format: Annotated[
        Optional[PackFormat],  # noqa: UP045
        typer.Option(
            "--format", help="jsonl, parquet or neuronpedia. [default: by the file's name]", show_default=False
        ),
    ] = None,
    sae: SaeOption = None,
    author: Annotated[Optional[str], typer.Option("--author", show_default=False)] = None,  # noqa: UP045
    source: Annotated[Optional[LabelSource], typer.Option("--source", show_default=False)] = None,  # noqa: UP045
    text: Annotated[Optional[str], typer.Option("--text", help="Contained in the label.", show_default=False)] = None,  # noqa: UP045
    updated_since: Annotated[
        Optional[datetime],  # noqa: UP045
        typer.Option("--updated-since", help="Changed at or after, UTC.", show_default=False),
    ] = None,
    cursor: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--cursor", help="Id of the last label received; goes on behind it.", show_default=False),
    ] = None,
    home: Home = None,
) -> None:
    """Write labels as a pack. JSONL, Parquet, or Neuronpedia's explanation rows."""
    from api.services.labels import export
    from api.services.labels.book import Filter

    form = format or ("parquet" if to is not None and to.suffix == ".parquet" else "jsonl")
    which = Filter(sae, None, author, source, text, updated_since)
    if to is not None and form == "neuronpedia" and not to.name.endswith((".jsonl", ".jsonl.gz")):
        _write_batches(to, which, cursor, home)
        return
    with library(home) as books:
        pieces = export.export(books, which, form, cursor)
        if to is None:
            for piece in pieces:
                sys.stdout.buffer.write(piece)
            return
        _write(to, pieces)
    ERRORS.print(f"wrote {to}", markup=False)


def _write_batches(to: Path, which: Filter, cursor: str | None, home: Path | None) -> None:
    from api.services.exchange.label_batches import write_batches

    if cursor is not None:
        raise InputError("--cursor goes on with a stream; a directory is written as a whole, so leave it out")
    with library(home) as books:
        n_labels, n_files = write_batches(books, which, to)
    ERRORS.print(f"wrote {n_labels:,} labels as {n_files:,} files into {to / 'explanations'}", markup=False)


def _write(to: Path, pieces: Iterable[bytes]) -> None:
    """The whole file, or none."""
    part = to.with_name(to.name + ".part")
    try:
        with gzip.open(part, "wb") if to.suffix == ".gz" else part.open("wb") as file:
            for piece in pieces:
                file.write(piece)
        part.replace(to)
    except OSError as error:
        raise InputError(f"--to {to} cannot be written: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)


def import_(
    pack: Annotated[str, typer.Argument(metavar="PACK", help="A pack, or a directory of them.")],
    sae: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--sae", help="What rows speak of that name no tensors, as Neuronpedia's.", show_default=False),
    ] = None,
    policy: Annotated[
        Policy, typer.Option("--policy", help="For labels that are here with other words: skip, update or duplicate.")
    ] = "skip",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only report what would be done.")] = False,
    author: Author = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Take a pack of labels in. Ours (JSONL, Parquet) or Neuronpedia's explanations; run again, it goes on."""
    from api.services.labels.importing import import_labels

    with library(home) as books, DrawnProgress().bar("labels") as bar:
        path = pack_path(pack)
        report = import_labels(
            books,
            path,
            author_of(author),
            sae,
            policy,
            dry_run,
            advance=lambda n, total: bar.advance(n),
        )
    if wants_json(json):
        print_json(report)
    else:
        show_report(report)


def show_report(report: ImportReport) -> None:
    would = "would be " if report.dry_run else ""
    parts = [
        f"{count:,} {word}"
        for count, word in (
            (report.created, f"{would}made"),
            (report.unchanged, "here already"),
            (report.updated, f"{would}updated"),
            (report.duplicated, f"{would}kept beside ours"),
            (report.kept, "left as they are here"),
            (report.skipped, "without a text"),
            (report.votes, f"votes {would}taken over"),
            (report.comments, f"comments {would}taken over"),
        )
        if count
    ]
    noun = "label" if report.read == 1 else "labels"
    OUT.print(f"{report.read:,} {noun} read: {', '.join(parts) or 'none'}", markup=False)
    if report.n_conflicts:
        _show_conflicts(report)
    if report.n_talk_conflicts:
        OUT.print(f"\n{report.n_talk_conflicts:,} votes or comments are here otherwise and stay so:", markup=False)
        made = table("line", "feature", "what", "by", "here", "in the pack", right={"line"})
        for each in report.talk_conflicts[:SHOWN]:
            words = (shown(each.by), brief(each.mine), brief(each.theirs))
            made.add_row(f"{each.line:,}", each.feature, each.what, *words)
        OUT.print(made)


def _show_conflicts(report: ImportReport) -> None:
    OUT.print(f"\n{report.n_conflicts:,} are here with other words (--policy {report.policy}):", markup=False)
    made = table("line", "feature", "here", "in the pack", "done", right={"line"})
    for conflict in report.conflicts[:SHOWN]:
        here = "(deleted)" if conflict.deleted_here else brief(conflict.mine)
        made.add_row(f"{conflict.line:,}", conflict.feature, here, brief(conflict.theirs), conflict.done)
    OUT.print(made)
