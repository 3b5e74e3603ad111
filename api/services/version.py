"""Which Scopebase answers."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def running_version() -> str:
    try:
        return version("scopebase")
    except PackageNotFoundError:
        return "0.0.0"
