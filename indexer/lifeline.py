"""Whether that is still there without which a Ray cannot go on. Asked before Ray itself is asked for anything, because Ray would wait a
minute for what has died, and then end this process.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import psutil

from schema.errors import WorkFailed

SILENT_SECONDS = 10.0
"""How long a cluster may be out of reach."""
LOOK_SECONDS = 0.4
"""Between two looks."""
TRY_SECONDS = 2.0
"""For one try to reach it."""


class Lifeline(Protocol):
    """What a Ray hangs on."""

    def holds(self) -> bool:
        """Whether Ray may be asked for something now."""

    def check(self) -> bool:
        """The same.

        Raises:
            WorkFailed: it has torn, and the command is to end.
        """

    def broke(self, error: BaseException) -> str | None:
        """A sentence, where an error is no more than a sign that it has torn."""

    def cut(self) -> None:
        """Ends what is left of a Ray that has torn."""


class Ours:
    """The servers of a Ray that was started here: one is no use without the other, and workers end with them."""

    def __init__(self, servers: Sequence[psutil.Process]) -> None:
        self.servers = servers

    def holds(self) -> bool:
        return all(lives(server) for server in self.servers)

    def check(self) -> bool:
        if not self.holds():
            raise WorkFailed("Ray on this machine died; run the same command again, it goes on where it stopped")
        return True

    def broke(self, error: BaseException) -> str | None:
        return None

    def cut(self) -> None:
        for server in self.servers:
            with contextlib.suppress(psutil.NoSuchProcess):
                server.kill()


class Theirs:
    """The servers of a cluster that is somebody else's; they may be out of reach for a moment.

    Args:
        servers: what each is -> its `host:port`.
    """

    def __init__(self, servers: Mapping[str, str]) -> None:
        self.servers = servers
        self._silent_since: float | None = None
        self._looked = -LOOK_SECONDS
        self._found: str | None = None

    def holds(self) -> bool:
        return self._silent() is None

    def check(self) -> bool:
        silent, present = self._silent(), time.monotonic()
        if silent is None:
            self._silent_since = None
            return True
        self._silent_since = self._silent_since or present
        if present - self._silent_since > SILENT_SECONDS:
            raise WorkFailed(
                f"{silent} at {self.servers[silent]} does not answer any more; run the same command again when a Ray cluster is there, "
                "it goes on where it stopped"
            )
        return False

    def _silent(self) -> str | None:
        """One that does not answer, if any; asked anew now and then."""
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._found = next((name for name, address in self.servers.items() if not answers(address)), None)
            self._looked = time.monotonic()
        return self._found

    def broke(self, error: BaseException) -> str | None:
        return None

    def cut(self) -> None: ...


class Line:
    """A connection to a cluster that tells that it is broken by what it raises, as that of Ray's client does."""

    def __init__(self, address: str | None = None) -> None:
        self.address = address
        self._broken = False

    def holds(self) -> bool:
        return not self._broken

    def check(self) -> bool:
        return True

    def broke(self, error: BaseException) -> str | None:
        self._broken = isinstance(error, ConnectionError) or type(error).__module__.startswith("grpc.")
        said = f"the connection to {self.address} broke; run the same command again, it goes on where it stopped"
        return said if self._broken else None

    def cut(self) -> None: ...


def lives(process: psutil.Process) -> bool:
    """Whether it runs; one that was killed stays in the table until its parent looks."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def answers(address: str) -> bool:
    """Whether something takes a connection at `host:port`."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), TRY_SECONDS).close()
    except OSError:
        return False
    return True
