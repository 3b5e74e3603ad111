"""A Ray cluster of several nodes on one machine: each is a raylet of its own that can die or come while the others work."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
from ray.cluster_utils import Cluster

MEMORY = 80 << 20
"""Of a node's object store; hardly anything goes through it."""


class Nodes:
    """A head that does no work itself, and nodes of one core each."""

    def __init__(self, n: int, **head: Any) -> None:
        plain = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": MEMORY}
        self.cluster = Cluster(initialize_head=True, head_node_args={**plain, **head})
        for _ in range(n):
            self.add()

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self) -> int:
        """One node more; the process of its raylet."""
        node = self.cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
        return _process(node, "raylet")

    def kill_node_of(self, worker: int) -> int:
        """kill -9 of the raylet that runs this worker, with which its workers die; its process."""
        raylet = psutil.Process(worker).ppid()
        assert raylet in {_process(node, "raylet") for node in self.cluster.worker_nodes}
        os.kill(raylet, signal.SIGKILL)
        return raylet

    def kill_head(self) -> None:
        """kill -9 of all that runs on the head."""
        for kind in ("gcs_server", "raylet"):
            os.kill(_process(self.cluster.head_node, kind), signal.SIGKILL)


def _process(node: Any, kind: str) -> int:
    return int(node.all_processes[kind][0].process.pid)


@contextmanager
def nodes(n: int, **head: Any) -> Iterator[Nodes]:
    """A cluster of so many nodes, gone at the end."""
    made = Nodes(n, **head)
    try:
        yield made
    finally:
        for node in made.cluster.list_all_nodes()[::-1]:
            made.cluster.remove_node(node, allow_graceful=False)  # else each waits half a minute for its work to end
