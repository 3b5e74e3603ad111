"""The documents tell the truth: their links lead somewhere, and the commands and options they show exist."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.documents import FOLDER, commands, openapi

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)[^)]*\)")
ANCHOR = re.compile(r"\[[^\]]*\]\(([^)#\s]*)#([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.M)
BLOCK = re.compile(r"```(?:bash|sh|console|shell|)\n(.*?)```", re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        assert target.startswith(("http://", "https://")) or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_into_pages_name_a_heading(page: Path) -> None:
    for target, anchor in ANCHOR.findall(page.read_text()):
        if not target.startswith(("http://", "https://")):
            there = page.parent / target if target else page
            assert anchor in _anchors(there.read_text()), f"{target}#{anchor}"


def _anchors(text: str) -> set[str]:
    """As GitHub makes them of headings, and those that a page names itself."""
    plain = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    headings = {re.sub(r"[^\w\- ]", "", line.lower()).strip().replace(" ", "-") for line in HEADING.findall(plain)}
    return headings | set(re.findall(r'<a id="([^"]+)">', text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_exist(page: Path) -> None:
    known = commands()
    for line in (line for block in BLOCK.findall(page.read_text()) for line in _calls(block)):
        words = shlex.split(line, comments=True)[1:]
        while words and words[0].startswith("-"):
            words = words[2:] if words[0] == "--home" else words[1:]
        name = next((n for n in (" ".join(words[:2]), " ".join(words[:1])) if n in known), None)
        assert name is not None, line
        asked = {word.split("=")[0] for word in words if word.startswith("--")}
        assert asked <= known[name] | known[""], line


def _calls(block: str) -> list[str]:
    """The lines of a block that call scopebase, continued lines joined; `[options]`, `...` and usage lines left out."""
    joined = block.replace("\\\n", " ")
    lines = [line.strip().removeprefix("$ ") for line in joined.splitlines()]
    return [line for line in lines if line.startswith("scopebase ") and "[OPTIONS]" not in line and "|" not in line]


def test_the_reference_has_every_command_and_route() -> None:
    text = (FOLDER / "command-line.md").read_text()
    for name, options in commands().items():
        section = text.split(f"## `{f'scopebase {name}'.strip()}`")[1].split("\n## ")[0]
        assert all(option in section for option in options - {"-h"}), name
    assert json.loads((FOLDER / "openapi.json").read_text()) == json.loads(openapi())


ROW = re.compile(r"^\| (\d+) \| (.+?) \| (.+) \|$", re.M)
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_every_row_of_the_fault_table_names_tests_that_exist() -> None:
    rows = ROW.findall((ROOT / "docs" / "reliability.md").read_text())
    assert [int(number) for number, _, _ in rows] == list(range(1, 47))
    for number, _, held in rows:
        named = NAMED.findall(held)
        assert named or " " in held, f"row {number} says neither which test holds it nor why none does"
        for file, test in named:
            assert re.search(rf"^\s*(?:async )?def {test}\(", (ROOT / file).read_text(), re.M), f"{file}::{test}"
