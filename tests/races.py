"""Many clients who change one thing at once, through as many processes of a service: of those on one version one wins, the others are told.

What is changed is a label, a rule and a steering vector, each with the version that its author read. And one job is submitted by all of
them with one Idempotency-Key.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil

ROUNDS = 3
Change = Callable[[httpx.Client, int, str], httpx.Response]
"""Says something else of it, as somebody who read that version."""
Read = Callable[[httpx.Client], tuple[int, str]]
"""Its version, and what is said of it."""
History = Callable[[httpx.Client], list[str]]
"""What was ever said of it, oldest first."""


def race(clients: Sequence[httpx.Client], feature: str, width: int, rounds: int = ROUNDS) -> dict[str, str]:
    """Raises AssertionError where an update is lost, two win, or two processes say different things.

    Args:
        width: d_model of the feature's model.

    Returns:
        The label that was fought over: id -> text.
    """
    made = clients[0].post("/v1/labels", json={"feature": feature, "text": "contested"})
    assert made.status_code == 201, made.text
    uid = made.json()["id"]
    for change, read, history in (_rule(feature), _vector(feature, width), _label(uid)):
        kept = [f"round {number}: {_round(clients, number, change, read)}" for number in range(rounds)]
        for client in clients:
            assert history(client) == kept
    _one_job(clients)
    return {uid: kept[-1]}


def _round(clients: Sequence[httpx.Client], number: int, change: Change, read: Read) -> int:
    """Everybody changes what everybody has read; the number of who won."""
    ((version, _),) = {read(client) for client in clients}
    answers = _at_once(clients, lambda place, client: change(client, version, f"round {number}: {place}"))
    won = [place for place, answer in enumerate(answers) if answer.is_success]
    assert len(won) == 1, [answer.text for answer in answers]
    for answer in (answer for place, answer in enumerate(answers) if place != won[0]):
        assert answer.status_code == 409, answer.text
        assert "read it again" in answer.json()["detail"]
    assert {read(client) for client in clients} == {(version + 1, f"round {number}: {won[0]}")}
    return won[0]


def _label(uid: str) -> tuple[Change, Read, History]:
    path = f"/v1/labels/{uid}"

    def change(client: httpx.Client, version: int, text: str) -> httpx.Response:
        return client.patch(path, json={"version": version, "text": text})

    def read(client: httpx.Client) -> tuple[int, str]:
        label = client.get(path).json()
        return label["version"], label["text"]

    def history(client: httpx.Client) -> list[str]:
        events = client.get(f"{path}/history").json()["data"]
        edits = {event["id"]: event["after"]["text"] for event in events if event["action"] == "edit"}
        return [edits[number] for number in sorted(edits)]

    return change, read, history


def _rule(feature: str) -> tuple[Change, Read, History]:
    def change(client: httpx.Client, version: int, text: str) -> httpx.Response:
        asked = {"name": "contested", "based_on": version, "expression": {"feature": feature}, "description": text}
        return client.post("/v1/rules", json=asked)

    return change, *_versions("/v1/rules")


def _vector(feature: str, width: int) -> tuple[Change, Read, History]:
    model, layer = feature.split("/")[0], int(feature.split("/")[1].split("-")[0])

    def change(client: httpx.Client, version: int, text: str) -> httpx.Response:
        file = {"name": "contested", "model": model, "vectors": [{"layer": layer, "vector": [1.0] * width}]}
        asked: dict[str, str | int] = {"based_on": version, "description": text}
        headers = {"content-type": "application/octet-stream"}
        return client.post("/v1/steering-vectors/import", params=asked, content=json.dumps(file), headers=headers)

    return change, *_versions("/v1/steering-vectors")


def _versions(path: str) -> tuple[Read, History]:
    """Of what keeps each version under its name."""

    def read(client: httpx.Client) -> tuple[int, str]:
        found = client.get(f"{path}/contested")
        return (0, "") if found.status_code == 404 else (found.json()["version"], found.json()["description"])

    def history(client: httpx.Client) -> list[str]:
        listed = client.get(path, params={"name": "contested"}).json()["data"]
        assert [each["version"] for each in listed] == list(range(1, len(listed) + 1))
        return [each["description"] for each in listed]

    return read, history


def _one_job(clients: Sequence[httpx.Client]) -> None:
    """The same submission by everybody makes one job; others with the same key are refused."""
    body = {"kind": "index", "model": "no/model", "sae": "no/sae", "datasets": [{"name": "d", "source": "d.jsonl"}]}

    def submit(client: httpx.Client, key: str, limit: int) -> httpx.Response:
        return client.post("/v1/jobs", headers={"idempotency-key": key}, json={**body, "limit": limit})

    answers = _at_once(clients, lambda _place, client: submit(client, "the-same", 1))
    assert {answer.status_code for answer in answers} == {202}, [answer.text for answer in answers]
    (made,) = {answer.json()["id"] for answer in answers}
    others = _at_once(clients, lambda place, client: submit(client, "of-each-its-own", place + 1))
    assert sorted(answer.status_code for answer in others) == [202, *[422] * (len(clients) - 1)]
    (second,) = (answer.json()["id"] for answer in others if answer.status_code == 202)
    for client in clients:
        jobs = [job for job in client.get("/v1/jobs").json()["data"] if job["request"]["model"] == "no/model"]
        assert sorted(job["id"] for job in jobs) == sorted((made, second))


def _at_once(
    clients: Sequence[httpx.Client], call: Callable[[int, httpx.Client], httpx.Response]
) -> list[httpx.Response]:
    """What each client is answered, all of them begun at the same moment."""
    barrier = threading.Barrier(len(clients))

    def wait_and_call(place: int) -> httpx.Response:
        barrier.wait()
        return call(place, clients[place])

    with ThreadPoolExecutor(len(clients)) as pool:
        return list(pool.map(wait_and_call, range(len(clients))))


def spread(url: str, service: int, n_processes: int, each: int, seconds: float = 60) -> list[httpx.Client]:
    """Clients whose connections stay open, so many to each process of a service, as the kernel dealt them out.

    Args:
        service: number of the process that started the others.

    Raises:
        AssertionError: so many processes do not answer.
    """
    found: dict[int, list[httpx.Client]] = {}
    until = time.monotonic() + seconds
    while sum(len(clients) == each for clients in found.values()) < n_processes:
        assert time.monotonic() < until, f"of {n_processes} processes {len(found)} answered"
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(lambda _: httpx.Client(base_url=url, timeout=60, verify=False), range(8)))
            ports = list(pool.map(_port, made))
        owners = {
            connection.raddr.port: child.pid
            for child in psutil.Process(service).children()
            for connection in child.net_connections("tcp")
            if connection.raddr
        }
        for client, port in zip(made, ports, strict=True):
            mine = found.setdefault(owners[port], [])
            if len(mine) < each:
                mine.append(client)
            else:
                client.close()
    return [client for clients in found.values() for client in clients]


def _port(client: httpx.Client) -> int:
    """This side's end of the connection, which is open now."""
    answer = client.get("/v1/health")
    place = answer.extensions["network_stream"].get_extra_info("client_addr")
    return int(place[1])
