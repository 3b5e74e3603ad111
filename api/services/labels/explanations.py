"""Neuronpedia's explanation rows (export v1), read and written.

A row has no hash of the SAE, so who imports rows says with --sae what they speak of. A label's id is `neuronpedia:<id>` here, and
`<id>` again when it goes back; one that was made here and written as a row keeps its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from schema.lab import Label
from schema.tables import Sae
from schema.wire.packs import PackLabel

HOME = "neuronpedia"
_OURS = re.compile(r"[0-9a-f]{32}|(described|made|twin):[0-9a-f]{40}")
"""Ids that a Scopebase made: such a label comes home under its own."""
FEATURES_A_BATCH = 1024
"""As Neuronpedia's exporter writes them."""


def is_one(row: Mapping[str, Any]) -> bool:
    """Whether a row is an explanation."""
    return "description" in row and "index" in row


def read(row: Mapping[str, Any]) -> PackLabel | None:
    """An explanation as a label; None where it has no text.

    Raises:
        ValidationError: a field is not what it should be.
    """
    if not str(row.get("description") or "").strip():
        return None
    model = row.get("explanationModelName") or None
    created = row.get("createdAt")
    id_ = str(row["id"]) if row.get("id") else None
    fields = {
        "id": id_ if id_ is None or _OURS.fullmatch(id_) else f"{HOME}:{id_}",
        "sae": f"{row['modelId']}/{row['layer']}" if row.get("modelId") and row.get("layer") is not None else None,
        "index": row["index"],
        "text": row["description"],
        "author": row.get("authorId") or HOME,
        "source": "model" if model else "import",
        "explainer": model,
        "method": row.get("typeName") or None,
        "created_at": str(created) if created else None,
    }
    return PackLabel.model_validate(fields)


def write(label: Label, sae: Sae) -> dict[str, Any]:
    """A label as an explanation."""
    return {
        "id": label.uid.removeprefix(f"{HOME}:"),
        "modelId": sae.model.name,
        "layer": f"{sae.layer}-{sae.set_name}",
        "index": str(label.feature),
        "authorId": label.author,
        "description": label.text,
        "typeName": label.method,
        "explanationModelName": label.explainer,
        "notes": None,
        "createdAt": label.created_at.isoformat().replace("+00:00", "Z"),
    }
