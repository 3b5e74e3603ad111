"""Nothing runs on once nobody waits for its answer: neither what reads the store nor what only computes."""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from scipy.sparse import csr_array

from api.app import create_app
from api.gate.access import Access
from api.services import firing
from api.services.evaluations.model_order import tau_curve
from api.services.held import Shelf
from api.services.library import Library
from api.services.query.query import query_features
from api.services.questions.overlap import overlap
from api.services.rules.baselines import baselines_over
from api.services.rules.split import DISCOVERY_NEGATIVE, DISCOVERY_POSITIVE, HELD_OUT_NEGATIVE, HELD_OUT_POSITIVE, Split
from api.services.slices import group_samples
from api.services.suite.advice import advise
from api.services.suite.cover import Fired, fewest, greedy, pruned
from api.services.suite.subset import select_subset
from schema import deadline
from schema.errors import TooSlow
from schema.home import open_home
from schema.lookup import find_sources
from schema.settings import Settings
from schema.wire.query import FeatureQuery
from schema.wire.suite import SuiteRequest

SAE = "tiny-qwen3/2-tiny"
NAMES = ["problems", "songs", "tales"]
DENSE = np.random.default_rng(0).random((40, 60)) < 0.2
FIRED = Fired(np.arange(40), csr_array(DENSE.astype(np.float64)))
ONES = np.ones(60)


def late(work: Callable[[], Any]) -> None:
    """Does it after its time is up."""

    def run() -> None:
        deadline.allow(-1)
        work()

    with pytest.raises(TooSlow, match="took longer than the -1 s that a request may"):
        contextvars.copy_context().run(run)


SPLIT = Split(np.tile([DISCOVERY_NEGATIVE, DISCOVERY_POSITIVE, HELD_OUT_NEGATIVE, HELD_OUT_POSITIVE], 10), 0, 0.5, 0)
COVER = greedy(FIRED, ONES, 50.0)


@pytest.mark.parametrize(
    "work",
    [
        lambda: greedy(FIRED, ONES, 50.0),
        lambda: pruned(FIRED, ONES, COVER, 50.0),
        lambda: fewest(FIRED, ONES, COVER, 50.0),
        lambda: tau_curve(DENSE[:5].astype(float), 20, 0),
        lambda: baselines_over(DENSE.astype(float), SPLIT, ["difference_of_means"], "all", 0),
    ],
    ids=["greedy", "pruned", "bounds", "taus", "baselines"],
)
def test_what_only_computes_stops(work: Callable[[], Any]) -> None:
    work()
    late(work)


@pytest.mark.parametrize(
    "work",
    [
        lambda library: overlap(library, SAE, NAMES),
        lambda library: advise(library, SuiteRequest(datasets=NAMES, sae=SAE)),
        lambda library: query_features(
            library, FeatureQuery.model_validate({"sae": SAE, "where": {"dataset": "songs"}})
        ),
        lambda library: select_subset(library, SAE, "tales"),
    ],
    ids=["overlap", "suite", "query", "subset"],
)
def test_questions_stop_though_all_counts_are_in_memory(library: Library, work: Callable[[Library], Any]) -> None:
    work(library)
    library._pages, library._wholes = Shelf(1 << 20), Shelf(1 << 20)
    late(lambda: work(library))


def test_reads_of_the_store_stop_between_their_batches(library: Library) -> None:
    with library.home.database.reading() as session:
        songs = find_sources(session, SAE, ["songs"]).sources[0]
    late(lambda: list(firing.scan(library.store, songs.pair, "any")))
    late(lambda: group_samples(library, songs, "mood"))
    late(lambda: library.store.rows("samples", [0], ["key"]))


def test_what_has_begun_is_finished(indexed: Settings) -> None:
    """A stream takes as long as somebody reads it: its reads are not stopped once the answer has begun."""
    app = create_app(open_home(indexed), access=Access(seconds=2.0))

    def lines() -> Iterator[str]:
        for i in range(8):
            time.sleep(0.3)
            deadline.check()
            yield f"{i}\n"

    @app.get("/v1/lines")
    def stream() -> StreamingResponse:
        return StreamingResponse(lines(), media_type="text/plain")

    with TestClient(app) as client:
        assert client.get("/v1/lines").text.split() == [str(i) for i in range(8)]
