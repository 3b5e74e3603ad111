"""Lists of what is there."""

from __future__ import annotations

from typing import Annotated, Literal, cast

from fastapi import APIRouter, Path, Query, Request

from api.deps import Actor, Books, Cursor, Limit, needs
from api.services import catalog, removing
from schema.generation import Generator
from schema.wire.base import Page
from schema.wire.catalog import DatasetItem, ModelItem, RunItem, SaeItem
from schema.wire.removals import RemovalAnswer

router = APIRouter(tags=["catalog"])
ModelName = Annotated[str | None, Query(max_length=256, description="Only this model's")]
DatasetName = Annotated[str | None, Query(max_length=256, description="Only this dataset, in all its versions")]


def _loaded(request: Request) -> Generator | None:
    return cast(Generator | None, request.app.state.generator)


@router.get("/models")
def models(request: Request, library: Books, limit: Limit = 50, cursor: Cursor = None) -> Page[ModelItem]:
    """Models under study."""
    with library.home.database.reading() as session:
        return catalog.models(session, limit, cursor, _loaded(request))


@router.get("/models/{model}", summary="Show a model")
def get_model(
    request: Request, library: Books, model: Annotated[str, Path(max_length=256, description="Its name")]
) -> ModelItem:
    """A model under study, and whether it generates here."""
    with library.home.database.reading() as session:
        return catalog.model(session, model, _loaded(request))


@router.get("/saes")
def saes(
    library: Books,
    model: ModelName = None,
    layer: Annotated[int | None, Query(ge=0, le=100_000, description="Only those of this layer")] = None,
    set: Annotated[str | None, Query(max_length=256, description="Only those of this set")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[SaeItem]:
    """SAEs, with the datasets that each was run over."""
    with library.home.database.reading() as session:
        return catalog.saes(session, model, layer, set, limit, cursor)


@router.get("/datasets")
def datasets(library: Books, name: DatasetName = None, limit: Limit = 50, cursor: Cursor = None) -> Page[DatasetItem]:
    """Datasets; a changed source is a new version."""
    with library.home.database.reading() as session:
        return catalog.datasets(session, name, limit, cursor)


@router.get("/runs")
def runs(
    library: Books,
    dataset: DatasetName = None,
    state: Annotated[Literal["finished", "unfinished"] | None, Query(description="Only these")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[RunItem]:
    """Runs, finished or not, with what they counted."""
    with library.home.database.reading() as session:
        return catalog.runs(session, dataset, state, limit, cursor)


@router.delete("/runs/{run}", summary="Remove a run", dependencies=[needs("admin")])
def delete_run(
    library: Books, actor: Actor, run: Annotated[int, Path(ge=1, le=1 << 31, description="Its number", examples=[7])]
) -> RemovalAnswer:
    """A run with everything that it wrote. What is being indexed right now is refused (409)."""
    return removing.do(library.home, removing.a_run(run), actor)


@router.delete("/datasets/{dataset}", summary="Remove a dataset", dependencies=[needs("admin")])
def delete_dataset(
    library: Books,
    actor: Actor,
    dataset: Annotated[str, Path(max_length=80, description="`<name>`, all versions of it, or `<name>@<version>`")],
) -> RemovalAnswer:
    """A dataset with its rows, its runs, and the results of evaluations on it."""
    return removing.do(library.home, removing.a_dataset(dataset), actor)


@router.delete("/saes/{sae:path}", summary="Remove an SAE", dependencies=[needs("admin")])
def delete_sae(
    library: Books,
    actor: Actor,
    sae: Annotated[str, Path(max_length=256, description="`<model>/<layer>-<set>`")],
    labels: Annotated[bool, Query(description="Its labels may go with it; refused (409) where it has some")] = False,
) -> RemovalAnswer:
    """An SAE with everything that was indexed with it."""
    return removing.do(library.home, removing.a_sae(sae, labels=labels), actor)
