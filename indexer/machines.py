"""What fits on the machines of a cluster: arithmetic over their resources as Ray lists them."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from indexer.config import Cluster
from schema.errors import InputError
from schema.settings import Settings

PINNED = 0.001
"""So much of a machine's own resource keeps a worker on it."""


@dataclass(frozen=True)
class Machine:
    """One that lives."""

    host: str
    address: str
    resources: dict[str, float]

    def cores(self) -> int:
        return int(self.resources.get("CPU", 0))


def one_machine(why: str) -> InputError:
    """A home on SQLite cannot be shared."""
    return InputError(
        f"a home on SQLite is for one machine, but {why}; use PostgreSQL (SCOPEBASE_DATABASE_URL) and a bucket "
        "or a directory that all machines share (SCOPEBASE_STORE_URL)"
    )


def pin(machines: Sequence[Machine], settings: Settings) -> dict[str, float]:
    """The resource that keeps workers on this machine, where the home needs that; nothing where it does not.

    Raises:
        InputError: the home needs it, and the cluster has other machines.
    """
    if settings.database_file is None:
        return {}
    hosts, here = {machine.host for machine in machines}, socket.gethostname()
    if hosts != {here}:
        raise one_machine(f"the Ray cluster is of {', '.join(sorted(hosts))}")
    return {f"node:{machines[0].address}": PINNED}


def share(machines: Sequence[Machine], cluster: Cluster, gpus: float) -> int:
    """Cores a worker where nobody says: a GPU's part of its machine, else by the number of workers, else a machine's."""
    if cluster.cpus_per_worker:
        return cluster.cpus_per_worker
    if gpus:
        beside = [m.cores() * gpus / m.resources["GPU"] for m in machines if m.resources.get("GPU")]
        return max(1, int(min(beside, default=1)))
    cores = [m.cores() for m in machines if m.cores()] or [1]
    return max(1, min(sum(cores) // cluster.workers, max(cores)) if cluster.workers else min(cores))


def room(machines: Sequence[Machine], needed: dict[str, float]) -> int:
    """Workers for which the cluster, were it empty, has room."""
    fits = [[m.resources.get(name, 0) / need for name, need in needed.items() if need] for m in machines]
    return sum(int(min(each)) for each in fits)
