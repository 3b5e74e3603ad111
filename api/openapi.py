"""Completes what FastAPI derives from the routes: summaries, errors, examples and the ways to bring a key."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from api.wording import DESCRIPTIONS, EXAMPLES
from schema.wire.base import Problem

METHODS = ("get", "put", "post", "delete", "patch")
OPEN_TAG = "health"
"""Routes under this tag ask nobody for a key."""
ERRORS = {
    400: "The request cannot be read, or bears a name that is not the service's",
    401: "A key is needed, or the one sent is unknown, expired or revoked",
    403: "The key may not do this",
    404: "No such name",
    408: "The body did not come in time",
    409: "It exists, but what is asked does not fit it",
    413: "The body is too large",
    414: "The address is too long",
    422: "The question is wrong; `errors` names the fields",
    429: "More requests than the key's share; `Retry-After` says when to go on",
    500: "The service failed",
    503: "A store cannot be read, the time is up, or too many requests are at work",
}


def complete(described: dict[str, Any]) -> dict[str, Any]:
    """Adds to the description of the API, in place, what no route should have to repeat."""
    components = described.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(problem.pop("$defs"), Problem=problem)
    components["responses"] = {f"Problem{status}": _response(status) for status in ERRORS}
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer sb_...`"},
        "key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same key, as a header"},
    }
    described["security"] = [{"bearer": []}, {"key": []}]
    for shape in schemas.values():
        for name, field in shape.get("properties", {}).items():
            if name in DESCRIPTIONS:
                field.setdefault("description", DESCRIPTIONS[name])
    for path in described["paths"].values():
        for method in METHODS:
            if method in path:
                _complete(path[method])
    return described


def _complete(operation: dict[str, Any]) -> None:
    _summarize(operation)
    for parameter in operation.get("parameters", []):
        if parameter["name"] in DESCRIPTIONS:
            parameter.setdefault("description", DESCRIPTIONS[parameter["name"]])
        _exemplify(parameter)
    is_open = OPEN_TAG in operation.get("tags", ())
    if is_open:
        operation["security"] = []
    responses = operation["responses"]
    for status in (500,) if is_open else ERRORS:
        own = responses.get(str(status))
        if own is None or not _describes_itself(own):
            responses[str(status)] = {"$ref": f"#/components/responses/Problem{status}"}
        elif not is_open:  # what comes before the route, such as a body that is no JSON, is a problem all the same
            own["content"].update(_response(status)["content"])
    operation["responses"] = dict(sorted(responses.items()))
    if is_open:
        operation["responses"].pop("422", None)


def _summarize(operation: dict[str, Any]) -> None:
    """FastAPI's summary is the function's name in capitals; the first sentence of what the route says of itself is a better one."""
    made = operation["operationId"].replace("_", " ").title()
    first = operation.get("description", "").split("\n")[0].split(". ")[0].rstrip(".")
    if operation.get("summary") == made and first:
        operation["summary"] = first


def _exemplify(parameter: dict[str, Any]) -> None:
    shape = parameter["schema"]
    if "example" in parameter or "examples" in parameter or "examples" in shape:
        return
    example = EXAMPLES.get(parameter["name"], shape.get("default", next(iter(shape.get("enum", ())), None)))
    if isinstance(example, list) and shape.get("type") != "array":
        example = example[0]
    if example is not None:
        parameter["example"] = example


def _describes_itself(response: dict[str, Any]) -> bool:
    """Whether a route gave this error a shape of its own, such as `Ready` for 503."""
    shapes = [media.get("schema", {}).get("$ref", "") for media in response.get("content", {}).values()]
    return any(shape and not shape.endswith(("/Problem", "/HTTPValidationError")) for shape in shapes)


def _response(status: int) -> dict[str, Any]:
    example = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": ERRORS[status]}
    media = {"schema": {"$ref": "#/components/schemas/Problem"}, "example": example}
    made: dict[str, Any] = {"description": ERRORS[status], "content": {"application/problem+json": media}}
    if status == 429:
        made["headers"] = {"Retry-After": {"description": "Seconds", "schema": {"type": "integer"}}}
    return made
