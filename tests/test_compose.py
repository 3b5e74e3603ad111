"""docker-compose.yml, the Dockerfile and `make team-up` say nothing that the code does not know, or that Docker Compose would not take.

compose-spec.json is the JSON Schema of the Compose Specification, by its contributors, Apache License 2.0, unchanged: from
https://github.com/compose-spec/compose-spec (schema/compose-spec.json), as check-jsonschema 0.39.0 carries it.
"""

from __future__ import annotations

import copy
import fnmatch
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from schema.settings import Settings
from scopebase.cli import app
from tests.team import Refused, free_port, in_order, is_once, read_compose

ROOT = Path(__file__).parents[1]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SPECIFICATION = jsonschema.Draft202012Validator(
    json.loads((ROOT / "tests" / "compose-spec.json").read_text(encoding="utf-8"))
)
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service["command"] for name, service in SERVICES.items() if "build" in service}
SECRETS = {"POSTGRES_PASSWORD": "p1", "OBJECTS_SECRET": "o1", "SCOPEBASE_ADMIN_KEY": "sb_" + "a" * 64}
PINNED = re.compile(r"[a-z0-9./-]+:v?\d+\.\d+[\w.-]*@sha256:[0-9a-f]{64}")
CONDITIONS = {"service_healthy", "service_completed_successfully", "service_started"}


