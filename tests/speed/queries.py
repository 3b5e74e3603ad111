"""The query service on 20 datasets of 1,000 samples each (127 million activations): every question over HTTP, warm; none loads a model."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pyarrow as pa

from schema.home import Home
from schema.layout import directions_table, feature_key, schema_of
from schema.lookup import find_sae
from schema.publish import publish, write
from tests.speed import synthetic
from tests.speed.harness import FOLDER, Table, fresh
from tests.speed.service import Server
from tests.speed.synthetic import MODEL, SAE_NAME

N_DATASETS, N_SAMPLES, LARGE, TIMES, N_LAYERS = 20, 1_000, 4_000, 20, 28
NAMES = [f"d{number}" for number in range(N_DATASETS)]


def measure(args: argparse.Namespace) -> list[Table]:
    """Median and largest of 20 asks of each question, another one each time, after two that are not counted."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    folder = fresh("queries")
    home = synthetic.make(folder, N_DATASETS, N_SAMPLES)
    invent_directions(home)
    layers = synthetic.invent_layers(home, N_LAYERS - 1)
    home.close()
    synthetic.make(folder, 1, LARGE, prefix="large").close()
    table = Table(
        f"Questions over HTTP, {N_DATASETS} datasets of {N_SAMPLES:,} samples, d_sae 32,768, k 50",
        ["question", "median ms", "largest ms", "promised"],
    )
    with Server(folder) as server:
        features = firing(server)
        for name, above in (("fires", 0.0), ("above", 0.5)):
            rule = {"any": [{"feature": f"{SAE_NAME}/{feature}", "above": above} for feature in features[:5]]}
            ask(server, "rules", {"name": name, "expression": rule})
        for title, promised, path, body in questions(features):
            for number in range(2):
                ask(server, path.format(features[number], 0.9 + number / 1000), body_of(body, number))
            took = [
                timed(server, path.format(features[number], 0.9 + number / 1000), body_of(body, number))
                for number in range(2, 2 + TIMES)
            ]
            table.rows.append([title, f"{statistics.median(took):.0f}", f"{max(took):.0f}", promised])
        table.rows += every_layer(server, layers)
    return [table]


def every_layer(server: Server, layers: list[str]) -> list[list[str]]:
    """The overlap of all datasets in each layer: profiles that nobody has read before, then with another threshold from memory."""
    every = "&".join(f"dataset={name}" for name in NAMES)
    rows = []
    for title, least in (("read for the first time", 1), ("in memory, another threshold", 2)):
        took = [timed(server, f"overlap?sae={sae}&min_samples={least}&{every}", None) for sae in layers[1:]]
        named = f"overlap, all pairs of 20, a layer of {len(layers)}, {title}"
        rows.append([named, f"{statistics.median(took):.0f}", f"{max(took):.0f}", "50" if least > 1 else ""])
    return rows


def questions(features: list[int]) -> list[tuple[str, str, str, Any]]:
    """(what, promise, path, body) of each question; `{0}` in a path takes a feature, `{1}` a share."""
    every = "&".join(f"dataset={name}" for name in NAMES)
    apart = {
        "and": [{"dataset": "d0", "min_rate": 0.05}, *({"not": {"dataset": d, "min_rate": 0.2}} for d in NAMES[1:])]
    }
    discovery = {"saes": [SAE_NAME], "dataset": "large0", "label_field": "label", "positive": 1}
    labelled = {"datasets": NAMES, "label_field": "label", "positive": 1}
    sae = f"sae={SAE_NAME}"
    return [
        ("overlap, all pairs of 20", "50", f"overlap?{sae}&{every}", None),
        ("feature query over 20 datasets", "100", "features/query", {"sae": SAE_NAME, "where": apart}),
        ("dossier, another feature each time", "150", f"features/{SAE_NAME}/{{0}}", None),
        (
            "coverage gap of 19 datasets",
            "",
            "coverage-gaps",
            {"sae": SAE_NAME, "datasets": NAMES[1:], "target": {"dataset": "d0"}},
        ),
        (
            "rule of 5 features that fire, over all samples, measured and stored",
            "100",
            "rules/fires/evaluate",
            labelled,
        ),
        ("the same above a threshold", "", "rules/above/evaluate", labelled),
        ("its discovery, 4,000 samples, without baselines", "500", "rules/discover", {**discovery, "baselines": []}),
        ("its discovery, with baselines", "500", "rules/discover", discovery),
        ("subset of 4,000 samples that keeps 90 to 92 %", "1000", f"subset?{sae}&dataset=large0&coverage={{1}}", None),
        ("suite advice on 20 datasets", "", "suite", {"sae": SAE_NAME, "datasets": NAMES}),
    ]


def body_of(body: Any, number: int) -> Any:
    """Another question each time, so that none is answered from memory: a seed, a rate, or a support of its own."""
    if body is None:
        return None
    changed: dict[str, Any] = dict(body)
    if "label_field" in body:
        changed["seed"] = number
    elif "target" in body:
        changed["support"] = 0.001 + number / 1e5
    elif "where" in body:
        changed["where"] = {"and": [{"dataset": "d0", "min_rate": 0.05 + number / 1000}, *body["where"]["and"][1:]]}
    elif "datasets" in body:
        changed["datasets"] = [*NAMES[number % N_DATASETS :], *NAMES[: number % N_DATASETS]]
    return changed


def firing(server: Server) -> list[int]:
    """Features that fire in some samples of the first dataset and not in all, the commonest first."""
    body = {"sae": SAE_NAME, "where": {"dataset": "d0", "min_rate": 0.05, "max_rate": 0.6}, "sort": "rate", "limit": 50}
    return [item["index"] for item in ask(server, "features/query", body)["data"]]


def ask(server: Server, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = Request(f"{server.url}/v1/{path}", data, {"content-type": "application/json"})
    with urlopen(request) as answer:
        return json.load(answer)


def timed(server: Server, path: str, body: Any) -> float:
    begin = time.perf_counter()
    ask(server, path, body)
    return (time.perf_counter() - begin) * 1000


def invent_directions(home: Home) -> None:
    """Random decoder directions, which no model has made."""
    with home.database.reading() as session:
        sae = find_sae(session, SAE_NAME)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((sae.d_sae, MODEL.d_model)).astype(np.float16)
    name = directions_table(MODEL.d_model)
    columns = [
        pa.array([feature_key(sae.id, feature) for feature in range(sae.d_sae)]),
        pa.array(np.linalg.norm(vectors.astype(np.float32), axis=1)),
        pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), MODEL.d_model),
    ]
    rows = pa.Table.from_arrays(columns, names=schema_of(name).names).cast(schema_of(name))
    fragments = write(home.store, name, rows)
    publish(home.store, name, lambda: fragments)
