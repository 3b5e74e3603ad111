"""A small TCP proxy in a thread of its own, which cuts connections in the middle, or lets nothing through for a while."""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
import struct
import threading
import time
from dataclasses import dataclass


@dataclass
class Pipe:
    """One connection through the proxy."""

    near: socket.socket
    far: socket.socket
    left: int
    """Bytes until it is cut, in whatever direction."""


class Proxy:
    """Passes bytes on to a port; every connection is cut after some of them until `cuts` were made."""

    def __init__(self, port: int, rng: random.Random, cuts: int, reach: int, slow: float = 0.0) -> None:
        self.target, self.rng, self.cuts, self.reach, self.slow = port, rng, cuts, reach, slow
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.made, self._pipes, self._stop = 0, list[Pipe](), threading.Event()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.listener, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        for pipe in list(self._pipes):
            self._cut(pipe)
        self.listener.close()
        self._selector.close()

    def _serve(self) -> None:
        while not self._stop.is_set():
            for key, _ in self._selector.select(0.1):
                if key.data is None:
                    self._accept()
                elif key.data in self._pipes:
                    self._pass(key.data, key.fileobj)  # type: ignore[arg-type]

    def _accept(self) -> None:
        near, _ = self.listener.accept()
        try:
            far = socket.create_connection(("127.0.0.1", self.target))
        except OSError:
            near.close()
            return
        pipe = Pipe(near, far, self.rng.randrange(self.reach))
        self._pipes.append(pipe)
        for end in (near, far):
            self._selector.register(end, selectors.EVENT_READ, pipe)

    def _pass(self, pipe: Pipe, ready: socket.socket) -> None:
        other = pipe.far if ready is pipe.near else pipe.near
        try:
            data = ready.recv(1 << 16)
            if self.slow:
                time.sleep(self.slow)
            if self.made < self.cuts and len(data) >= pipe.left:
                other.sendall(data[: pipe.left])
                self.made += 1
                self._cut(pipe)
                return
            pipe.left -= len(data)
            other.sendall(data)
        except OSError:
            data = b""
        if not data:
            self._cut(pipe)

    def _cut(self, pipe: Pipe) -> None:
        """Both ends, at once, as a reset."""
        if pipe in self._pipes:
            self._pipes.remove(pipe)
        for end in (pipe.near, pipe.far):
            with contextlib.suppress(OSError, KeyError, ValueError):
                self._selector.unregister(end)
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.close()
