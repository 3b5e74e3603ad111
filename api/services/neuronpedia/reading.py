"""Reading Neuronpedia's v1 export: its explanations as labels, its features to compare with ours."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from pydantic import ValidationError

from api.services.exchange.compare import Theirs
from api.services.labels import explanations
from api.services.labels.packs import bounded_lines
from api.services.neuronpedia.names import source_id
from schema.errors import Conflict, InputError
from schema.tables import Sae
from schema.wire.packs import PackLabel

_CUID = re.compile(r"c[a-z0-9]{24}")


def source_folder(folder: Path, sae: Sae) -> Path:
    """The folder of one source in an export: the only one there, or the one that bears the SAE's name.

    Raises:
        InputError: there is none.
        Conflict: there are several and none bears its name, or it says that it is of other tensors.
    """
    parts = ("features", "activations", "explanations*", "source.jsonl")
    found = {path.parent for part in parts for path in (*folder.glob(part), *folder.glob(f"**/{part}"))}
    named = {path for path in found if (path.parent.name, path.name) == (sae.model.name, source_id(sae))}
    chosen = found if len(found) == 1 else named
    if not found:
        raise InputError(f"{folder} holds no export of Neuronpedia (v1/<model>/<source>/explanations/batch-0.jsonl.gz)")
    if len(chosen) != 1:
        names = ", ".join(sorted(f"{path.parent.name}/{path.name}" for path in found)[:6])
        raise Conflict(f"{folder} holds several sources ({names}); name the folder of the one that {sae.name} is")
    source = chosen.pop()
    _check_tensors(source, sae)
    return source


def read_explanations(source: Path, sae: Sae) -> Iterator[PackLabel]:
    """The explanations of a source as labels of an SAE.

    Raises:
        InputError: there is none, or a row is wrong.
    """
    paths = sorted(source.glob("explanations*/*.jsonl*"))
    if not paths:
        raise InputError(f"{source} holds no explanations (explanations/batch-0.jsonl.gz)")
    own = _tensors(source) is not None
    for path in paths:
        for number, row in _rows(path):
            try:
                label = explanations.read(row)
            except (ValidationError, KeyError, TypeError, AttributeError) as error:
                raise InputError(f"{path}, line {number:,}: no explanation of Neuronpedia ({_said(error)})") from None
            if label is not None:
                yield _own(label, row) if own else label


def _own(label: PackLabel, row: dict[str, Any]) -> PackLabel:
    """A label that a Scopebase made and exported has its id again; those that came from Neuronpedia keep theirs."""
    id_ = (label.id or "").removeprefix(f"{explanations.HOME}:")
    if _CUID.fullmatch(id_):
        return label
    return label.model_copy(
        update={"id": id_ or None, "source": "person" if row.get("triggeredById") else label.source}
    )


def _said(error: Exception) -> str:
    if isinstance(error, ValidationError):
        wrong = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(str(part) for part in wrong['loc'])}: {wrong['msg']}"
    return repr(error)


def read_features(source: Path) -> Iterator[Theirs]:
    """The features of a source, a line in memory at a time.

    Raises:
        InputError: there is none, or a line is none.
    """
    paths = sorted((source / "features").glob("batch-*.jsonl*"), key=lambda path: (len(path.name), path.name))
    if not paths:
        raise InputError(f"{source} holds no features (features/batch-0.jsonl.gz)")
    for path in paths:
        for number, row in _rows(path):
            try:
                yield Theirs(int(row["index"]), float(row["maxActApprox"]), float(row["frac_nonzero"]))
            except (KeyError, ValueError, TypeError, OverflowError) as error:
                raise InputError(f"{path}, line {number:,}: no feature of Neuronpedia ({error!r})") from None


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(bounded_lines(file, str(path)), start=1):
                yield number, json.loads(line)
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {str(error)[:200]}") from None


def _check_tensors(source: Path, sae: Sae) -> None:
    """Raises Conflict for an export of other tensors, where it says of which it is."""
    sha256 = _tensors(source)
    if sha256 not in (None, sae.sha256):
        raise Conflict(
            f"{source} is of tensors {str(sha256)[:12]}, {sae.name} has {sae.sha256[:12]}: "
            "labels of one say nothing of the other"
        )


def _tensors(source: Path) -> str | None:
    """The SHA-256 of the tensors that an export speaks of; only those of a Scopebase say it."""
    path = source / "source.jsonl"
    rows = [row for _, row in _rows(path)] if path.exists() else []
    config = rows[0].get("saelensConfig") if rows and isinstance(rows[0], dict) else None
    return config.get("sha256") if isinstance(config, dict) else None
