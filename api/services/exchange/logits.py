"""The tokens that a feature's decoder column raises and lowers most, where the index has them (table `logits`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from schema.layout import feature_key
from schema.store import Store
from schema.tables import Sae

TABLE = "logits"
COLUMNS = ["top_tokens", "top_values", "bottom_tokens", "bottom_values"]


@dataclass(frozen=True)
class Logits:
    """The strongest effects first on either side."""

    top_tokens: list[str] = field(default_factory=list)
    top_values: list[float] = field(default_factory=list)
    bottom_tokens: list[str] = field(default_factory=list)
    bottom_values: list[float] = field(default_factory=list)


def read_logits(store: Store, sae: Sae, features: Sequence[int]) -> dict[int, Logits]:
    """For each feature its logits; empty ones where the index has none."""
    empty = {feature: Logits() for feature in features}
    if not store.offers(TABLE):
        return empty
    rows = store.rows(TABLE, [feature_key(sae.id, feature) for feature in features], COLUMNS)
    first = feature_key(sae.id)
    return empty | {row.pop("key") - first: Logits(**row) for row in rows.to_pylist()}
