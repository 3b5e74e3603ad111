"""What routes ask for: the library, and the parameters that many questions share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, cast

from fastapi import Depends, Query, Request, Response

from api.services.access.rates import spend
from api.services.cursors import PATTERN
from api.services.labels.chat import Explainer
from api.services.library import Library
from api.services.slices import read_condition
from api.services.written import Written
from schema.errors import Forbidden, NoModel
from schema.generation import Generator
from schema.live import LiveModel
from schema.records import Pool, Scope
from schema.wire.query import DatasetPart


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
    str,
    Query(
        min_length=1, max_length=80, description="`<name>`, or `<name>@<version>` or `<name>@run<run>` for an older one"
    ),
]
WhereParam = Annotated[
    str | None,
    Query(
        max_length=4000,
        description="Only samples whose fields meet this JSON object, as in a feature query",
        examples=['{"subject": "anatomy"}'],
    ),
]
WhereNotParam = Annotated[
    str | None,
    Query(max_length=4000, description="Only samples that do not meet this one", examples=['{"level": [1, 2]}']),
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


def slice_of(dataset: str, where: str | None, where_not: str | None) -> DatasetPart:
    """A dataset, or the slice of it that two parameters of an address name.

    Raises:
        InputError: one of them is no condition.
    """
    return DatasetPart(dataset=dataset, where=read_condition(where), where_not=read_condition(where_not, "where_not"))


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


async def get_generator(request: Request) -> Generator:
    """The loaded model, which generates.

    Raises:
        NoModel: the service runs without one.
    """
    generator = request.app.state.generator
    if generator is None:
        raise NoModel(
            "no model is loaded here, so nothing can be generated; start the service with 'scopebase serve --model M'"
        )
    return cast(Generator, generator)


Generating = Annotated[Generator, Depends(get_generator)]


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


async def get_spend(request: Request) -> Callable[[int], Callable[[int], None]]:
    """How a route takes the most tokens that it may come to out of the asker's bucket; what it gets is told how many it was.

    Raises:
        TooMany: by what is handed out, where so many are not there.
    """

    def take(most: int) -> Callable[[int], None]:
        buckets = request.app.state.tokens
        if buckets is None:
            return lambda used: None
        spending, share = spend(buckets, request.state.asker, most)
        request.state.shares["tokens"] = buckets.rate, share
        return spending.settle

    return take


Spend = Annotated[Callable[[int], Callable[[int], None]], Depends(get_spend)]


def needs(scope: Scope) -> Any:
    """A route's dependency: refuses a key without this scope. Where nobody is asked for a key, everything is allowed."""

    async def check(request: Request) -> None:
        scopes = getattr(request.state, "scopes", None)
        if scopes is not None and scope not in scopes and "admin" not in scopes:
            raise Forbidden(f"this key may {', '.join(scopes)}, and not {scope}; ask for one that may")

    return Depends(check)


Actor = Annotated[str, Depends(get_actor)]
