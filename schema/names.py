"""Names: slugs of models, sets of SAEs, and the ids that users write.

SAE = `<model>/<layer>-<set>`, feature = `<sae>/<index>`, dataset = `<name>`, `<name>@<version>` or `<name>@run<run>`;
rule and steering vector = `<name>` or `<name>@<version>`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from schema.errors import InputError

_SET = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_DATASET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_QWEN_SCOPE = re.compile(r"SAE-Res-.+-W(?P<width>\w+)-L0_(?P<k>\d+)(?P<rest>.*)", re.IGNORECASE)


class SaeName(NamedTuple):
    """The three parts of an SAE's id."""

    model: str
    layer: int
    set_name: str

    def __str__(self) -> str:
        return f"{self.model}/{self.layer}-{self.set_name}"


def model_slug(source: str) -> str:
    """`Qwen/Qwen3-1.7B-Base` or a directory's path as `qwen3-1.7b-base`."""
    base = source.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
    slug = re.sub(r"[^a-z0-9.]+", "-", base.lower()).strip("-.")
    if not slug:
        raise InputError(f"no name can be made of model {source!r}; give one with --model-name")
    return slug


def set_from_release(release: str) -> str:
    """`SAE-Res-Qwen3-1.7B-Base-W32K-L0_50` as `qwenscope-res-32k-l50`; any other name as its slug."""
    base = release.rstrip("/").rsplit("/", 1)[-1]
    match = _QWEN_SCOPE.fullmatch(base)
    name = f"qwenscope-res-{match['width']}-l{match['k']}{match['rest']}" if match else base
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "sae"


def check_set(name: str) -> str:
    """The name of a set of SAEs, if it is one."""
    if not _SET.fullmatch(name):
        raise InputError(
            f"--set {name!r}: lower-case letters, digits and single hyphens only, like 'qwenscope-res-32k-l50'"
        )
    return name


def check_dataset(name: str) -> str:
    """The name of a dataset, if it is one."""
    if not _DATASET.fullmatch(name):
        raise InputError(
            f"dataset name {name!r}: letters, digits, '.', '_' and '-' only, 64 at most, beginning with a letter or digit"
        )
    return name


def parse_sae(text: str) -> SaeName:
    """`qwen3-1.7b-base/12-qwenscope-res-32k-l50` in its parts."""
    match = re.fullmatch(r"(?P<model>[^/]+)/(?P<layer>\d+)-(?P<set>[a-z0-9-]+)", text)
    if not match:
        raise InputError(f"{text!r} is no SAE's id; it looks like <model>/<layer>-<set> ('scopebase saes' lists them)")
    return SaeName(match["model"], int(match["layer"]), match["set"])


def parse_feature(text: str) -> tuple[str, int]:
    """`<sae>/<index>` as (SAE's id, index)."""
    sae, _, index = text.rpartition("/")
    if not sae or not (index.isascii() and index.isdigit()) or len(index) > 9:
        raise InputError(f"{text!r} is no feature's id; it looks like <model>/<layer>-<set>/<index>")
    return sae, int(index)


class DatasetName(NamedTuple):
    """A dataset as a question names it: its newest version, one version, or one run."""

    name: str
    version: int | None
    run: int | None


def parse_dataset(text: str) -> DatasetName:
    """`gsm8k`, `gsm8k@2` (version 2) or `gsm8k@run7` (run 7) in its parts."""
    name, at, which = text.partition("@")
    match = re.fullmatch(r"(run)?([1-9][0-9]{0,8})", which)
    if at and not match:
        raise InputError(
            f"{text!r}: what follows '@' is a dataset's version, as in {name}@2, or a run, as in {name}@run7"
        )
    number = int(match[2]) if match else None
    return DatasetName(name, None, number) if match and match[1] else DatasetName(name, number, None)


def parse_versioned(kind: str, text: str) -> tuple[str, int | None]:
    """`calm` or `calm@2` in its parts: the name, and the version that is asked for.

    Args:
        kind: what it names, for the sentence of a refusal.
    """
    name, at, which = text.partition("@")
    if at and not re.fullmatch(r"[1-9][0-9]{0,8}", which, re.ASCII):
        raise InputError(f"{text!r}: what follows '@' is the {kind}'s version, as in {name}@2")
    return name, int(which) if at else None
