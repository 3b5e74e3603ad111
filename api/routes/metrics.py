"""Numbers for those who watch the service."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

router = APIRouter(tags=["metrics"])


@router.get("/metrics", include_in_schema=False)
def get_metrics(request: Request) -> Response:
    """Requests, latencies and what the home holds, as Prometheus reads it. Asks for a key where the service does."""
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE_LATEST)
