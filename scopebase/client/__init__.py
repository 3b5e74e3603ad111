"""The Python client: `from scopebase import Client`. Needs pydantic and httpx, nothing else.

Every method asks one route and gives its typed answer, the same pydantic model that the service sends.
"""

from schema.errors import (
    Conflict,
    Forbidden,
    InputError,
    NotFound,
    ScopebaseError,
    TooLarge,
    TooMany,
    Unauthorized,
    WorkFailed,
)
from scopebase.client.client import Client
from scopebase.client.rows import Rows

__all__ = [
    "Client",
    "Conflict",
    "Forbidden",
    "InputError",
    "NotFound",
    "Rows",
    "ScopebaseError",
    "TooLarge",
    "TooMany",
    "Unauthorized",
    "WorkFailed",
]
