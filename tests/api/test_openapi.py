"""The description of the API is complete: whatever route is added, it says what it does, shows what to send, and what may go wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest

from api.app import create_app
from api.openapi import METHODS
from schema.home import make_home
from schema.settings import Settings

OTHER_ERRORS = {"Ready", "NpError"}
"""What is not ready says which store; Neuronpedia's routes answer as its own client reads."""
Operation = tuple[str, str, dict[str, Any]]


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = make_home(Settings.read(tmp_path_factory.mktemp("openapi"), {}))
    described: dict[str, Any] = create_app(home).openapi()
    home.close()
    return described


def operations(described: dict[str, Any]) -> Iterator[Operation]:
    for path, item in described["paths"].items():
        for method in METHODS:
            if method in item:
                yield path, method, item[method]


def resolve(described: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        found: Any = described
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        node = found
    return node


def faults(described: dict[str, Any]) -> list[str]:
    """What the description lacks, a line each: what, where, and the mend."""
    found = []
    names: dict[str, str] = {}
    for path, method, operation in operations(described):
        where = f"{method.upper()} {path}"
        found += [f"{where}: {fault}" for fault in _faults(described, operation)]
        other = names.setdefault(operation["operationId"], where)
        if other != where:
            found.append(f"{where}: has the operationId of {other}; give its function another name")
    return found


def _faults(described: dict[str, Any], operation: dict[str, Any]) -> Iterator[str]:
    if not operation.get("tags"):
        yield "no tag; give its router one"
    name = operation["operationId"]
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        yield f"operationId {name!r} is not a plain name"
    if not operation.get("description") or operation["summary"] == name.replace("_", " ").title():
        yield "no summary; give its function a docstring"
    if len(operation["summary"]) > 120:
        yield "its summary is longer than 120 characters; end the docstring's first sentence earlier"
    for parameter in operation.get("parameters", []):
        if not parameter.get("description") and "enum" not in parameter["schema"]:
            yield f"parameter {parameter['name']}: no description"
        if not _has_example(parameter) and not _has_example(parameter["schema"]):
            yield f"parameter {parameter['name']}: no example; name one in api/openapi.py EXAMPLES or at the parameter"
    for kind, media in operation.get("requestBody", {}).get("content", {}).items():
        shape = media.get("schema", {})
        if not any(_has_example(place) for place in (media, shape, resolve(described, shape))):
            yield f"body {kind}: no example; give its model json_schema_extra={{'examples': [...]}}"
    yield from _response_faults(described, operation)


def _has_example(node: dict[str, Any]) -> bool:
    return "example" in node or bool(node.get("examples"))


def _response_faults(described: dict[str, Any], operation: dict[str, Any]) -> Iterator[str]:
    good = {status: r for status, r in operation["responses"].items() if status.startswith("2")}
    if not good:
        yield "no answer is described"
    for status, response in good.items():
        if status != "204" and not any(_says_its_shape(kind, m) for kind, m in response.get("content", {}).items()):
            yield f"answer {status} has no shape; annotate what the function returns"
    for status, response in operation["responses"].items():
        whole = resolve(described, response)
        problem = [m for m in whole.get("content", {}) if m == "application/problem+json"]
        if status.startswith(("4", "5")) and not problem and not _shapes(whole) & OTHER_ERRORS:
            yield f"error {status} is not described as application/problem+json"
    if "health" not in operation.get("tags", ()):
        missing = {"401", "403", "404", "422", "429", "500", "503"} - set(operation["responses"])
        if missing:
            yield f"errors {sorted(missing)} are not described"


def _says_its_shape(kind: str, media: dict[str, Any]) -> bool:
    return kind != "application/json" or bool(media.get("schema"))


def _shapes(response: dict[str, Any]) -> set[str]:
    return {m.get("schema", {}).get("$ref", "").rsplit("/", 1)[-1] for m in response.get("content", {}).values()}


def test_nothing_is_missing(described: dict[str, Any]) -> None:
    assert faults(described) == []


def test_every_reference_leads_somewhere(described: dict[str, Any]) -> None:
    def visit(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                resolve(described, node)
            for child in node.values():
                visit(child)
        elif isinstance(node, list):
            for child in node:
                visit(child)

    visit(described)
    assert "HTTPValidationError" not in str(described)


def test_keys_are_declared_and_asked_for_everywhere_but_where_the_service_is_watched(described: dict[str, Any]) -> None:
    schemes = described["components"]["securitySchemes"]
    assert (schemes["bearer"]["scheme"], schemes["key"]["name"]) == ("bearer", "x-api-key")
    assert described["security"] == [{"bearer": []}, {"key": []}]
    unasked = {path for path, _, operation in operations(described) if operation.get("security") == []}
    assert unasked == {"/v1/health", "/v1/ready"}


def test_every_field_of_what_is_sent_says_what_it_is(described: dict[str, Any]) -> None:
    """Answers may leave plain names such as `n_samples` to speak; what a person must write may not."""
    silent = []
    for path, method, operation in operations(described):
        for media in operation.get("requestBody", {}).get("content", {}).values():
            shape = resolve(described, media.get("schema", {}))
            for name, field in shape.get("properties", {}).items():
                if not field.get("description") and "$ref" not in str(field):
                    silent.append(f"{method.upper()} {path}: {name}")
    assert silent == []


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        ("tags", "no tag"),
        ("description", "no summary"),
        ("example", "parameter covered_by: no example"),
        ("answer", "answer 200 has no shape"),
        ("error", "errors ['429'] are not described"),
        ("name", "has the operationId of"),
    ],
)
def test_what_is_missing_is_found(described: dict[str, Any], spoil: str, fault: str) -> None:
    described = deepcopy(described)
    operation = described["paths"]["/v1/diff"]["get"]
    if spoil == "example":
        del operation["parameters"][0]["example"]
    elif spoil == "answer":
        operation["responses"]["200"]["content"]["application/json"]["schema"] = {}
    elif spoil == "error":
        del operation["responses"]["429"]
    elif spoil == "name":
        operation["operationId"] = "get_overlap"
    else:
        del operation[spoil]
    assert any(fault in found for found in faults(described)), faults(described)
