"""Tokens a minute: what a request may come to is taken first, and what it did come to is what it costs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from api.app import create_app
from api.gate.access import Access
from api.services.access.rates import Buckets, Rate, spend
from schema.errors import TooMany
from schema.generation import Choice, Ended, Piece
from schema.home import open_home
from schema.settings import Settings
from tests.api.generation.listening import listening
from tests.api.generation.scripted import Scripted
from tests.api.generation.test_generation_faults import Deliver, asked, wait_for

QUOTA = 100
STEERING = {"ops": [{"feature": "tiny-qwen3/2-tiny/7", "strength": 2.0}], "compare": True}


@pytest.fixture
def generator() -> Scripted:
    return Scripted()


@pytest.fixture
def client(indexed: Settings, generator: Scripted) -> Iterator[TestClient]:
    app = create_app(open_home(indexed), generator=generator, access=Access(tokens_per_minute=QUOTA))
    app.state.tokens = Buckets(Rate(QUOTA, 60), clock=lambda: 0.0)
    with TestClient(app) as made:
        yield made


def left(client: TestClient) -> int:
    buckets: Buckets = client.app.state.tokens  # type: ignore[attr-defined]
    return buckets.take("address testclient", 0).remaining


@given(st.lists(st.tuples(st.floats(0, 200), st.integers(1, 300), st.floats(0, 1)), max_size=30))
def test_no_more_is_used_than_the_quota_and_what_flows_in(asks: list[tuple[float, int, float]]) -> None:
    """Of requests that use up to what they said: but for one that is larger than the quota itself, which later ones pay for."""
    moment, used, largest = 0.0, 0, 0
    buckets = Buckets(Rate(QUOTA, 60), clock=lambda: moment)
    for seconds, most, share in asks:
        moment += seconds
        try:
            spending, _ = spend(buckets, "a", most)
        except TooMany:
            continue
        really = round(most * share)
        spending.settle(really)
        spending.settle(0)
        used, largest = used + really, max(largest, really)
        assert used <= QUOTA + moment * QUOTA / 60 + max(largest - QUOTA, 0) + 1e-6


def test_after_so_long_as_it_says_it_goes_on() -> None:
    moment = 0.0
    buckets = Buckets(Rate(QUOTA, 60), clock=lambda: moment)
    spend(buckets, "a", 90)[0].settle(300)
    with pytest.raises(TooMany, match=r"a has 0 of its 100 tokens a minute left, and this may come to 50,") as refused:
        spend(buckets, "a", 50)
    assert refused.value.retry_after == 150
    spend(buckets, "b", 50)
    moment = 150.0
    spend(buckets, "a", 50)


@pytest.mark.parametrize("stream", [False, True])
def test_every_text_of_a_request_counts_and_its_prompt_once(client: TestClient, stream: bool) -> None:
    asked_for = {"prompt": "abcd", "max_tokens": 3, "n": 2, "stream": stream, "steering": STEERING}
    response = client.post("/v1/completions", json=asked_for)
    assert response.status_code == 200
    assert left(client) == QUOTA - 5 - 4 * 3
    assert response.headers["ratelimit-policy"] == '"tokens";q=100;w=60'
    assert response.headers["ratelimit"].startswith('"tokens";r=83;')


def test_what_a_request_may_come_to_must_be_there(client: TestClient, generator: Scripted) -> None:
    assert client.post("/v1/completions", json={"prompt": "abcd", "max_tokens": 60}).status_code == 200
    refused = client.post("/v1/completions", json={"prompt": "abcd", "max_tokens": 60})
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "18")
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert (
        "address testclient has 35 of its 100 tokens a minute left, and this may come to 65" in refused.json()["detail"]
    )
    assert len(generator.said) == 1
    assert client.post("/v1/completions", json={"prompt": "abcd", "max_tokens": 30}).status_code == 200
    assert client.get("/v1/models").status_code == 200


def test_what_was_not_made_is_given_back(client: TestClient, generator: Scripted) -> None:
    """A text that ends early, a request that is wrong, and one that the engine does not take."""

    def short(choices: Sequence[Choice], deliver: Deliver) -> None:
        deliver(Piece(0, "one", (1,)))
        deliver(Ended(0, "stop", 2, None))

    generator.script = short
    assert client.post("/v1/completions", json={"prompt": "abcd", "max_tokens": 90}).status_code == 200
    assert left(client) == QUOTA - 7
    assert client.post("/v1/completions", json={"prompt": "", "max_tokens": 90}).status_code == 422
    generator.refusal = TooMany("the queue is full", 3)
    assert client.post("/v1/completions", json={"prompt": "abcd", "max_tokens": 80}).status_code == 429
    assert left(client) == QUOTA - 7


def test_who_leaves_pays_for_what_was_made(indexed: Settings) -> None:
    never = threading.Event()

    def hold(choices: Sequence[Choice], deliver: Deliver) -> None:
        deliver(Piece(0, "two tokens", (1, 2)))
        never.wait(5)

    app = create_app(open_home(indexed), generator=Scripted(hold), access=Access(tokens_per_minute=QUOTA))
    app.state.tokens = buckets = Buckets(Rate(QUOTA, 60), clock=lambda: 0.0)
    with listening(app) as url:
        with asked(url, "completions", {"prompt": "abcd", "max_tokens": 50, "stream": True}) as connection:
            assert b"200 OK" in connection.recv(1 << 16)
        wait_for(lambda: buckets.take("address 127.0.0.1", 0).remaining == QUOTA - 7)
    never.set()


def test_openais_client_waits_as_long_as_it_is_told(indexed: Settings) -> None:
    app = create_app(open_home(indexed), generator=Scripted(), access=Access(tokens_per_minute=QUOTA))
    naps: list[float] = []
    app.state.tokens = Buckets(Rate(QUOTA, 60), clock=lambda: sum(naps))

    class Client(openai.OpenAI):
        def _sleep_for_retry(self, *, response: Any = None, **more: Any) -> None:
            naps.append(float(response.headers["retry-after"]))

    with listening(app) as url:
        client = Client(base_url=f"{url}/v1", api_key="none", max_retries=1)
        for _ in range(2):
            assert client.completions.create(model="tiny-qwen3", prompt="abcd", max_tokens=90).usage
    assert naps == [54.0]
