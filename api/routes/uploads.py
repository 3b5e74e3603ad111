"""How a route takes an upload: the body is the file, streamed to a temporary one; the gate bounds its size."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import Request
from fastapi.concurrency import run_in_threadpool


@asynccontextmanager
async def received(request: Request) -> AsyncIterator[Path]:
    """The body as a file, which is gone afterwards. The route's path must be one of `api.gate.messages.UPLOADS`."""
    with tempfile.NamedTemporaryFile(prefix="scopebase-upload-") as file:
        async for piece in request.stream():
            await run_in_threadpool(file.write, piece)
        await run_in_threadpool(file.flush)
        yield Path(file.name)
