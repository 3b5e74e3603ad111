"""`scopebase gap`: what datasets lack of a target; as a table, a file, or a watch that prints what changes."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.padding import Padding
from rich.text import Text

from schema.errors import InputError, WorkFailed
from schema.wire.gaps import Coverage, CoverageGapAnswer, CoverageGapQuestion, GapItem, GapSort
from scopebase.cli.answers import label_text, library, snippet
from scopebase.cli.console import ERRORS, OUT, print_json, shown
from scopebase.cli.expression import parse_part
from scopebase.cli.options import AsOfOption, Home, Json, PoolOption, SaeOption, read_text, wants_json
from scopebase.cli.parts import PART, read_parts
from scopebase.cli.query import checked

if TYPE_CHECKING:
    from api.services.library import Library

KINDS = ("dataset", "features", "labels", "rule")


def gap(
    datasets: Annotated[list[str], typer.Argument(help=f"One or more, taken together. {PART}")],
    target: Annotated[
        str,
        typer.Option(
            "--target",
            metavar="T",
            help="dataset:NAME (or a slice, 'dataset:NAME[field=value]'), features:FILE, labels:'text' or rule:NAME.",
            show_default=False,
        ),
    ],
    sae: SaeOption = None,
    pool: PoolOption = "any",
    min_samples: Annotated[
        int, typer.Option("--min-samples", min=1, help="Missing is what fires in fewer samples.")
    ] = 1,
    support: Annotated[
        float, typer.Option("--support", min=0, max=1, help="Weak is what fires in a smaller share of the samples.")
    ] = 0.001,
    sort: Annotated[GapSort, typer.Option("--sort", help="What comes first.")] = "weight",
    limit: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            "--limit", min=1, max=1000, help="Features shown, 10 unless given; a file has all.", show_default=False
        ),
    ] = None,
    cursor: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--cursor", help="Where the next page begins.", show_default=False),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=0, max=10, help="Proving samples a feature.")] = 2,
    prompts: Annotated[bool, typer.Option("--prompts", help="With a synthesis prompt for each feature.")] = False,
    output: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--output",
            help="Write the whole gap to a .jsonl or .parquet file, or - for JSON lines.",
            show_default=False,
        ),
    ] = None,
    since: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--since", min=0, help="Only what has changed since this snapshot.", show_default=False),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Print what changes, as JSON lines, until interrupted.")
    ] = False,
    interval: Annotated[float, typer.Option("--interval", min=0.1, help="Seconds between looks.")] = 10.0,
    as_of: AsOfOption = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Coverage gap: features of a target that these datasets miss or hold weakly, with samples that show them."""
    include = [*(["samples"] if samples else []), *(["synthesis_prompt"] if prompts else [])]
    body = {
        "sae": sae,
        "datasets": read_parts(datasets),
        "target": read_target(target),
        "pool": pool,
        "min_samples": min_samples,
        "support": support,
        "include": include,
        "samples": samples or 2,
        "sort": sort,
        "limit": limit if output or watch else limit or (50 if wants_json(json) else 10),
        "cursor": cursor,
        "as_of": as_of,
        "since": since,
    }
    if watch and (as_of or cursor or output):
        raise InputError("--watch prints what comes; leave out --as-of, --cursor and --output")
    question = checked(CoverageGapQuestion, body)
    with library(home) as books:
        if watch:
            _watch(books, question, interval)
        elif output:
            _write(books, question, output)
        else:
            _answer(books, question, wants_json(json))


def _answer(books: Library, question: CoverageGapQuestion, as_json: bool) -> None:
    from api.services.gaps.gap import coverage_gap

    answer = coverage_gap(books, question)
    if as_json:
        print_json(answer)
    else:
        show(answer)


def read_target(text: str) -> dict[str, Any]:
    """`dataset:NAME` or `dataset:NAME[field=value]`, `features:FILE`, `labels:'text'` or `rule:NAME` as JSON.

    Raises:
        InputError: none of them, or a file that holds no features.
    """
    kind, _, name = text.partition(":")
    if kind not in KINDS or not name:
        raise InputError(f"--target {text!r}: dataset:NAME, features:FILE, labels:'text' or rule:NAME")
    if kind == "labels" and len(name) > 1 and name[0] == name[-1] and name[0] in "'\"":
        name = name[1:-1]
    if kind == "features":
        return read_features(name)
    return parse_part(name) if kind == "dataset" else {kind: name}


