"""`scopebase models | saes | datasets | runs`: what is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from schema.wire.base import Page
from schema.wire.catalog import DatasetItem, ModelItem, RunItem, SaeItem
from scopebase.cli.console import OUT, number, print_json, shown, size, table
from scopebase.cli.options import Home, Json, settings, wants_json

if TYPE_CHECKING:
    from pathlib import Path

MOST = 1000


def models(home: Home = None, json: Json = False) -> None:
    """Models under study."""
    page: Page[ModelItem] = _all(home, "models")
    made = table("model", "family", "blocks", "width", "SAEs", "revision", "source", right={"blocks", "width", "SAEs"})
    for m in page.data:
        made.add_row(m.id, m.family, str(m.n_layers), str(m.d_model), str(m.n_saes), m.revision[:8], shown(m.source))
    _show(page, made, json)


def saes(home: Home = None, json: Json = False) -> None:
    """SAEs, the datasets that each was run over, and how well each reconstructs."""
    page: Page[SaeItem] = _all(home, "saes")
    right = {"k", "features", "datasets", "FVU"}
    made = table("SAE", "type", "k", "features", "datasets", "FVU", right=right)
    for s in page.data:
        fvu = "" if s.fvu is None else f"{s.fvu:.2f}"
        made.add_row(s.id, s.activation, str(s.k or ""), f"{s.d_sae:,}", str(len(s.datasets)), fvu)
    _show(page, made, json)


def datasets(home: Home = None, json: Json = False) -> None:
    """Datasets; a changed source is a new version."""
    page: Page[DatasetItem] = _all(home, "datasets")
    made = table(
        "dataset", "samples", "characters", "runs", "content", "fields", right={"samples", "characters", "runs"}
    )
    for d in page.data:
        name = d.name if d.version == 1 else d.id
        made.add_row(
            name, f"{d.n_samples:,}", number(d.n_chars), str(d.n_runs), d.sha256[:8], shown(" ".join(d.fields))
        )
    _show(page, made, json)


def runs(home: Home = None, json: Json = False) -> None:
    """Runs with their counts, sizes and states."""
    page: Page[RunItem] = _all(home, "runs")
    columns = ("run", "samples", "tokens", "fired", "on disk", "SAEs")
    made = table("run", "dataset", "SAEs", "samples", "tokens", "fired", "on disk", "state", right=set(columns))
    for r in page.data:
        state = "finished" if r.state == "finished" else f"{r.progress:.0%} encoded"
        made.add_row(
            str(r.id),
            r.dataset,
            str(len(r.saes)),
            f"{r.n_samples:,}",
            f"{r.n_tokens:,}",
            number(r.n_activations),
            size(r.bytes),
            state,
        )
    _show(page, made, json)


def _all(home: Path | None, kind: str) -> Any:
    """Every item of a list, whatever its length."""
    from api.services import catalog
    from schema.home import open_home

    ask: Callable[..., Page[Any]] = getattr(catalog, kind)
    found, cursor = [], None
    opened = open_home(settings(home))
    try:
        with opened.database.reading() as session:
            while True:
                page = ask(session, limit=MOST, cursor=cursor)
                found += page.data
                cursor = page.next_cursor
                if cursor is None:
                    return page.model_copy(update={"data": found})
    finally:
        opened.close()


def _show(page: BaseModel, made: object, json: bool) -> None:
    if wants_json(json):
        print_json(page)
    else:
        OUT.print(made)
