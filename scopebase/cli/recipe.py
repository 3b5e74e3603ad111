"""`scopebase sweep recipe`: the two cases of the Qwen-Scope report, on its models or on any other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer

from schema.errors import InputError
from scopebase.cli import sweep_options as o
from scopebase.cli.answers import library
from scopebase.cli.console import ERRORS, print_json
from scopebase.cli.contrast import of_set, read_texts
from scopebase.cli.live import DeviceOption, ModelOption, SaeDirOption, SaesOption, load_generator
from scopebase.cli.options import Home, Json, wants_json
from scopebase.cli.rule_options import Author, author_name
from scopebase.cli.sweep_tables import show_sweep
from scopebase.cli.sweeps import do, model_of_sae

if TYPE_CHECKING:
    from schema.generation import Generator

Case = Literal["language-mixing", "classical-style"]
Strings = Optional[list[str]]  # noqa: UP045 - Typer on Python 3.11 reads this form


def recipe(
    case: Annotated[Case, typer.Argument(help="Which case.")],
    sae: SaesOption = None,
    set_: Annotated[
        o.MaybeText, typer.Option("--set", help="The SAEs of every layer of this set.", show_default=False)
    ] = None,
    feature: Annotated[
        o.MaybeText,
        typer.Option("--feature", help="This one; else the report's where it fits, else the best.", show_default=False),
    ] = None,
    positive: Annotated[
        Strings, typer.Option("--positive", help="Your own texts to find it by, or @FILE.", show_default=False)
    ] = None,
    negative: Annotated[
        Strings, typer.Option("--negative", help="Texts without the behaviour, or @FILE.", show_default=False)
    ] = None,
    prompt: o.Prompts = None,
    chat: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option("--chat/--no-chat", help="As the case has it unless given.", show_default=False),
    ] = None,
    name: Annotated[
        o.MaybeText, typer.Option("--name", help="The sweep's; the case's unless given.", show_default=False)
    ] = None,
    samples: o.Samples = 4,
    max_tokens: o.MaxTokens = 64,
    seed: o.SeedOption = 0,
    author: Author = None,
    model: ModelOption = None,
    sae_dir: SaeDirOption = None,
    device: DeviceOption = "auto",
    home: Home = None,
    json: Json = False,
) -> None:
    """A case of the Qwen-Scope report as a sweep: find the feature, try it at several strengths beside random ones."""
    from api.services.sweeps.recipes import RECIPES, find_feature_of, sweep_of

    chosen = RECIPES[case]
    if (positive is None) != (negative is None):
        raise InputError("--positive and --negative: give both, or neither")
    sides = (read_texts(positive) or [*chosen.positive], read_texts(negative) or [*chosen.negative])
    ERRORS.print(chosen.title, markup=False)
    with library(home) as books:
        saes = [*(sae or ()), *of_set(books, set_)]
        named = feature.rpartition("/")[0] if feature else saes[0] if saes else None
        generator = load_generator(books.home, model or model_of_sae(books, named), sae_dir, device)
        try:
            how = "as given"
            if feature is None:
                found = find_feature_of(books, generator, chosen, saes, *sides)
                feature, how = found.feature, found.how
            ERRORS.print(f"feature {feature}: {how}", markup=False)
            request = sweep_of(
                chosen, name or case, feature, read_texts(prompt) or chosen.prompts, samples, max_tokens, seed
            )
            request = request.model_copy(
                update={"chat": _chats(generator) if chat is None and chosen.chat else bool(chat)}
            )
            answer = do(books, generator, request, author_name(author))
        finally:
            generator.close()
    if wants_json(json):
        print_json(answer)
    else:
        show_sweep(answer)


def _chats(generator: Generator) -> bool:
    """Whether the model has a chat template; without one prompts are continued as they are."""
    try:
        generator.chat([{"role": "user", "content": "?"}])
    except InputError as error:
        ERRORS.print(f"{error}; prompts are continued as they are", markup=False)
        return False
    return True
