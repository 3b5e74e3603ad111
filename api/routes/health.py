"""Whether the service lives, and whether it can answer."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from api.services.version import running_version
from schema.errors import ScopebaseError
from schema.wire.base import Health, Ready

router = APIRouter(tags=["health"])


@router.get("/health")
def health() -> Health:
    """The process answers."""
    return Health(status="ok", version=running_version())


@router.get("/ready", responses={503: {"model": Ready}})
def ready(request: Request, response: Response) -> Ready:
    """Both stores answer, and the model where one is loaded; a store where nothing is indexed yet is ready too."""
    library = request.app.state.library
    checks = {}
    for name, check in (("database", library.refresh), ("store", library.check_store)):
        try:
            checks[name] = check() or "ok"
        except (ScopebaseError, OSError, ValueError) as error:
            checks[name] = f"failed: {str(error).splitlines()[0].split(', /')[0][:200]}"
    if request.app.state.live is not None:  # it is loaded before the service listens
        generator = request.app.state.generator
        fault = None if generator is None else generator.fault()
        checks["model"] = "ok" if fault is None else f"failed: {fault}"
    whole = not any(result.startswith("failed") for result in checks.values())
    response.status_code = 200 if whole else 503
    return Ready(status="ready" if whole else "not ready", checks=checks)