def stages() -> dict[str, list[str]]:
    """Stage of the Dockerfile -> its lines, those of the stages that it builds on first."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in DOCKERFILE.replace("\\\n", " ").splitlines():
        if line.startswith("FROM "):
            _, base, _, name = line.split()
            found[name] = list(found.get(base, []))
        if name:
            found[name].append(line)
    return found


def test_the_services_of_a_team() -> None:
    assert set(SERVICES) == {"postgres", "objects", "migrate", "key", "api", "worker", "indexer"}
    assert set(OURS) == {"migrate", "key", "api", "worker", "indexer"}
    assert [name for name, service in SERVICES.items() if "profiles" in service] == ["indexer"]


def test_the_file_is_one_that_compose_takes() -> None:
    SPECIFICATION.validate(COMPOSE)


@pytest.mark.parametrize(
    ("place", "right", "wrong"),
    [
        ((), "volumes", "volums"),
        (("services", "api"), "healthcheck", "health_check"),
        (("services", "api", "healthcheck"), "interval", "intervall"),
        (("services", "api", "depends_on", "key"), "condition", "conditon"),
        (("services", "indexer", "deploy", "resources"), "reservations", "reservation"),
        (("services", "worker", "build"), "target", "stage"),
    ],
)
def test_a_key_that_is_misspelt_is_refused(place: tuple[str, ...], right: str, wrong: str) -> None:
    changed = copy.deepcopy(COMPOSE)
    within = changed
    for key in place:
        within = within[key]
    within[wrong] = within.pop(right)
    with pytest.raises(jsonschema.ValidationError, match=wrong):
        SPECIFICATION.validate(changed)


def test_what_the_specification_leaves_open_is_said_plainly() -> None:
    for name, service in SERVICES.items():
        assert re.fullmatch(r"no|always|unless-stopped|on-failure(:\d+)?", service["restart"])
        for command in (service.get("command", []), service.get("healthcheck", {}).get("test", [])):
            assert all(isinstance(word, str) for word in command), f"{name}: {command}"
        assert all(isinstance(value, str | None) for value in service["environment"].values()), (
            f"{name}: quote its numbers"
        )


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
    for name, service in SERVICES.items():
        for other, wait in service.get("depends_on", {}).items():
            assert other in SERVICES, f"{name} waits for {other}"
            assert wait["condition"] in CONDITIONS
            if wait["condition"] == "service_healthy":
                assert "test" in SERVICES[other]["healthcheck"], f"{name} waits for {other}, whose health nobody checks"
            if wait["condition"] == "service_completed_successfully":
                assert is_once(SERVICES[other]), f"{other} never ends"
    order = in_order(SERVICES)
    assert order.index("migrate") < order.index("key") < order.index("api")
    assert max(map(order.index, ("postgres", "objects"))) < order.index("key")


def test_what_runs_on_is_healthy_or_started_again() -> None:
    for name, service in SERVICES.items():
        checked = "test" in service.get("healthcheck", {})
        assert checked != is_once(service), name
        assert (service["restart"] == "unless-stopped") == checked


def test_images_are_pinned_to_the_last_byte() -> None:
    foreign = [service["image"] for service in SERVICES.values() if "build" not in service]
    bases = {line.split()[1] for line in re.findall(r"^FROM .+", DOCKERFILE, re.MULTILINE)} - set(stages())
    assert len(foreign) == 2
    assert len(bases) == 1
    for image in (*foreign, *bases):
        assert PINNED.fullmatch(image), image
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    for name in OURS:
        assert SERVICES[name]["image"] == f"scopebase:{version[1]}-{SERVICES[name]['build']['target']}"


def test_nobody_is_root_with_roots_powers() -> None:
    for name, service in SERVICES.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
    for target in ("cpu", "cuda"):
        assert [line for line in stages()[target] if line.startswith("USER ")][-1] == "USER scopebase"
    assert all(SERVICES[name]["read_only"] for name in OURS)


def test_targets_exist_and_the_default_needs_no_gpu() -> None:
    assert list(stages())[-1] == "cpu"
    assert {service["build"]["target"] for service in SERVICES.values() if "build" in service} == {"cpu", "cuda"}
    for target in ("cpu", "cuda"):
        assert any(line.startswith("HEALTHCHECK ") for line in stages()[target])
        index = re.findall(r"download\.pytorch\.org/whl/(\w+)", "\n".join(stages()[f"{target}-requirements"]))
        assert len(index) == 1
        assert re.fullmatch("cpu" if target == "cpu" else r"cu\d{3}", index[0])
        assert all("-c constraints.txt" in line for line in stages()[f"{target}-requirements"] if "pip install" in line)
    device = SERVICES["indexer"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]


def test_what_the_image_copies_is_there_and_the_context_has_it() -> None:
    left_out = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    copied = {s for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE) for s in line.split()[:-1]}
    for source in copied:
        assert (ROOT / source).exists(), f"the Dockerfile copies {source}"
        assert not any(fnmatch.fnmatch(source, pattern) for pattern in left_out), source
    assert ".env" in left_out, "secrets do not belong into an image"
    packaged = re.search(r"only-include = \[(.+)\]", (ROOT / "pyproject.toml").read_text())
    assert packaged is not None
    assert set(re.findall(r'"(\w+)"', packaged[1])) <= copied
    for line in re.findall(r"--from=(\S+)|from=([\w-]+),", DOCKERFILE):
        assert "".join(line) in stages()


@pytest.mark.parametrize("name", OURS)
def test_every_service_is_told_of_both_stores(name: str) -> None:
    environ = read_compose(SECRETS).get(name, SERVICES[name])["environment"]
    known = set(re.findall(r"SCOPEBASE_[A-Z_]+", "".join(file.read_text() for file in (ROOT / "schema").glob("*.py"))))
    given = {word for word in OURS[name] if word.startswith("SCOPEBASE_")}  # a variable that the command itself names
    assert {variable for variable in environ if variable.startswith("SCOPEBASE_")} <= known | given
    read = Settings.read(None, environ)
    postgres, objects = SERVICES["postgres"]["environment"], SERVICES["objects"]
    password = "${POSTGRES_PASSWORD:?see .env.example}" if name == "indexer" else SECRETS["POSTGRES_PASSWORD"]
    place = f"{postgres['POSTGRES_USER']}:{password}@postgres:5432/{postgres['POSTGRES_DB']}"
    assert read.database_url == f"postgresql+psycopg://{place}"
    bucket = objects["volumes"][0].split("/")[-1]
    assert read.store_url.startswith(f"s3://{bucket}/")
    port = objects["command"][objects["command"].index("--port") + 1]
    assert environ["AWS_ENDPOINT_URL"] == f"http://objects{port}"
    assert environ["AWS_REGION"] == objects["command"][objects["command"].index("--region") + 1]
    assert environ["AWS_ACCESS_KEY_ID"] == objects["environment"]["ROOT_ACCESS_KEY"]


def test_a_key_is_asked_for_and_the_port_is_this_machines_unless_said() -> None:
    api, command = SERVICES["api"], OURS["api"]
    assert "--auth" in command
    assert int(command[command.index("--workers") + 1]) > 1
    listens = command[command.index("--port") + 1]
    assert api["ports"] == [f"${{SCOPEBASE_PUBLISH:-127.0.0.1}}:{listens}:{listens}"]
    assert f"http://127.0.0.1:{listens}/v1/ready" in " ".join(api["healthcheck"]["test"])
    assert re.search(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE)[1] == listens  # type: ignore[index]


def test_secrets_are_asked_for_by_name_and_nowhere_written() -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    asked = set(re.findall(r"\$\{(\w+):\?", (ROOT / "docker-compose.yml").read_text(encoding="utf-8")))
    assert asked == set(SECRETS)
    assert set(re.findall(r"^(\w+)=$", example, re.MULTILINE)) == asked
    for missing in asked:
        with pytest.raises(Refused, match=f"{missing} is not set: see .env.example"):
            read_compose({name: value for name, value in SECRETS.items() if name != missing})
    assert read_compose(SECRETS)["postgres"]["environment"]["POSTGRES_PASSWORD"] == "p1"
    assert ".env" in (ROOT / ".gitignore").read_text(encoding="utf-8").split()


def test_volumes_are_declared() -> None:
    used = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert {name for name in used if not name.startswith("$")} == set(COMPOSE["volumes"])


def test_services_that_wait_for_each_other_are_refused() -> None:
    with pytest.raises(Refused, match="wait for each other"):
        in_order({"a": {"depends_on": {"b": {}}}, "b": {"depends_on": {"a": {}}}})
    assert free_port() != free_port()
