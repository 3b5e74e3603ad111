"""Options of `scopebase sweep` and the request that they make."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from schema.errors import InputError
from schema.wire.steering import Mode, Unit
from schema.wire.sweeps import SweepRequest
from scopebase.cli.contrast import read_texts
from scopebase.cli.options import checked

MaybeText = Optional[str]  # noqa: UP045 - Typer on Python 3.11 reads this form
MaybeTexts = Optional[list[str]]  # noqa: UP045
EFFECTS = (
    "script:Han, words:dog,cat, rule:NAME, feature:ID, feature:ID:max, feature:ID:fires, repetition:4, longest_repeat, endless, "
    "or one as JSON"
)

SweepName = Annotated[str, typer.Argument(metavar="NAME", help="The sweep's name.")]
Target = Annotated[
    MaybeTexts,
    typer.Option(
        "--target",
        help="A feature <sae>/<index> or a saved vector; WEIGHT*NAME weighs it. Repeat to combine.",
        show_default=False,
    ),
]
Strengths = Annotated[
    str, typer.Option("--strengths", help="With commas. Write --strengths=-0.1,-0.2 where they begin with a minus.")
]
ModeOption = Annotated[Mode, typer.Option("--mode", help="What is done with the direction.")]
UnitOption = Annotated[Unit, typer.Option("--unit", help="What strengths count in.")]
Prompts = Annotated[
    MaybeTexts,
    typer.Option("--prompt", help="A text to continue, or @FILE with one a line. Repeat.", show_default=False),
]
PromptsDataset = Annotated[
    MaybeText, typer.Option("--dataset", help="Beginnings of its texts, in place of prompts.", show_default=False)
]
PromptsN = Annotated[int, typer.Option("--n", min=1, help="With --dataset: texts.")]
PromptsTokens = Annotated[int, typer.Option("--tokens", min=1, help="With --dataset: each is cut after so many.")]
Effects = Annotated[
    MaybeTexts,
    typer.Option("--effect", help=f"What is measured, the deciding one first: {EFFECTS}. Repeat.", show_default=False),
]
Less = Annotated[bool, typer.Option("--less", help="The first effect is wanted to shrink.")]
Samples = Annotated[int, typer.Option("--samples", min=1, help="Texts for each prompt at each point.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Tokens generated.")]
Temperature = Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0)]
RandomFeatures = Annotated[int, typer.Option("--random-features", min=0, help="Controls at each strength.")]
RandomDirections = Annotated[int, typer.Option("--random-directions", min=0, help="More controls at each strength.")]
Negative = Annotated[bool, typer.Option("--negative/--no-negative", help="Also each strength's negative.")]
Chat = Annotated[bool, typer.Option("--chat", help="Prompts are what a user says, in the chat template.")]
MostPerplexity = Annotated[
    float, typer.Option("--most-perplexity", min=1.0, help="Of a suggested strength, times the unsteered one.")
]


def numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text!r}: numbers with commas, like 0.1,0.2,0.4") from None


def targets(given: Sequence[str] | None, mode: str, unit: str) -> list[dict[str, Any]]:
    """`<sae>/<index>` is a feature, anything else a vector's name."""
    found = []
    for text in given or ():
        weight, star, name = text.rpartition("*")
        kind = "feature" if "/" in name else "vector"
        found.append(
            {
                kind: name.strip(),
                "mode": mode,
                "unit": unit if mode not in ("multiply", "suppress", "ablate") else "absolute",
                "strength": numbers("--target", weight)[0] if star else 1.0,
            }
        )
    return found


def effects(given: Sequence[str] | None) -> list[dict[str, Any]]:
    return [_effect(text) for text in given or ()]


def _effect(text: str) -> dict[str, Any]:
    if text.lstrip().startswith("{"):
        try:
            return dict(json.loads(text))
        except ValueError as error:
            raise InputError(f"--effect {text[:60]!r} is no JSON: {error}") from None
    kind, _, rest = text.partition(":")
    if kind == "feature":
        name, _, of = rest.rpartition(":")
        return {"measure": kind, "feature": name, "of": of} if name else {"measure": kind, "feature": rest}
    if kind == "words":
        return {"measure": kind, "words": [word.strip() for word in rest.split(",") if word.strip()]}
    if kind in ("script", "rule"):
        return {"measure": kind, kind: rest}
    if kind == "repetition" and rest:
        return {"measure": kind, "n": rest}
    if kind in ("repetition", "longest_repeat", "endless") and not rest:
        return {"measure": kind}
    raise InputError(f"--effect {text!r}: {EFFECTS}")


def prompts(given: Sequence[str] | None, dataset: str | None, n: int, tokens: int) -> Any:
    if dataset is not None and given:
        raise InputError("--prompt and --dataset exclude each other; leave one out")
    return read_texts(given) if dataset is None else {"dataset": dataset, "n": n, "tokens": tokens}


def request_from(file: Path) -> SweepRequest:
    """A request as HTTP takes it, from a file."""
    try:
        asked = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(asked, dict):
        raise InputError(f"{file}: one JSON object, as POST /v1/sweeps takes it")
    return checked(SweepRequest, asked)
