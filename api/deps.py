"""What routes ask for: the library, and the parameters that many questions share."""

from __future__ import annotations

from typing import Annotated, Any, cast

from fastapi import Depends, Query, Request, Response

from api.services.cursors import PATTERN
from api.services.labels.chat import Explainer
from api.services.library import Library
from api.services.written import Written
from schema.errors import Forbidden, NoModel
from schema.live import LiveModel
from schema.records import Pool, Scope


def get_library(request: Request) -> Library:
    """The application's library, seeing the newest runs."""
    library = cast(Library, request.app.state.library)
    library.refresh()
    return library


Books = Annotated[Library, Depends(get_library)]
SaeParam = Annotated[
    str | None, Query(description="`<model>/<layer>-<set>`; may be left out where there is one SAE", max_length=256)
]
PoolParam = Annotated[
    Pool, Query(description="`any`: fires at some token that counts; `last`: at the last one, as in the paper")
]
MinSamples = Annotated[
    int, Query(ge=1, le=1 << 40, description="A footprint holds what fires in at least so many samples")
]
AsOf = Annotated[int | None, Query(ge=1, le=1 << 31, description="Answer as of this snapshot")]
Limit = Annotated[int, Query(ge=1, le=1000, description="Items a page")]
Cursor = Annotated[str | None, Query(pattern=PATTERN, description="`next_cursor` of the page before")]
DatasetName = Annotated[
    str, Query(max_length=80, description="`<name>`, or `<name>@<version>` or `<name>@run<run>` for an older one")
]
DatasetNames = Annotated[
    list[DatasetName], Query(min_length=1, max_length=200, alias="dataset", description="Once for each dataset")
]
TwoDatasets = Annotated[
    list[DatasetName],
    Query(
        min_length=2,
        max_length=200,
        alias="dataset",
        description="Once for each dataset, two at least",
        json_schema_extra={"uniqueItems": True},
    ),
]


def as_written(answer: Written[Any]) -> Response:
    """An answer that is JSON already, past FastAPI's own writing of it."""
    return Response(answer.json, media_type="application/json")


def get_live(request: Request) -> LiveModel:
    """The loaded model.

    Raises:
        NoModel: the service runs without one.
    """
    live = request.app.state.live
    if live is None:
        raise NoModel(
            "no model is loaded here, so texts cannot be read; start the service with 'scopebase serve --model M'"
        )
    return cast(LiveModel, live)


Live = Annotated[LiveModel, Depends(get_live)]


def get_explainer(request: Request) -> Explainer:
    """The explainer model that the service was started with.

    Raises:
        NoModel: with none.
    """
    explainer = request.app.state.explainer
    if explainer is None:
        raise NoModel(
            "no explainer model is chosen here; start the service with "
            "'scopebase serve --explainer http://localhost:8001/v1 --explainer-model M'"
        )
    return cast(Explainer, explainer)


TheExplainer = Annotated[Explainer, Depends(get_explainer)]


async def get_actor(request: Request) -> str:
    """Who asks: the name of the key, or `local` where nobody is asked for one."""
    return str(getattr(request.state, "actor", "local"))


def needs(scope: Scope) -> Any:
    """A route's dependency: refuses a key without this scope. Where nobody is asked for a key, everything is allowed."""

    async def check(request: Request) -> None:
        scopes = getattr(request.state, "scopes", None)
        if scopes is not None and scope not in scopes and "admin" not in scopes:
            raise Forbidden(f"this key may {', '.join(scopes)}, and not {scope}; ask for one that may")

    return Depends(check)


Actor = Annotated[str, Depends(get_actor)]
