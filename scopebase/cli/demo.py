"""`scopebase demo`: everything in two minutes on a bare machine, without downloads."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from schema.errors import InputError
from schema.settings import Settings
from scopebase.cli.answers import show_diff, show_overlap
from scopebase.cli.console import ERRORS, OUT, DrawnProgress, duration, print_json
from scopebase.cli.index import show_reports
from scopebase.cli.options import GLOBALS

LAYER = 2


def demo(
    folder: Annotated[Path, typer.Option("--folder", help="Where to put it; run again, it goes on.")] = Path(
        "scopebase-demo"
    ),
    seed: Annotated[int, typer.Option("--seed")] = 0,
) -> None:
    """Train a small model and SAEs on text that is on every machine, index five datasets, and compare them."""
    try:
        from indexer.config import IndexConfig
        from indexer.run import index
        from scopebase.demo.run import make_assets
    except ImportError as error:
        raise InputError(
            f"the demo needs torch and transformers ({error.name} is missing); pip install 'scopebase[index]'"
        ) from None
    from api.services.library import Library
    from api.services.questions.diff import diff
    from api.services.questions.overlap import overlap
    from schema.home import open_home

    begin = time.monotonic()
    progress = DrawnProgress()
    assets, names = make_assets(folder, progress, seed)
    config = IndexConfig(
        model=str(assets.model),
        sae=str(assets.release),
        datasets=tuple((name, str(assets.data(name))) for name in names),
    )
    settings = Settings.read(GLOBALS.home or assets.home)
    reports = index(config, settings, progress)
    if not GLOBALS.json:
        show_reports(settings, reports)
    home = open_home(settings)
    try:
        library = Library(home)
        sae = next(name for name in reports[0].saes if f"/{LAYER}-" in name)
        shares = overlap(library, sae, names, min_samples=3)
        if GLOBALS.json:
            print_json(shares)
            return
        OUT.print()
        show_overlap(shares)
        OUT.print()
        show_diff(diff(library, sae, "word_problems", "stories", min_samples=3, limit=6, samples=2))
    finally:
        home.close()
    ERRORS.print(f"\nDone in {duration(time.monotonic() - begin)}.", style="dim")
    OUT.print(_next(settings.home, sae), markup=False, soft_wrap=True)


def _next(home: Path, sae: str) -> str:
    return f"""
Next, on this index:
  scopebase --home {home} diff python_code manual --sae {sae}
  scopebase --home {home} redundancy word_problems equations stories --sae {sae} --pool last
  scopebase --home {home} serve          # then http://127.0.0.1:8000/docs

And on a real model, with its released SAEs (a GPU with 24 GB, 15 GB of SAEs to download):
  scopebase index --model Qwen/Qwen3-1.7B-Base --sae Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50 \\
    --dataset gsm8k=hub:openai/gsm8k:main:test --template 'Question: {{question}}\\nAnswer:' --dry-run
  Leave --dry-run out to do it; '--layers 14' takes one layer, which a laptop can do.""".replace("{{", "{").replace(
        "}}", "}"
    )
