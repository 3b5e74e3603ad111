"""Where a home is: the embedded database and the activation store, or what replaces either."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

DEFAULT_HOME = "scopebase-data"


@dataclass(frozen=True)
class Settings:
    """The addresses of the two stores."""

    home: Path
    database_url: str
    """SQLAlchemy's; `sqlite:///<home>/scopebase.db` unless given."""
    store_url: str
    """A directory or an object store's URL; `<home>/store` unless given."""

    @classmethod
    def read(cls, home: str | Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
        """From the argument, else SCOPEBASE_HOME, else ./scopebase-data; either store from the environment."""
        folder = Path(home or environ.get("SCOPEBASE_HOME") or DEFAULT_HOME).expanduser()
        return cls(
            home=folder,
            database_url=_with_driver(environ.get("SCOPEBASE_DATABASE_URL") or f"sqlite:///{folder / 'scopebase.db'}"),
            store_url=(environ.get("SCOPEBASE_STORE_URL") or str(folder / "store")).removeprefix("file://"),
        )

    def absolute(self) -> Settings:
        """The same for a process that stands in another directory."""
        file, folder = self.database_file, self.store_folder
        return replace(
            self,
            home=self.home.absolute(),
            database_url=f"sqlite:///{file.absolute()}" if file is not None else self.database_url,
            store_url=str(folder.absolute()) if folder is not None else self.store_url,
        )

    @property
    def database_file(self) -> Path | None:
        """The SQLite file, or None where the database is a server."""
        prefix = "sqlite:///"
        return Path(self.database_url[len(prefix) :]) if self.database_url.startswith(prefix) else None

    @property
    def store_folder(self) -> Path | None:
        """The store's directory, or None where it is an object store."""
        return None if "://" in self.store_url else Path(self.store_url)


def _with_driver(url: str) -> str:
    """Psycopg 3 for plain PostgreSQL URLs, as every hosting service prints them."""
    for plain in ("postgres://", "postgresql://"):
        if url.startswith(plain):
            return "postgresql+psycopg://" + url[len(plain) :]
    return url
