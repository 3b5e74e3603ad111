"""docker-compose.yml and the Dockerfile say nothing that the code does not know."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from schema import settings
from schema.settings import Settings
from scopebase.cli import app

ROOT = Path(__file__).parents[1]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def words(command: str | list[str] | None) -> list[str]:
    return shlex.split(command) if isinstance(command, str) else list(command or [])


OURS = {name: words(service["command"]) for name, service in SERVICES.items() if "command" in service}


def test_the_services_of_a_team() -> None:
    assert set(SERVICES) == {"postgres", "migrate", "api"}
    assert {name for name, service in SERVICES.items() if service.get("build")} == {"migrate", "api"}


@pytest.mark.parametrize("name", OURS)
def test_commands_and_their_options_exist(name: str) -> None:
    first, *rest = OURS[name]
    assert first == "scopebase"
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert rest, f"{name}: {OURS[name]} names no command"
        assert rest[0] in command.commands, f"{name}: scopebase has no command {rest[0]!r}"
        command = command.commands[rest.pop(0)]
    command.make_context(name, rest)  # raises for an option that the command does not have, and for one that lacks


def test_what_is_waited_for_exists_and_can_be_waited_for() -> None:
    conditions = {"service_healthy", "service_completed_successfully", "service_started"}
    for name, service in SERVICES.items():
        for other, wait in service.get("depends_on", {}).items():
            assert other in SERVICES, f"{name} waits for {other}"
            assert wait["condition"] in conditions
            if wait["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other], f"{name} waits for {other}, whose health nobody checks"
            if wait["condition"] == "service_completed_successfully":
                assert SERVICES[other].get("restart", "no") in ("no", "on-failure"), f"{other} never ends"


def test_health_is_asked_and_the_port_published_where_the_api_listens() -> None:
    api, command = SERVICES["api"], OURS["api"]
    listens = command[command.index("--port") + 1]
    published = [str(port).rsplit(":", 2) for port in api["ports"]]
    assert published == [["127.0.0.1", listens, listens]], "this machine alone: nobody is asked for a key"
    assert f"http://127.0.0.1:{listens}/v1/health" in " ".join(api["healthcheck"]["test"])
    assert re.search(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE)[1] == listens  # type: ignore[index]


def test_images_are_of_one_version() -> None:
    images = [service["image"] for service in SERVICES.values() if "image" in service]
    images += re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert len(images) == 2
    for image in images:
        assert re.search(r":\d+\.\d+", image), f"{image} is another one every month"


@pytest.mark.parametrize("name", ["migrate", "api"])
def test_both_stores_are_named_by_what_the_settings_read(name: str) -> None:
    environ: dict[str, str] = SERVICES[name]["environment"]
    known = set(re.findall(r"SCOPEBASE_[A-Z_]+", Path(settings.__file__).read_text(encoding="utf-8")))
    assert set(environ) | set(re.findall(r"SCOPEBASE_[A-Z_]+", DOCKERFILE)) <= known
    read = Settings.read(None, environ)
    postgres = SERVICES["postgres"]["environment"]
    assert read.database_url == (
        f"postgresql+psycopg://{postgres['POSTGRES_USER']}:${{POSTGRES_PASSWORD}}@postgres:5432/{postgres['POSTGRES_DB']}"
    )
    mounted = dict(volume.split(":")[:2] for volume in SERVICES[name]["volumes"])
    assert mounted["store"] in [str(folder) for folder in (read.store_folder or Path()).parents]


def test_volumes_are_declared() -> None:
    used = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert used == set(COMPOSE["volumes"])


def test_what_the_image_copies_is_there() -> None:
    left_out = set((ROOT / ".dockerignore").read_text(encoding="utf-8").split())
    for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), f"the Dockerfile copies {source}"
            assert source not in left_out


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_the_services_one_after_another(database_url: str, tmp_path: Path) -> None:
    """Their own commands as processes of this machine, over an empty server: the API is healthy and has nothing yet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    stores = {"SCOPEBASE_DATABASE_URL": database_url, "SCOPEBASE_STORE_URL": str(tmp_path / "store")}
    environ = {**os.environ, **stores, "SCOPEBASE_HOME": str(tmp_path)}
    listens = {"0.0.0.0": "127.0.0.1", "8000": port}
    migrate, api = ([sys.executable, "-m", *(listens.get(w, w) for w in OURS[name])] for name in ("migrate", "api"))
    subprocess.run(migrate, env=environ, check=True, capture_output=True)
    with subprocess.Popen(api, env=environ, stderr=subprocess.PIPE, text=True) as serving:
        try:
            assert _answer(f"http://127.0.0.1:{port}/v1/health", serving)["status"] == "ok"
            assert _answer(f"http://127.0.0.1:{port}/v1/datasets", serving)["data"] == []
        finally:
            serving.terminate()


def _answer(url: str, serving: subprocess.Popen[str]) -> Any:
    """The JSON at an address, once somebody answers there."""
    for _ in range(900):
        if serving.poll() is not None:
            pytest.fail(serving.stderr.read() if serving.stderr else "it ended")
        try:
            with urllib.request.urlopen(url) as answer:
                return json.load(answer)
        except urllib.error.URLError as error:
            if isinstance(error, urllib.error.HTTPError):
                raise
            time.sleep(0.1)
    pytest.fail(f"nobody answers at {url}")