def read_features(path: str) -> dict[str, Any]:
    """A file of features: a JSON list, or a line each with an id or index and, after white space or a comma, its weight."""
    text = read_text(path)
    if text.lstrip().startswith("["):
        try:
            return {"features": json_module.loads(text)}
        except ValueError as error:
            raise InputError(f"{path}: no JSON: {error}") from None
    features: list[int | str] = []
    weights: list[float] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split("#")[0].replace(",", " ").split()
        if not words:
            continue
        try:
            weights.append(float(words[1]) if len(words) > 1 else 1.0)
        except ValueError:
            raise InputError(f"{path}, line {number}: {words[1]!r} is no weight; a line is FEATURE [WEIGHT]") from None
        features.append(int(words[0]) if words[0].isdecimal() else words[0])
    if not features:
        raise InputError(f"{path}: no features; a line is FEATURE [WEIGHT]")
    return {"features": features, "weights": weights}


def _write(books: Library, question: CoverageGapQuestion, output: str) -> None:
    """The whole gap to a file, at once or not at all."""
    from api.services.gaps.formats import ndjson, parquet
    from api.services.gaps.gap import find_gap, stream, summary

    path, suffix = Path(output), Path(output).suffix
    if output != "-" and suffix not in (".jsonl", ".ndjson", ".parquet"):
        raise InputError(f"--output {output!r}: a .jsonl or .parquet file, or - for JSON lines on standard output")
    found = find_gap(books, question)
    batches, about = stream(books, found), summary(books, found)
    pieces = parquet(batches, about) if suffix == ".parquet" else ndjson(batches)
    if output == "-":
        for piece in pieces:
            typer.echo(piece, nl=False)
        return
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.writelines(pieces)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise WorkFailed(f"{output}: {error.strerror}; nothing was written") from None
    ERRORS.print(f"{output}: {about.total:,} features; {_covered(about.coverage)}", markup=False)


def _watch(books: Library, question: CoverageGapQuestion, interval: float) -> None:
    from scopebase.cli.watch import watch

    last = question.since or 0
    try:
        for last, line in watch(books, question, interval):  # noqa: B007
            typer.echo(json_module.dumps(line, ensure_ascii=False))
    except KeyboardInterrupt:
        ERRORS.print(f"stopped at snapshot {last}; '--watch --since {last}' goes on from there", markup=False)


def _covered(found: Coverage) -> str:
    share = "no target" if found.share is None else f"{found.share:.1%}"
    return f"covered {share} ({found.n_covered:,} of {found.n_targets:,}, {found.n_weak:,} of them weakly)"


def show(answer: CoverageGapAnswer) -> None:
    names = ", ".join(d.name for d in answer.datasets)
    target = answer.target.name if answer.target.kind == "features" else f"{answer.target.kind} {answer.target.name}"
    OUT.print(Text(f"{names} against {shown(target)}: {_covered(answer.coverage)}", style="bold"))
    size = "" if answer.target.n_samples is None else f" · target: {answer.target.n_samples:,} samples"
    OUT.print(f"{answer.coverage.n_samples:,} samples taken together{size}", markup=False)
    if answer.coverage_before:
        OUT.print(f"at snapshot {answer.since}: {_covered(answer.coverage_before)}", markup=False)
    if not answer.data:
        OUT.print("No feature to show.")
    for item in answer.data:
        _item(item)
    if answer.next_cursor:
        OUT.print(f"\n{answer.total:,} in all; the next page: --cursor {answer.next_cursor}", style="dim", markup=False)
    made = answer.provenance
    few = "no sample" if answer.min_samples == 1 else f"fewer than {answer.min_samples:,} samples"
    tested = "" if answer.n_tested is None else f" · q over {answer.n_tested:,} features"
    OUT.print(
        f"pool: {made.pool} · mask: {made.mask} · missing: in {few} · "
        f"weak: below {answer.support:.2%}{tested} · snapshot {made.snapshot}",
        style="dim",
        markup=False,
    )


def _item(item: GapItem) -> None:
    state = item.state if item.change is None else f"{item.change}: {item.before} → {item.state}"
    target = "" if item.target_rate is None else f"  target {item.target_rate:.1%}"
    ours = "" if item.rate is None else f"  here {item.rate:.2%} ({item.count:,})"
    rest = f"  weight {item.weight:.3g}" if item.target_rate is None else ""
    q = "" if item.q_value is None else f"  q {item.q_value:.1g}"
    OUT.print(
        Text.assemble(
            ("\n" + str(item.index).rjust(7), "bold cyan"),
            f"  {state}{target}{ours}",
            (rest + q, "dim"),
            "  ",
            label_text(item),
        )
    )
    if item.firing_tokens:
        line = Text("fires on " + "  ".join(shown(token) for token in item.firing_tokens), style="green")
        OUT.print(Padding(line, (0, 0, 0, 9)))
    for sample in item.samples:
        OUT.print(Padding(snippet(sample), (0, 0, 0, 9)))
    if item.synthesis_prompt:
        prompt = "\n".join(shown(line) for line in item.synthesis_prompt.splitlines())
        OUT.print(Padding(Text(prompt, style="dim"), (0, 0, 0, 9)))
