"""Labels out of other tools' folders, taken in like any label pack: bound to the SAE that the caller names, known again by their ids."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from api.services.labels.importing import import_labels
from api.services.library import Library
from schema.errors import InputError
from schema.tables import Sae
from schema.wire.labels import ImportReport, Policy
from schema.wire.packs import PackLabel


@dataclass(frozen=True)
class Taking:
    """How labels are taken in."""

    actor: str
    policy: Policy = "skip"
    dry_run: bool = False
    licence: str | None = None
    """Noted with each label; what the files say of one comes first."""


def take_in(
    library: Library,
    sae: Sae,
    name: str,
    labels: Iterable[PackLabel],
    taking: Taking,
    advance: Callable[[int, int | None], None] = lambda _n, _total: None,
) -> ImportReport:
    """Imports labels; all are checked before any is written.

    Args:
        name: what people call where they come from.

    Raises:
        InputError, Conflict: a label is wrong, or there is none; nothing was written.
    """
    n_labels = 0
    with tempfile.TemporaryDirectory(prefix="scopebase-") as folder:
        pack = Path(folder, "labels.jsonl")
        with pack.open("w", encoding="utf-8") as file:
            for label in labels:
                bound = {"sae_sha256": sae.sha256, "sae": sae.name, "licence": label.licence or taking.licence}
                file.write(label.model_copy(update=bound).model_dump_json(exclude_none=True) + "\n")
                n_labels += 1
        if not n_labels:
            raise InputError(f"{name} holds no label")
        return import_labels(library, pack, taking.actor, sae.name, taking.policy, taking.dry_run, name, advance)
