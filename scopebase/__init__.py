"""Scopebase: the feature database for sparse autoencoders of language models.

    from scopebase import Client

In a checkout the rooms `schema`, `indexer`, `steering`, `api` lie beside this package; a wheel carries them inside it, under `_app`.
Either way they are imported by their own names, which this line makes findable.
"""

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scopebase.client import Client

__all__ = ["Client", "__version__"]

_APP = Path(__file__).parent / "_app"
_ROOMS = str(_APP if _APP.is_dir() else _APP.parents[1])
if _ROOMS not in sys.path:
    sys.path.insert(0, _ROOMS)

try:
    __version__ = version("scopebase")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0.0.0"


def __getattr__(name: str) -> Any:
    """`Client` when it is asked for, so that the command line does not wait for an HTTP library."""
    if name == "Client":
        from scopebase.client import Client

        return Client
    raise AttributeError(f"module 'scopebase' has no attribute {name!r}")
