"""Who may ask the service, and how much at once."""

from __future__ import annotations

from dataclasses import dataclass

from api.services.access.rates import Rate

OPEN = frozenset({"/v1/health", "/v1/ready"})
"""Asked by machines that watch the service; never limited and never asked for a key."""
GENERATING = frozenset({"/v1/completions", "/v1/chat/completions"})
DOCUMENTS = ("/openapi.json", "/docs", "/redoc", "/static-offline-docs/")
"""What describes the service holds no data of the home."""


@dataclass(frozen=True)
class Access:
    """The rules of one service. As they stand here everybody may ask."""

    auth: bool = False
    """Every route but the open ones asks for a key."""
    rate: Rate | None = None
    """Of each key, or of each address where there is none."""
    tokens_per_minute: int | None = None
    """That each of these may have read and generated for it, as an answer's `usage` counts them."""
    hosts: frozenset[str] | None = None
    """The names that a request's Host header may bear; None for all. A page of another site that makes its own name lead to
    this machine (DNS rebinding) bears that name."""
    origins: tuple[str, ...] = ()
    """Pages of other sites that may ask, such as `https://lab.example.org` (CORS)."""
    body_bytes: int = 8 << 20
    """Of a question in JSON."""
    upload_bytes: int = 4 << 30
    """Of any other body: files that are imported."""
    target_bytes: int = 32 << 10
    """Path and query together."""
    seconds: float = 120.0
    """Until an answer begins, which for a generated text is its first token. Uploads take what they need."""
    concurrent: int = 64
    """Requests at work at one moment. Once a text is the engine's work, or waits for it, it counts as one of `generating` instead."""
    generating: int = 256
    """Texts on their way to clients at one moment, slow readers included."""
    log: bool = False
    """One line a request on standard error."""


def is_open(path: str) -> bool:
    return path in OPEN or path == "/" or path.startswith(DOCUMENTS)
