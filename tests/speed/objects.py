"""The same questions with the activation store on a disk and in a bucket: a local S3 server that answers each request 30 ms late, as one
in the same region does. What counts is the number of requests, their bytes, and how long a question waits for them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from fastapi.testclient import TestClient

from api.app import create_app
from schema.backup import back_up, restore
from schema.home import open_home
from schema.settings import Settings
from tests.objects import Fault, serving
from tests.speed import synthetic
from tests.speed.harness import FOLDER, Table, fresh
from tests.speed.queries import NAMES, invent_directions
from tests.speed.synthetic import SAE_NAME

N_SAMPLES, TIMES, LATE = 500, 5, 0.03
EVERY = "&".join(f"dataset={name}" for name in NAMES)


def measure(args: argparse.Namespace) -> list[Table]:
    """Each question cold, in a service just started, and then warm: another feature, rule or threshold each time."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    folder = fresh("objects")
    home = synthetic.make(folder / "disk", len(NAMES), N_SAMPLES)
    invent_directions(home)
    back_up(home, folder / "backup")
    home.close()
    disk = Settings.read(folder / "disk", {})
    with serving(folder / "bucket") as bucket:
        os.environ |= bucket.environ
        far = Settings.read(folder / "far", {"SCOPEBASE_STORE_URL": bucket.url("home")})
        restore(folder / "backup", far)
        bucket.fail(Fault("slow", seconds=LATE))
        near, away = asked(disk, bucket), asked(far, bucket)
    table = Table(
        f"Questions over {len(NAMES)} datasets of {N_SAMPLES} samples, d_sae 32,768, k 50, the store in a bucket "
        f"{LATE * 1000:.0f} ms away, beside the same on a disk",
        ["question", "requests", "MB", "ms", "ms on a disk", "times the disk"],
    )
    for (title, requests, n_bytes, ms), (_, _, _, ms_near) in zip(away, near, strict=True):
        table.rows.append(
            [title, f"{requests:.0f}", f"{n_bytes / 1e6:.1f}", f"{ms:.0f}", f"{ms_near:.0f}", f"{ms / ms_near:.1f}"]
        )
    return [table]


Row = tuple[str, float, float, float]


def asked(settings: Settings, bucket: Any) -> list[Row]:
    """(question, requests, bytes, milliseconds): the one cold ask, then the median of the warm ones."""
    rows: list[Row] = []

    def taken(title: str, calls: list[Callable[[], Any]]) -> None:
        found = [_counted(call, bucket) for call in calls]
        rows.append((title, *(statistics.median(column) for column in zip(*found, strict=True))))

    opened: list[Any] = []
    taken("opening the home", [lambda: opened.append(open_home(settings))])
    with TestClient(create_app(opened[0]), base_url="http://127.0.0.1") as client:

        def ask(path: str, body: Any = None) -> Any:
            answer = client.get(f"/v1/{path}") if body is None else client.post(f"/v1/{path}", json=body)
            assert answer.status_code < 300, answer.text
            return answer.json()

        sae = f"sae={SAE_NAME}"
        taken("overlap of 20 datasets, cold", [lambda: ask(f"overlap?{sae}&{EVERY}")])
        taken(
            "overlap, another threshold",
            [lambda n=n: ask(f"overlap?{sae}&min_samples={n}&{EVERY}") for n in range(2, 2 + TIMES)],
        )
        where = {"dataset": "d0", "min_rate": 0.05, "max_rate": 0.6}
        query = {"sae": SAE_NAME, "where": where, "sort": "rate", "limit": 50}
        features = [item["index"] for item in ask("features/query", query)["data"]]
        taken("dossier of a feature, cold", [lambda: ask(f"features/{SAE_NAME}/{features[0]}")])
        taken(
            "dossier, another feature",
            [lambda f=f: ask(f"features/{SAE_NAME}/{f}") for f in features[1 : 1 + TIMES]],
        )
        for number in range(1 + TIMES):
            any_of = [{"feature": f"{SAE_NAME}/{f}", "above": 0.0} for f in features[number * 5 : number * 5 + 5]]
            ask("rules", {"name": f"rule{number}-{settings.home.name}", "expression": {"any": any_of}})
        labelled = {"datasets": NAMES, "label_field": "label", "positive": 1}
        rules = [lambda n=n: ask(f"rules/rule{n}-{settings.home.name}/evaluate", labelled) for n in range(1 + TIMES)]
        taken("rule of 5 features over all samples, cold", rules[:1])
        taken("another rule", rules[1:])
        taken("subset of a dataset, cold", [lambda: ask(f"subset?{sae}&dataset=d1&coverage=0.9")])
    return rows


def _counted(call: Callable[[], Any], bucket: Any) -> tuple[float, float, float]:
    before, begin = bucket.counts(), time.perf_counter()
    call()
    ms = (time.perf_counter() - begin) * 1000
    after = bucket.counts()
    requests = sum(after[kind] - before[kind] for kind in ("GET", "LIST", "HEAD", "PUT", "POST", "DELETE"))
    return requests, after["bytes out"] - before["bytes out"], ms
