"""Texts through the loaded model, read as the rule's samples were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from api.services.rules.deciding import Above, Reading
from api.services.rules.expressions import Leaf, leaves
from schema.live import LiveModel, LiveText
from schema.packing import LARGEST, SMALLEST
from schema.records import Pool
from schema.wire.rules import RuleItem

DEFAULTS: dict[str, Any] = {"mask": "special,first", "max_tokens": 512}


def read_live(live: LiveModel, texts: Sequence[str], rule: RuleItem) -> list[Reading]:
    """What a rule's features do in texts; values are float16, as stored ones are."""
    made = DEFAULTS | rule.provenance
    found = [*leaves(rule.expression)]
    read = live.read(texts, [*rule.saes], mask=made["mask"], max_tokens=made["max_tokens"])
    return [_reading(text, found, rule.pool) for text in read]


def _reading(text: LiveText, found: Sequence[Leaf], pool: Pool) -> Reading:
    counted = np.flatnonzero(text.counts)
    last = int(counted[-1]) if len(counted) else -1
    above = {}
    for leaf in found:
        fired = text.fired[leaf.sae]
        value = np.clip(fired.value, SMALLEST, LARGEST).astype(np.float16).astype(np.float32)
        own = (fired.feature == leaf.index) & (fired.value > 0) & (value > leaf.above)
        if pool == "last":
            own &= fired.position == last
        if own.any():
            above[leaf] = Above(fired.position[own], value[own])
    return Reading(None, None, text.text, text.starts, text.ends, above, text.truncated)
