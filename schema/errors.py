"""What can go wrong, as one tree. Each message is a sentence for the person who meets it: what, where, and the mend.

ScopebaseError
├── InputError            the call or its input is wrong          exit 2, HTTP 422
│   ├── NotFound          a name that nothing bears               exit 2, HTTP 404
│   │   └── NotLoaded     another model than the one loaded       exit 2, HTTP 404
│   ├── BeyondContext     more tokens than the model takes        exit 2, HTTP 400
│   ├── Conflict          right in itself, wrong beside the rest  exit 2, HTTP 409
│   ├── Unauthorized      no key, or one that is not good         exit 2, HTTP 401
│   ├── Forbidden         the key may not do this                 exit 2, HTTP 403
│   ├── TooLarge          more was sent than is taken             exit 2, HTTP 413
│   ├── HomeError         a home that cannot be opened            exit 2, HTTP 503
│   ├── NoModel           a question that needs a loaded model    exit 2, HTTP 503
│   └── NoCluster         no Ray cluster answers                  exit 2, HTTP 503
└── WorkFailed            the work began and could not go on      exit 1, HTTP 503
    ├── TooSlow           it took longer than a request may       exit 1, HTTP 503
    ├── TooMany           more requests than are taken            exit 1, HTTP 429
    ├── Unreachable       the object store does not answer now    exit 1, HTTP 503
    └── LeaseLost         another worker took this shard over     (never reaches a user)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ScopebaseError(Exception):
    """Anything that Scopebase itself refuses or gives up on."""

    exit_status = 1
    http_status = 500
    retry_after: int | None = None
    """Seconds after which the same request may do better, where waiting helps."""
    code: str | None = None
    """OpenAI's word for it, where its clients act on one."""


class InputError(ScopebaseError):
    """The call or what it was given is wrong; nothing was changed."""

    exit_status = 2
    http_status = 422


class NotFound(InputError):
    """No such model, SAE, dataset, run or feature."""

    http_status = 404


class NotLoaded(NotFound):
    """Another model than the one that generates here."""

    code = "model_not_found"


class BeyondContext(InputError):
    """The prompt, or the prompt with its answer, has more tokens than the model takes. 400, as OpenAI has it."""

    http_status = 400
    code = "context_length_exceeded"


class Conflict(InputError):
    """It exists, but what is asked does not fit it."""

    http_status = 409


class Unauthorized(InputError):
    """A key is asked for; there was none, or it is unknown, expired or revoked."""

    http_status = 401


class Forbidden(InputError):
    """The key is good, but not for this."""

    http_status = 403


class TooLarge(InputError):
    """What was sent is larger than the service takes."""

    http_status = 413


class HomeError(InputError):
    """The database or the activation store cannot be opened."""

    http_status = 503


class NoModel(InputError):
    """Texts cannot be read, or features not explained, because the service has no model for it."""

    http_status = 503


class NoCluster(InputError):
    """Nothing answers where a Ray cluster should be. No fault of the work itself, which another worker may do."""

    http_status = 503


class WorkFailed(ScopebaseError):
    """The work began and could not go on; the same command continues it."""

    http_status = 503


class TooSlow(WorkFailed):
    """The answer took longer than a request may."""


class TooMany(WorkFailed):
    """More requests than one key or address may make in that time, or than the model's queue holds."""

    http_status = 429

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unreachable(WorkFailed):
    """The object store does not answer, or turns requests away; it may be back in a while."""

    retry_after = 5


class LeaseLost(WorkFailed):
    """The lease of a shard lapsed and another worker holds it now."""


def not_found(kind: str, name: str, known: Iterable[str], lister: str) -> NotFound:
    """The error for an unknown name, with the nearest names that exist."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return NotFound(f"no {kind} named {name!r}{hint} ('{lister}' lists what is there)")
