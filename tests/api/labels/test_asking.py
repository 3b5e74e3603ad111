"""Describing and explaining over HTTP, several features at once, against a real endpoint that answers slowly."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from api.progress import HungUp, _Watched
from api.services.labels import book
from api.services.labels.book import Filter
from api.services.labels.chat import Budget, Purse, Spent
from api.services.labels.explaining import Plan, explain
from api.services.labels.showing import find_subject, questions
from api.services.library import Library
from schema.errors import InputError, NotFound, WorkFailed
from schema.wire.labels import DescribeProgress, DescribeReport
from scopebase import Client
from scopebase.chat import ChosenExplainer
from scopebase.cli.serve import explainer_of
from tests.api.labels.test_makers import SAE, chat, live, own, said, serve  # noqa: F401 - fixtures
from tests.scopebase.test_client import serving

EXPLAIN = "/v1/labels/explain"


class Slow:
    """Answers after a while, and counts how many it answers at a time."""

    def __init__(self, seconds: float = 0.1) -> None:
        self.seconds, self.at_work, self.most, self.n = seconds, 0, 0, 0
        self._lock = threading.Lock()

    def __call__(self, _i: int, body: dict[str, Any]) -> Any:
        with self._lock:
            self.at_work += 1
            self.n += 1
            self.most = max(self.most, self.at_work)
        time.sleep(self.seconds)
        with self._lock:
            self.at_work -= 1
        return said("a label" if "Say in one phrase" in body["messages"][0]["content"] else "[1]")


def models_labels(own: Library) -> int:  # noqa: F811
    return len(book.list_labels(own, Filter(source="model"), 1000).data)


def test_features_are_asked_about_side_by_side_and_never_more(own: Library, serve: Any) -> None:  # noqa: F811
    features = live(own, 12)
    slow = Slow(0.2)
    begin = time.perf_counter()
    report = explain(own, SAE, features, chat(serve(slow)[0]), "ann", Plan(at_once=6))
    took = time.perf_counter() - begin
    assert [item.index for item in report.data] == features, "in the order of the question, whoever answered first"
    assert (slow.most, slow.n, report.requests) == (6, 12, 12)
    assert took < 12 * 0.2, "twelve one by one take longer than that"


@pytest.mark.parametrize(
    ("budget", "scored", "asked", "made", "stopped"),
    [
        (Budget(requests=5), 0, 5, 5, "the budget of 5 requests is spent"),
        (Budget(requests=5), 3, 4, 2, "the budget of 5 requests is spent but for 1, and a feature needs 2"),
        (Budget(tokens=250), 0, 3, 3, "the budget of 250 tokens is spent"),
    ],
)
def test_a_budget_holds_for_all_at_once(
    own: Library, serve: Any, budget: Budget, scored: int, asked: int, made: int, stopped: str  # noqa: F811
) -> None:  # fmt: skip
    asked_about = questions(own, find_subject(own, SAE), live(own, 256), 12, 3, 0)
    features = [question.feature for question in asked_about if question.n_requests == 2][:10]
    slow = Slow(0.05)
    endpoint = chat(serve(slow)[0], budget=budget)
    report = explain(own, SAE, features, endpoint, "ann", Plan(at_once=8, scored=scored))
    assert (slow.n, report.requests, len(report.data), report.stopped) == (asked, asked, made, stopped)
    assert (report.left, models_labels(own), report.failed) == (10 - made, made, [])
    rest = explain(own, SAE, features, chat(serve(Slow(0))[0]), "ann", Plan(at_once=8))
    assert (rest.skipped, len(rest.data)) == (made, 10 - made)


def test_who_is_interrupted_keeps_what_is_answered(own: Library, serve: Any) -> None:  # noqa: F811
    features = live(own, 12)
    slow = Slow(0.05)
    done: list[int] = []

    def interrupt(n: int, of: int) -> None:
        assert of == 12
        done.append(n)
        if sum(done) == 4:
            time.sleep(0.3)  # the others at work are answered meanwhile
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        explain(own, SAE, features, chat(serve(slow)[0]), "ann", Plan(at_once=4), interrupt)
    kept = models_labels(own)
    assert kept == slow.n >= 7, "nothing that was paid for is lost"
    report = explain(own, SAE, features, chat(serve(Slow(0))[0]), "ann", Plan(at_once=4))
    assert (report.skipped, len(report.data), models_labels(own)) == (kept, 12 - kept, 12)


def test_retries_are_paid_from_what_nobody_has_set_aside() -> None:
    purse = Purse(Budget(requests=3))
    with purse.hold(2) as mine:
        purse.begin(mine, 10)
        purse.end(10, 1)
        with pytest.raises(Spent), purse.hold(2):
            pass
        with purse.hold(1) as other:
            purse.begin(other, 10)
            purse.end(10, 1)
            with pytest.raises(Spent, match="the budget of 3 requests is spent"):
                purse.begin(other, 10)  # a retry: the one that is left is set aside
        purse.begin(mine, 10)
        purse.end(10, 1)
    assert (purse.requests, purse.tokens) == (3, 3)


@pytest.fixture
def service(own: Library, serve: Any) -> Iterator[Callable[..., TestClient]]:  # noqa: F811
    """A service with an explainer model that answers so."""
    open_now: list[TestClient] = []

    def start(script: Any = None, key: str | None = None) -> TestClient:
        explainer = ChosenExplainer(serve(script)[0], "explainer-1", key) if script else None
        client = TestClient(create_app(own.home, explainer=explainer))
        open_now.append(client)
        return client

    yield start
    for client in open_now:
        client.close()


def lines(answer: Any) -> list[dict[str, Any]]:
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def test_features_are_described_over_http(own: Library, service: Any) -> None:  # noqa: F811
    client = service()
    some = live(own, 3)
    report = client.post("/v1/labels/describe", json={"sae": SAE, "features": [*some, some[0]]}).json()
    assert report == {"sae": SAE, "described": 3, "written": 3, "never_firing": 0}
    told = lines(client.post("/v1/labels/describe", json={"sae": SAE}, headers={"accept": "application/x-ndjson"}))
    assert told[-1]["report"]["written"] == told[-1]["report"]["described"] - 3
    assert told[-1]["done"] == told[-1]["of"] > 10
    stored = book.list_labels(own, Filter(source="describer"), 1000).data
    assert {label.author for label in stored} == {"scopebase"}
    for form in ("json", "ndjson"):
        refused = client.post(f"/v1/labels/describe?format={form}", json={"sae": SAE, "features": [256]})
        assert (refused.status_code, refused.headers["content-type"]) == (404, "application/problem+json")


def test_features_are_explained_over_http(own: Library, service: Any) -> None:  # noqa: F811
    client = service(Slow(0.02))
    some = live(own, 5)
    report = client.post(EXPLAIN, json={"sae": SAE, "features": some[:2]}).json()
    assert [label["author"] for label in report["data"]] == ["local"] * 2
    told = lines(client.post(f"{EXPLAIN}?format=ndjson", json={"sae": SAE, "features": some, "max_requests": 2}))
    assert (told[-1]["done"], told[-1]["of"]) == (2, 3)
    assert (told[-1]["report"]["skipped"], told[-1]["report"]["requests"], told[-1]["report"]["left"]) == (2, 2, 1)
    assert models_labels(own) == 4


@pytest.mark.parametrize("more", [{"endpoint": "http://169.254.169.254/"}, {"url": "x"}, {"key": "x"}, {"model": "x"}])
def test_nobody_says_from_outside_whom_the_service_asks(service: Any, more: dict[str, str]) -> None:
    slow = Slow(0)
    assert service(slow).post(EXPLAIN, json={"sae": SAE, **more}).status_code == 422
    assert slow.n == 0


def test_without_an_explainer_model_it_is_said(service: Any) -> None:
    said = service().post(EXPLAIN, json={"sae": SAE})
    assert said.status_code == 503
    assert "no explainer model is chosen here; start the service with 'scopebase serve --explainer" in said.text


@pytest.mark.parametrize("form", ["json", "ndjson"])
def test_what_the_endpoint_says_of_the_key_stays_here(own: Library, service: Any, form: str) -> None:  # noqa: F811
    client = service(lambda _i, _body: 401, "sk-secret")
    answer = client.post(f"{EXPLAIN}?format={form}", json={"sae": SAE, "features": live(own, 2)})
    problem = answer.json() if form == "json" else lines(answer)[-1]["problem"]
    assert problem["status"] == 503
    assert problem["detail"].startswith("the explainer model refuses the service (status 401)")
    assert "sk-" not in answer.text
    assert "http://" not in answer.text
    assert models_labels(own) == 0


def test_who_hangs_up_ends_the_work() -> None:
    steps: list[int] = []

    def work(advance: Callable[[int, int], None]) -> DescribeReport:
        advance(0, 1000)
        for i in range(1000):
            time.sleep(0.01)
            advance(1, 1000)
            steps.append(i)
        raise AssertionError("nobody listens")

    async def hang_up() -> DescribeProgress:
        told = watched.lines(DescribeProgress)
        first = json.loads(await anext(told))
        await told.aclose()  # type: ignore[attr-defined]
        return DescribeProgress.model_validate(first)

    watched = _Watched(work)
    watched.checked.wait()
    assert asyncio.run(hang_up()).of == 1000
    for _ in range(100):
        if watched.ended:
            break
        time.sleep(0.02)
    assert watched.ended
    assert len(steps) < 500
    assert not isinstance(watched.error, HungUp)


def test_a_fault_on_the_way_is_a_problem_without_its_words() -> None:
    def work(advance: Callable[[int, int], None]) -> DescribeReport:
        advance(0, 1)
        raise RuntimeError("a secret")

    async def last() -> bytes:
        return [line async for line in _Watched(work).lines(DescribeProgress)][-1]

    assert json.loads(asyncio.run(last()))["problem"]["status"] == 500
    assert b"secret" not in asyncio.run(last())


def test_the_client_follows(own: Library, serve: Any) -> None:  # noqa: F811
    app = create_app(own.home, explainer=ChosenExplainer(serve(Slow(0.02))[0], "explainer-1"))
    some = live(own, 3)
    told: list[tuple[int, int]] = []
    with serving(app) as url, Client(url) as client:
        assert client.describe_features(sae=SAE, features=some).written == 3
        report = client.explain_features(sae=SAE, features=some, max_requests=2, advance=lambda *at: told.append(at))
        assert (len(report.data), report.left, report.stopped) == (2, 1, "the budget of 2 requests is spent")
        assert told[-1] == (2, 3)
        with pytest.raises(NotFound, match="no SAE named"):
            client.explain_features(sae="tiny-qwen3/9-tiny")
    with (
        serving(create_app(own.home)) as url,
        Client(url, retries=0) as client,
        pytest.raises(WorkFailed, match="503|no explainer"),
    ):
        client.explain_features(sae=SAE)


@pytest.mark.parametrize(
    ("url", "model", "sentence"),
    [
        ("http://x/v1", None, "--explainer and --explainer-model come together"),
        (None, "m", "--explainer and --explainer-model come together"),
        ("x", "m", "--explainer 'x': an address such as"),
    ],
)
def test_an_explainer_that_is_none_is_refused(url: str | None, model: str | None, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        explainer_of(url, model, "NO_KEY")


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret")
    chosen = explainer_of("http://x/v1", "m", "MY_KEY")
    assert chosen is not None
    assert (chosen.key, "sk-secret" in repr(chosen)) == ("sk-secret", False)
    assert explainer_of(None, None, "MY_KEY") is None
