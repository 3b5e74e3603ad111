"""Sweeps: features proposed for a behaviour, strengths tried beside controls, and what came of it."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import APIRouter, Path, Query, Request, Response

from api.deps import Actor, Books, Cursor, Generating, Limit, needs
from api.services.sweeps.book import list_sweeps, show_sweep, sweep_texts
from api.services.sweeps.page import sweep_html
from api.services.sweeps.plot import plot_svg
from api.services.sweeps.propose import propose
from api.services.sweeps.runner import Runner
from schema.wire.base import Page, Problem
from schema.wire.contrast import ProposeAnswer, ProposeRequest
from schema.wire.sweeps import SweepAnswer, SweepItem, SweepRequest, SweepText

router = APIRouter(tags=["sweeps"])
Name = Annotated[str, Path(max_length=64, description="The sweep's name", examples=["dogs"])]


def _runner(request: Request) -> Runner:
    return cast(Runner, request.app.state.sweeps)


@router.post(
    "/features/propose",
    summary="Features to steer with, by contrast",
    responses={503: {"model": Problem, "description": "Texts were given and no model is loaded"}},
)
def post_propose(library: Books, http: Request, request: ProposeRequest) -> ProposeAnswer:
    """Those that tell positive texts or samples from negative ones best, over several layers, with strengths to begin with."""
    return propose(library, http.app.state.live, request)


@router.post(
    "/sweeps",
    summary="Begin a sweep, or go on with it",
    status_code=202,
    dependencies=[needs("write")],
    responses={503: {"model": Problem, "description": "No model is loaded"}},
)
def post_sweep(generator: Generating, http: Request, body: SweepRequest, actor: Actor) -> SweepAnswer:
    """Tries a direction at several strengths beside random controls, in the background; ask for the sweep to see how far it is."""
    return _runner(http).start(generator, body, actor)


@router.get("/sweeps", summary="List sweeps")
def get_sweeps(library: Books, http: Request, limit: Limit = 50, cursor: Cursor = None) -> Page[SweepItem]:
    """The newest first."""
    return list_sweeps(library, limit, cursor, _runner(http).states)


@router.get("/sweeps/{name}", summary="Show a sweep")
def get_sweep(library: Books, http: Request, name: Name) -> SweepAnswer:
    """Its points with intervals, what the controls do, and the strength that is suggested, once every point is there."""
    return show_sweep(library, name, _runner(http).states)


@router.get("/sweeps/{name}/texts", summary="What a sweep generated")
def get_sweep_texts(
    library: Books,
    name: Name,
    point: Annotated[int, Query(ge=0, le=1 << 20, description="Its place in the sweep", examples=[0])] = 0,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[SweepText]:
    """The texts of one point, by prompt, then sample, with what was measured of each."""
    return sweep_texts(library, name, point, limit, cursor)


@router.post("/sweeps/{name}/stop", summary="Stop a sweep", dependencies=[needs("write")])
def post_sweep_stop(http: Request, name: Name, actor: Actor) -> SweepAnswer:
    """Points that are done stay done; the same request goes on with the rest."""
    return _runner(http).stop(name, actor)


@router.delete("/sweeps/{name}", summary="Delete a sweep", dependencies=[needs("write")])
def delete_sweep(library: Books, http: Request, name: Name, actor: Actor) -> SweepItem:
    """Removes it with its points and texts, and answers with what it was. One that is at work must be stopped first."""
    return _runner(http).delete(name, actor)


@router.get(
    "/sweeps/{name}/plot.svg",
    summary="Draw a sweep",
    response_class=Response,
    responses={200: {"content": {"image/svg+xml": {}}, "description": "The picture"}},
)
def get_sweep_plot(library: Books, name: Name) -> Response:
    """Effects, perplexity and repetition against strength, with what the controls do behind them."""
    return Response(plot_svg(show_sweep(library, name)), media_type="image/svg+xml")


@router.get(
    "/sweeps/{name}/plot.html",
    summary="A sweep as a page",
    response_class=Response,
    responses={200: {"content": {"text/html": {}}, "description": "The page, in one file"}},
)
def get_sweep_page(library: Books, name: Name) -> Response:
    """The picture, the suggestion with its rule, the points and a text of each."""
    return Response(sweep_html(show_sweep(library, name)), media_type="text/html")
