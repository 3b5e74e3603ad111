"""Loading a model for a command that reads texts; needs torch, which look-ups do without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from schema.errors import InputError
from scopebase.cli.console import DrawnProgress

if TYPE_CHECKING:
    from api.services.library import Library
    from indexer.live import Live
    from schema.generation import Generator
    from schema.home import Home

SaeDirOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--sae-dir",
        help="Where SAEs lie (directory or hub id), if not where they were indexed from. Repeat for more.",
        show_default=False,
    ),
]
SaesOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--sae",
        help="<model>/<layer>-<set>; repeat for more. May be left out where the home has one SAE.",
        show_default=False,
    ),
]
ModelOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--model", help="Where the model lies, if not where it was indexed from.", show_default=False),
]
ChatTemplateOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--chat-template", help="A file with a chat template in Jinja, in place of the model's own.", show_default=False
    ),
]
ENGINES = ("torch", "vllm")
EngineOption = Annotated[
    str, typer.Option("--engine", help="What generates: torch, or vllm on a GPU (an extra, see the how-to).")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]


def load_live(
    home: Home, model: str, sae_dir: Sequence[str] | None, device: str, layers: Sequence[int] | None = None
) -> Live:
    """The model, loaded.

    Raises:
        InputError: torch or transformers is missing, or see `indexer.live.open_live`.
    """
    try:
        from indexer.live import open_live
    except ImportError as error:
        raise InputError(
            f"reading texts needs torch and transformers ({error.name} is missing); pip install 'scopebase[index]'"
        ) from None
    return open_live(home, model, sae_places=sae_dir or (), device=device, layers=layers, progress=DrawnProgress())


def load_generator(
    home: Home,
    model: str,
    sae_dir: Sequence[str] | None,
    device: str,
    *,
    engine: str = "torch",
    max_rows: int | None = None,
    max_queue: int = 64,
    chat_template: Path | None = None,
) -> Generator:
    """The whole model, loaded, to read texts and to generate.

    Raises:
        InputError: the template cannot be read, torch, transformers or vLLM is missing, or see `steering.generator.open_generator`.
    """
    check_engine(engine)
    try:
        from steering.generator import open_generator
        from steering.vllm.generator import open_vllm_generator
    except ImportError as error:
        raise InputError(
            f"generating needs torch and transformers ({error.name} is missing); pip install 'scopebase[index]'"
        ) from None
    opens: Callable[..., Generator] = open_generator if engine == "torch" else open_vllm_generator
    return opens(
        home,
        model,
        sae_places=sae_dir or (),
        device=device,
        max_rows=max_rows,
        max_queue=max_queue,
        chat_template=_read_template(chat_template),
        progress=DrawnProgress(),
    )


def check_engine(name: str) -> None:
    """
    Raises:
        InputError: there is no such engine.
    """
    if name not in ENGINES:
        raise InputError(f"--engine {name!r}: {' or '.join(ENGINES)}")


def _read_template(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise InputError(f"--chat-template {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"--chat-template {path}: is no text in UTF-8") from None


def load_for(
    books: Library, names: Sequence[str], model: str | None, sae_dir: Sequence[str] | None, device: str
) -> Live:
    """The SAEs' model, up to the deepest block that they need."""
    from api.services.features.reading import find_saes

    with books.home.database.reading() as session:
        saes = find_saes(session, None, names)
    return load_live(books.home, model or saes[0].model.source, sae_dir, device, [sae.layer for sae in saes])
