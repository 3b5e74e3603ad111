"""A real S3 server for tests: `localbucket` from PyPI (objects are files in a folder, `If-None-Match: *` is atomic), which also counts
its requests and fails on demand.

    python -m tests.objects FOLDER [--port 9000]      # for the shell; prints the environment that reaches it

From Python: `with serving(folder) as bucket: ...`; killed and started again on its folder and port it has lost nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import httpx
import localbucket

ROOT = Path(__file__).resolve().parent.parent
NAME = "scopebase"
"""The bucket that is there from the start."""
KEY, SECRET = "tester", "not-a-secret"
QUICK = json.dumps({"client_max_retries": "1", "client_retry_timeout": "1", "timeout": "2s", "connect_timeout": "1s"})
"""SCOPEBASE_STORE_OPTIONS of tests that wait for what fails."""
CONTROL = "/-/"
"""No bucket can have this name."""


@dataclass(frozen=True)
class Fault:
    """What the server does instead of answering well, to some requests.

    Kinds: `answer` (this status and code, nothing done), `lost` (does it, then answers status 500), `hang_up` (does it, then closes the
    connection without a word), `cut` (closes in the middle of the body, of either side), `partial` (a part of the bytes asked for, as if
    it were all), `slow` (waits first), `overwrite` (does not look at If-None-Match, as old servers of other makers).
    """

    kind: str = "answer"
    status: int = 500
    code: str = "InternalError"
    share: float = 1.0
    """Of the requests that match, drawn by the seed."""
    seed: int = 0
    methods: tuple[str, ...] = ()
    """GET, HEAD, PUT, POST, DELETE, LIST; all unless given."""
    path: str = ""
    """A regular expression that is searched in the path."""
    most: int = 1 << 60
    """So many times, then never again."""
    seconds: float = 0.2
    """How long `slow` waits."""


def weather(seed: int, share: float = 0.1) -> tuple[Fault, ...]:
    """Every kind of fault at once, each to its part of the requests: what a torture run asks a server to do."""
    kinds = (
        Fault("answer", status=500),
        Fault("answer", status=503, code="SlowDown"),
        Fault("lost", methods=("PUT",)),
        Fault("hang_up"),
        Fault("cut", methods=("GET", "PUT")),
        Fault("partial", methods=("GET",)),
        Fault("slow", seconds=0.1),
    )
    return tuple(replace(kind, share=share / len(kinds), seed=seed * 100 + i) for i, kind in enumerate(kinds))


class Control:
    """Counts and faults of one server."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        self.counts: Counter[str] = Counter()
        self.log: list[str] = []
        self.faults: list[tuple[Fault, random.Random]] = []
        self.drawn: Counter[int] = Counter()

    def draw(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for i, (fault, dice) in enumerate(self.faults):
                meant = (not fault.methods or method in fault.methods) and re.search(fault.path, path)
                if meant and self.drawn[i] < fault.most and dice.random() < fault.share:
                    self.drawn[i] += 1
                    self.counts["faults"] += 1
                    return fault
        return None


class Handler(localbucket.S3Handler):
    """Localbucket's, watched, and disturbed where a fault says so."""

    control = Control()
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    fault: Fault | None = None

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, ValueError):  # the client has gone, or `hang_up` closed the file
            self.close_connection = True

    def _dispatch(self, action: Any) -> None:
        if self.path.startswith(CONTROL):
            self._command()
            return
        url = urlsplit(self.path)
        method = "LIST" if self.command == "GET" and "list-type" in parse_qs(url.query) else self.command
        with self.control.lock:
            self.control.counts[method] += 1
            self.control.log.append(f"{method} {self.path} {self.headers.get('Range', '')}".strip())
        if self.headers.get("x-goog-if-generation-match") == "0":  # what Google's clients say for it
            self.headers["If-None-Match"] = "*"
        fault = self.fault = self.control.draw(method, url.path)
        if fault is None or fault.kind == "partial":
            super()._dispatch(action)
        elif fault.kind == "overwrite":
            del self.headers["If-None-Match"]
            super()._dispatch(action)
        elif fault.kind == "slow":
            time.sleep(fault.seconds)
            super()._dispatch(action)
        elif fault.kind == "answer":
            self._read_body()
            self._send_error(localbucket.S3Error(fault.status, fault.code, f"{fault.code} on demand"))
        elif fault.kind == "cut" and self.command == "PUT":
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            self.close_connection = True
        elif fault.kind == "cut":
            super()._dispatch(action)
        else:
            super()._dispatch(action)
            self.close_connection = True

    def _read_body(self) -> bytes:
        body = super()._read_body()
        with self.control.lock:
            self.control.counts["bytes in"] += len(body)
        return body

    def _send_headers(self, status: Any, length: int, headers: Any = None) -> None:
        kind = self.fault.kind if self.fault else ""
        if kind == "hang_up":
            raise ConnectionError
        if kind == "lost":
            self.fault = None
            raise localbucket.S3Error(500, "InternalError", "done, but nobody shall know")
        if self.command != "HEAD":
            with self.control.lock:
                self.control.counts["bytes out"] += length
        super()._send_headers(status, length, headers)

    def _send_file(self, status: Any, file: Any, start: int, length: int, headers: Any, include_body: bool) -> None:
        kind = self.fault.kind if self.fault else ""
        if kind == "partial" and include_body and length > 1:
            length //= 2
            size = os.fstat(file.fileno()).st_size
            status, headers = 206, {**headers, "Content-Range": f"bytes {start}-{start + length - 1}/{size}"}
        if kind == "cut" and include_body:
            self._send_headers(status, length, headers)
            file.seek(start)
            self.wfile.write(file.read(length // 2))
            self.close_connection = True
            return
        super()._send_file(status, file, start, length, headers, include_body)

    def _post_request(self, bucket: str, key: str) -> None:
        """Localbucket's, and DeleteObjects, which it lacks."""
        if key or "delete" not in self.query:
            super()._post_request(bucket, key)
            return
        answer = ElementTree.Element("DeleteResult", xmlns=localbucket.S3_NAMESPACE)
        for each in ElementTree.fromstring(self._read_body()).iterfind("{*}Object/{*}Key"):
            self._object_path(bucket, each.text or "").unlink(missing_ok=True)
            deleted = ElementTree.SubElement(answer, "Deleted")
            ElementTree.SubElement(deleted, "Key").text = each.text
        self._send_xml(answer)

    def _command(self) -> None:
        control, what = self.control, self.path.removeprefix(CONTROL)
        body = super()._read_body()
        with control.lock:
            if what == "clear":
                control.clear()
            elif what == "faults":
                control.faults = [
                    (Fault(**{**each, "methods": tuple(each["methods"])}), random.Random(each["seed"]))
                    for each in json.loads(body)
                ]
                control.drawn.clear()
            answer = json.dumps({"counts": control.counts, "log": control.log}).encode()
        super()._send_headers(200, len(answer), {"Content-Type": "application/json"})
        self.wfile.write(answer)


class Bucket:
    """A running server, seen from a test."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder, self.port = folder, port
        self.start()

    def start(self) -> None:
        """Starts it, again on the same folder and port if it was killed."""
        Path(self.folder, NAME).mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "tests.objects", str(self.folder), "--port", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline().split("127.0.0.1:")[1])

    def kill(self) -> None:
        """kill -9, as a power cut would."""
        self._process.kill()
        self._process.wait()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environ(self) -> dict[str, str]:
        """What a process needs in its environment to reach it."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    def url(self, prefix: str) -> str:
        return f"s3://{NAME}/{prefix}"

    def files(self, prefix: str) -> dict[str, bytes]:
        """Key below the prefix -> what is in the bucket, read behind the server's back."""
        root = self.folder / NAME / prefix
        return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}

    def remove(self, prefix: str) -> None:
        """Empties a prefix behind the server's back."""
        shutil.rmtree(self.folder / NAME / prefix, ignore_errors=True)

    def counts(self) -> Counter[str]:
        """Requests by method since `clear`, bytes in and out, and how many were disturbed."""
        return Counter(self._ask("counts")["counts"])

    def log(self) -> list[str]:
        """Every request since `clear`: method, path, range."""
        return list(self._ask("log")["log"])

    def clear(self) -> None:
        """Forgets counts and faults."""
        self._ask("clear")

    def fail(self, *faults: Fault) -> None:
        """Takes these faults instead of those it had; none makes it well."""
        self._ask("faults", [asdict(fault) for fault in faults])

    def _ask(self, what: str, body: Any = None) -> Any:
        return httpx.post(f"{self.endpoint}{CONTROL}{what}", json=body, timeout=10).raise_for_status().json()


@contextmanager
def serving(folder: Path, port: int = 0) -> Iterator[Bucket]:
    """A server of its own, gone at the end; its objects stay in the folder."""
    bucket = Bucket(folder, port)
    try:
        yield bucket
    finally:
        bucket.kill()


class Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=9000)
    asked = parser.parse_args()
    (asked.folder / NAME).mkdir(parents=True, exist_ok=True)
    Handler.data_root = asked.folder.resolve()
    server = Server(("127.0.0.1", asked.port), Handler)
    sys.stdout.write(f"AWS_ENDPOINT_URL=http://127.0.0.1:{server.server_port}\n")
    sys.stdout.write(f"AWS_ACCESS_KEY_ID={KEY} AWS_SECRET_ACCESS_KEY={SECRET} AWS_REGION=us-east-1\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
