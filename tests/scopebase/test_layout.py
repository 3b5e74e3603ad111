"""What is installed: the wheel puts nothing named `api`, `schema`, `indexer` or `migrations` beside other packages."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("api", "indexer", "schema", "migrations", "steering")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built by hatchling alone."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_one_package(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} <= {
        "scopebase",
        next(n for n in names if "dist-info" in n).split("/")[0],
    }
    for room in ROOMS:
        assert any(name.startswith(f"scopebase/_app/{room}/") for name in names)


def test_installed_beside_a_package_named_schema_it_works_and_harms_nothing(wheel: Path, tmp_path: Path) -> None:
    """As pip would unpack it, next to somebody else's `schema`."""
    site = tmp_path / "site"
    (site / "schema").mkdir(parents=True)
    (site / "schema" / "__init__.py").write_text("OTHER = True\n")
    zipfile.ZipFile(wheel).extractall(site)
    top = {path.name for path in site.iterdir() if path.suffix != ".dist-info"}
    assert top == {"schema", "scopebase"}
    assert (site / "schema" / "__init__.py").read_text() == "OTHER = True\n"
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "import scopebase; from schema.errors import InputError; import schema, api.app;"
        "from schema.home import make_home; from schema.settings import Settings;"
        "home = make_home(Settings.read(sys.argv[2], {}));"
        "from schema.database import check_revision; assert check_revision(home.database) == 'current';"
        "assert schema.__file__.startswith(sys.argv[1]) and '_app' in schema.__file__, schema.__file__"
    )
    run = [sys.executable, "-c", script, str(site), str(tmp_path / "home")]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("room", ROOMS)
def test_no_dependency_claims_a_room(room: str) -> None:
    """The day one does, a process that imports both would get ours for theirs."""
    owners = set(importlib.metadata.packages_distributions().get(room, [])) - {"scopebase"}
    assert not owners


def test_only_scopebase_is_imported_by_outsiders() -> None:
    """The README and the how-tos show no import of a room."""
    for page in [ROOT / "README.md", *(ROOT / "docs" / "how-to").glob("*.md")]:
        assert not re.search(r"^\s*(?:from|import) (?:api|schema|indexer)\b", page.read_text(), re.MULTILINE), page
