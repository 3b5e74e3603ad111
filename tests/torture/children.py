"""Work in forked processes, which may be killed, stopped or starved while the one that watches goes on.

The watcher itself never touches Lance, torch's threads or a database: who has used those cannot fork any more.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from schema.errors import ScopebaseError

DONE, REFUSED, BROKEN = 0, 1, 3
"""Exit statuses: the work is done; it ended with a sentence; it ended with something that no user should see."""


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int | None
    """None where a signal ended it."""
    said: str

    @property
    def killed(self) -> bool:
        return self.status is None


class Child:
    """A forked process and, once it has ended, its last words."""

    def __init__(self, work: Callable[[], str | None]) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self._read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._read)
            os.setpgid(0, 0)
            _run(work, write)
        os.close(write)
        self.ended: Ended | None = None

    def wait(self, seconds: float = 240) -> Ended:
        """Its end.

        Raises:
            AssertionError: it does not end; it is killed then.
        """
        if self.ended is None:
            said = self._words(time.monotonic() + seconds)
            _, status = os.waitpid(self.pid, 0)
            self.ended = Ended(None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), said)
        return self.ended

    def _words(self, until: float) -> str:
        said = b""
        with os.fdopen(self._read, "rb", buffering=0) as pipe:
            while True:
                ready, _, _ = select.select([pipe], [], [], max(0.0, until - time.monotonic()))
                if not ready:
                    self.kill()
                    os.waitpid(self.pid, 0)
                    raise AssertionError("a process hung")
                piece = pipe.read(1 << 16)
                if not piece:
                    return said.decode("utf-8", "replace")
                said += piece

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal to the process and all that it has started."""
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            return

    def stopped(self, seconds: float = 60) -> bool:
        """Waits until it has stopped itself; False where it ended first."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pid, status = os.waitpid(self.pid, os.WUNTRACED | os.WNOHANG)
            if pid and os.WIFSTOPPED(status):
                return True
            if pid:
                with os.fdopen(self._read, "rb") as pipe:
                    said = pipe.read().decode("utf-8", "replace")
                self.ended = Ended(None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), said)
                return False
            time.sleep(0.01)
        raise AssertionError("a process neither stopped nor ended")


def _run(work: Callable[[], str | None], write: int) -> None:
    """The child's life."""
    status, said = DONE, ""
    try:
        said = work() or ""
    except ScopebaseError as error:
        status, said = REFUSED, f"{type(error).__name__}: {error}"
    except BaseException:
        status, said = BROKEN, traceback.format_exc()
    try:
        os.write(write, said.encode("utf-8", "replace")[-30_000:])
    finally:
        os._exit(status)


def done(work: Callable[[], str | None], seconds: float = 240) -> str:
    """What a child returns.

    Raises:
        AssertionError: it did not come to its end.
    """
    ended = Child(work).wait(seconds)
    assert ended.status == DONE, f"ended with {ended.status}: {ended.said[-3000:]}"
    return ended.said
