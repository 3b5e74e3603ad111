"""The client: one method a route."""

from __future__ import annotations

import os
from types import TracebackType

import httpx

from scopebase.client.catalog import Catalog
from scopebase.client.evaluation import Evaluations, Rules
from scopebase.client.features import Features
from scopebase.client.generation import Generation
from scopebase.client.jobs import Jobs
from scopebase.client.labels import Labels
from scopebase.client.questions import Questions
from scopebase.client.sweeps import Sweeps
from scopebase.client.transport import Transport
from scopebase.client.vectors import Vectors


class Client(Catalog, Questions, Features, Rules, Evaluations, Labels, Vectors, Generation, Sweeps):
    """A Scopebase service.

        with Client("https://scopebase.example.org", api_key="sb_...") as client:
            client.overlap("gsm8k", "math").to_pandas()

    Args:
        base_url: where it is, without `/v1`.
        api_key: SCOPEBASE_API_KEY unless given; none where the service asks for none.
        timeout: seconds to wait for an answer.
        retries: how often to ask again where the service is not there yet, or asks to be asked later.
        transport: in place of the network; for tests.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        timeout: float = 130.0,
        retries: int = 4,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        key = api_key or os.environ.get("SCOPEBASE_API_KEY")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(
            base_url=f"{base_url.rstrip('/')}/v1",
            headers={"accept": "application/json", "user-agent": "scopebase-client", **headers},
            timeout=httpx.Timeout(timeout, connect=min(timeout, 10.0)),
            transport=transport,
        )
        self._transport = Transport(self._http, retries)
        self.jobs = Jobs(self._transport)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()
