"""Where a release lies: a local directory (or one file of it), or a repository of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from schema.errors import InputError


class Place(Protocol):
    """Files by their names relative to the release's root."""

    name: str
    """The release's name: its last path component."""
    path: str
    """Where it lies, whole: for what only the folders above it tell."""
    revision: str
    """The hub's commit; empty for a directory."""

    def names(self) -> list[str]: ...

    def get(self, name: str) -> Path:
        """A local copy of the file."""


class Folder:
    """A local directory, or one SAE file in it."""

    revision = ""

    def __init__(self, path: Path) -> None:
        self.folder = path.parent if path.is_file() else path
        self.only = path.name if path.is_file() else None
        self.path = self.folder.resolve().as_posix()
        self.name = self.folder.resolve().name

    def names(self) -> list[str]:
        files = (file.relative_to(self.folder) for file in sorted(self.folder.rglob("*")) if file.is_file())
        return [str(file) for file in files if self.only in (None, str(file)) or file.suffix == ".json"]

    def get(self, name: str) -> Path:
        return self.folder / name


class Repository:
    """A repository of the hub, or a folder in it; only the files asked for are downloaded."""

    def __init__(self, repo: str, folder: str, revision: str | None) -> None:
        from huggingface_hub import HfApi

        self.repo, self.folder = repo, folder.strip("/")
        self.path = f"{repo}/{self.folder}".rstrip("/")
        self.name = self.path.rsplit("/", 1)[-1]
        try:
            info = HfApi().model_info(repo, revision=revision)
        except Exception as error:  # the library raises its own, httpx's and the operating system's
            raise _unreachable(repo, error) from error
        self.revision = str(info.sha)
        prefix = f"{self.folder}/" if self.folder else ""
        self._names = [s.rfilename[len(prefix) :] for s in info.siblings or [] if s.rfilename.startswith(prefix)]

    def names(self) -> list[str]:
        return self._names

    def get(self, name: str) -> Path:
        from huggingface_hub import hf_hub_download

        path = f"{self.folder}/{name}" if self.folder else name
        try:
            return Path(hf_hub_download(self.repo, path, revision=self.revision))
        except Exception as error:
            raise _unreachable(f"{self.repo}/{path}", error) from error


def open_place(source: str) -> Place:
    """A path where there is one, else `owner/name[/folder][@revision]` on the hub.

    Raises:
        InputError: neither.
    """
    path = Path(source).expanduser()
    if path.exists():
        return Folder(path)
    name, _, revision = source.partition("@")
    parts = name.split("/")
    if len(parts) < 2 or source.startswith((".", "/", "~")) or ".." in parts or not all(parts):
        raise InputError(f"there is no SAE directory {source!r}, and it is no hub id (owner/name)")
    return Repository("/".join(parts[:2]), "/".join(parts[2:]), revision or None)


def _unreachable(what: str, error: Exception) -> InputError:
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
    return InputError(
        f"{what} cannot be fetched from the hub: {type(error).__name__}: {reason}; "
        "check its name and the network, or give a local directory"
    )
