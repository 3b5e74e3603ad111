"""A Hugging Face hub on this machine: real HTTP, and as much of the hub's API as its own client library asks for.

Repositories lie in `root/models/<owner>/<name>` and `root/datasets/<owner>/<name>`. Each has one commit, `main`, named by its content.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
_FILE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class Hub:
    """The server and what it was asked for. Use as `with`; it may be stopped before."""

    def __init__(self, root: Path, port: int = 0) -> None:
        self.root = root
        self.asked: list[str] = []
        """Method and path of every request."""
        hub = self

        class Handler(_Handler):
            def setup(self) -> None:
                super().setup()
                self.hub = hub
                hub._callers.append(self.connection)

        self._callers: list[socket.socket] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """From now on nobody listens at its address, and who is still connected is hung up on."""
        if self._server.socket.fileno() >= 0:
            self._server.shutdown()
            self._server.server_close()
            for caller in self._callers:
                with suppress(OSError):
                    caller.shutdown(socket.SHUT_RDWR)

    def fetched(self, repo: str) -> set[str]:
        """The files of a repository that were sent."""
        found = (_FILE.fullmatch(path.removeprefix("GET ")) for path in self.asked if path.startswith("GET "))
        return {match[4] for match in found if match and match[2] == repo}

    def commit(self, repo: str, kind: str = "models") -> str:
        """The repository's commit: 40 hexadecimal digits of its content."""
        digest = hashlib.sha1()
        for file in _files(self.root / kind / repo):
            digest.update(file.name.encode() + hashlib.sha1(file.read_bytes()).digest())
        return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """The hub keeps its own list."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        address = urlsplit(self.path)
        path, body = unquote(address.path), self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.asked.append(f"{self.command} {path}")
        if match := _API.fullmatch(path):
            kind, repo, what, revision, folder = match.groups()
            self._describe(kind, repo, what or "revision", revision or "main", folder or "", parse_qs(body.decode()))
        elif match := _FILE.fullmatch(path):
            kind, repo, revision, name = match.groups()
            self._send_file(kind or "models", repo, revision, name)
        else:
            self._refuse("EntryNotFound")

    def _describe(
        self, kind: str, repo: str, what: str, revision: str, folder: str, form: dict[str, list[str]]
    ) -> None:
        root = self._root(kind, repo, revision)
        if root is None:
            return
        if what == "tree" and not (root / folder).is_dir():
            self._refuse("EntryNotFound")
        elif what == "revision":
            names = [{"rfilename": str(file.relative_to(root))} for file in _files(root)]
            self._send_json({"id": repo, "sha": self.hub.commit(repo, kind), "siblings": names, "tags": []})
        elif what == "tree":
            self._send_json([_entry(root, path) for path in sorted((root / folder).rglob("*"))])
        else:
            self._send_json([_entry(root, root / name) for name in form["paths"] if (root / name).exists()])

    def _send_file(self, kind: str, repo: str, revision: str, name: str) -> None:
        root = self._root(kind, repo, revision)
        if root is None:
            return
        if not (root / name).is_file():
            self._refuse("EntryNotFound", {"X-Repo-Commit": self.hub.commit(repo, kind)})
            return
        content = (root / name).read_bytes()
        headers = {"X-Repo-Commit": self.hub.commit(repo, kind), "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        self._send(200, content, {**headers, "Content-Type": "application/octet-stream"})

    def _root(self, kind: str, repo: str, revision: str) -> Path | None:
        root = self.hub.root / kind / repo
        if not root.is_dir():
            self._refuse("RepoNotFound")
        elif revision not in ("main", self.hub.commit(repo, kind)):
            self._refuse("RevisionNotFound")
        else:
            return root
        return None

    def _refuse(self, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(404, b"", {**(headers or {}), "X-Error-Code": code, "X-Error-Message": "not found"})

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def _entry(root: Path, path: Path) -> dict[str, Any]:
    """A file or folder as the hub's tree lists it."""
    name = str(path.relative_to(root))
    if path.is_dir():
        return {"type": "directory", "path": name, "size": 0, "oid": hashlib.sha1(name.encode()).hexdigest()}
    content = path.read_bytes()
    return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
