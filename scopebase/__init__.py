"""Scopebase: the feature database for sparse autoencoders of language models.

In a checkout the rooms `schema`, `indexer`, `api` lie beside this package; a wheel carries them inside it, under `_app`.
Either way they are imported by their own names, which this line makes findable.
"""

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_APP = Path(__file__).parent / "_app"
_ROOMS = str(_APP if _APP.is_dir() else _APP.parents[1])
if _ROOMS not in sys.path:
    sys.path.insert(0, _ROOMS)

try:
    __version__ = version("scopebase")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0.0.0"
