"""What the service did, for Prometheus: requests and how long they took by route, and what the home holds.

Several processes of one service share the numbers through files (`PROMETHEUS_MULTIPROC_DIR`, which `scopebase serve --workers` sets).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from sqlalchemy import func, select
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from schema.errors import ScopebaseError
from schema.home import Home
from schema.lab import Label
from schema.tables import Dataset, Job, Run, Sae, Shard
from schema.words import JobState

BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 120)
SHARED = "PROMETHEUS_MULTIPROC_DIR"


class Metrics:
    """The numbers of one application."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._own = CollectorRegistry()
        by = ("method", "route", "status")
        self.requests = Counter("scopebase_requests", "Requests that were answered", by, registry=self._own)
        self.seconds = Histogram(
            "scopebase_request_seconds", "Until the answer had ended", by[:2], buckets=BUCKETS, registry=self._own
        )
        self.at_work = Gauge(
            "scopebase_requests_at_work", "Requests being answered", registry=self._own, multiprocess_mode="livesum"
        )

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        registry = self._own
        if SHARED in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        held = CollectorRegistry()
        held.register(Holdings(self._home))
        return generate_latest(registry) + generate_latest(held)


class Holdings:
    """What the home holds, counted when somebody looks."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            with self._home.database.reading() as session:
                counts = list(session.scalars(select(Run.counts).where(Run.finished.is_not(None))))
                shards = dict(session.execute(select(Shard.state, func.count()).group_by(Shard.state)).all())
                jobs = dict(session.execute(select(Job.state, func.count()).group_by(Job.state)).all())
                numbers = {
                    "saes": (session.scalar(select(func.count(Sae.id))), "SAEs"),
                    "datasets": (session.scalar(select(func.count(Dataset.id))), "Versions of datasets"),
                    "labels": (
                        session.scalar(select(func.count(Label.id)).where(Label.deleted_at.is_(None))),
                        "Labels",
                    ),
                    "runs_finished": (len(counts), "Finished runs"),
                    "tokens": (sum(int(c.get("tokens", 0)) for c in counts), "Tokens of finished runs"),
                    "activations": (sum(int(c.get("activations", 0)) for c in counts), "Activations of finished runs"),
                    "store_bytes": (sum(int(c.get("bytes", 0)) for c in counts), "What finished runs wrote"),
                }
        except ScopebaseError:
            yield GaugeMetricFamily("scopebase_database_up", "Whether the database answers", value=0)
            return
        yield GaugeMetricFamily("scopebase_database_up", "Whether the database answers", value=1)
        for name, (value, what) in numbers.items():
            yield GaugeMetricFamily(f"scopebase_{name}", what, value=value or 0)
        for name, what, known, found in (
            ("shards", "Pieces of indexing work by state", ("open", "leased", "staged", "committed"), shards),
            ("jobs", "Jobs by state", get_args(JobState), jobs),
        ):
            states = GaugeMetricFamily(f"scopebase_{name}", what, labels=["state"])
            for state in known:
                states.add_metric([state], found.get(state, 0))
            yield states


class Counted:
    """Counts every request under its route's template, so that names in paths make no series of their own."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 500
        begin = time.perf_counter()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.metrics.at_work.inc()
        try:
            await self.app(scope, receive, sending)
        finally:
            self.metrics.at_work.dec()
            route = template(scope)
            self.metrics.requests.labels(scope["method"], route, str(status)).inc()
            self.metrics.seconds.labels(scope["method"], route).observe(time.perf_counter() - begin)


def template(scope: Scope) -> str:
    """`/v1/saes/{sae}` for a request of that route; `none` for what was refused at the gate, or has no route."""
    path = getattr(scope.get("route"), "path", None)
    if path is None:
        return "none"
    first = f"/{scope['path'].split('/')[1]}"
    return str(path) if path.startswith(first) else f"{first}{path}"  # an included router's routes leave its prefix out
