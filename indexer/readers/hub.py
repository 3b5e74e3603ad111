"""Datasets of the Hugging Face hub, or of a local directory that `datasets` can load: `<dataset>[:<config>][:<split>]`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from indexer.readers.row import Row, plain
from schema.errors import InputError

SPLITS = ("test", "validation", "train")
"""Which split is taken where none is named: the one that benchmarks are scored on."""


def read_hub(spec: str) -> Iterator[Row]:
    """The rows of one split. With one part after the name, it is taken as a split if the dataset has one of that name, else as a config."""
    name, split, rows = _load(spec)
    for number, record in enumerate(rows):
        yield Row(f"{name} {split} row {number}", plain(record))


def _load(spec: str) -> tuple[str, str, Any]:
    try:
        from datasets import get_dataset_config_names, get_dataset_split_names, load_dataset, load_from_disk
    except ImportError:
        raise InputError("reading from the hub needs the package 'datasets'; pip install 'scopebase[hub]'") from None
    name, *rest = spec.split(":")
    if not name or len(rest) > 2:
        raise InputError(f"'hub:{spec}' is not hub:<dataset>[:<config>][:<split>]")
    try:
        if (Path(name) / "state.json").exists() or (Path(name) / "dataset_dict.json").exists():
            return _saved(name, rest, load_from_disk(name))
        configs = get_dataset_config_names(name)
        config, asked = _config(name, rest, configs)
        split = _choose(name, asked, get_dataset_split_names(name, config))
        return name, split, load_dataset(name, config, split=split)
    except InputError:
        raise
    except Exception as error:  # `datasets` raises whatever its loaders and the network raise
        raise InputError(
            f"hub dataset {name} cannot be loaded: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
        ) from error


def _config(name: str, rest: list[str], configs: list[str]) -> tuple[str, list[str]]:
    """The config that is meant, and what is left for the split: of two parts the first is the config, of one whichever has that name."""
    if len(rest) == 2 and rest[0] and rest[0] not in configs:
        raise InputError(f"hub dataset {name} has no config {rest[0]!r}; its configs: {', '.join(configs[:12])}")
    if rest and rest[0] in configs:
        return rest[0], [part for part in rest[1:] if part]
    config = configs[0] if len(configs) == 1 else "default" if "default" in configs else None
    if config is None:
        raise InputError(
            f"hub dataset {name} has several configs; name one: hub:{name}:<config>, of {', '.join(configs[:12])}"
        )
    return config, [part for part in rest if part]


def _saved(name: str, rest: list[str], loaded: Any) -> tuple[str, str, Any]:
    """What `Dataset.save_to_disk` or `DatasetDict.save_to_disk` left."""
    if not hasattr(loaded, "keys"):
        return name, "rows", loaded
    split = _choose(name, [part for part in rest if part], list(loaded.keys()))
    return name, split, loaded[split]


def _choose(name: str, asked: list[str], splits: list[str]) -> str:
    if asked:
        if asked[-1] not in splits:
            raise InputError(
                f"hub dataset {name} has no config or split {asked[-1]!r}; its splits: {', '.join(splits)}"
            )
        return asked[-1]
    return next((split for split in SPLITS if split in splits), splits[0])
