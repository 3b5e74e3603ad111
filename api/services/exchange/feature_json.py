"""Features as the tools around attribution graphs read them (circuit-tracer and its relatives): one JSON file a feature.

features/<number>.json     number = cantor(layer, index), by which the nodes of their graphs name a feature
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from api.services.exchange.examples import TOP, Example, Examples, find_examples
from api.services.exchange.files import claim, whole_file
from api.services.exchange.logits import Logits, read_logits
from api.services.exchange.plan import Plan
from api.services.exchange.whole import Totals, totals
from api.services.provenance import provenance
from schema.labels import best_labels
from schema.wire.exchange import ExportReport

BATCH = 128
FOLDER = "features"
STRONGEST = "Top activations"


def cantor(layer: int, index: int) -> int:
    """One number for a layer and a feature, and no other's."""
    return (layer + index) * (layer + index + 1) // 2 + index


def export_feature_json(plan: Plan) -> ExportReport:
    """Writes the files of the features that fire; of the others nothing could be shown.

    Raises:
        Conflict: the place holds something else.
        InputError: the place cannot be written.
    """
    claim(plan.out, plan.manifest("features-json"))
    counts = totals(plan.library, plan.whole)
    n_examples, earlier, n_firing = 0, False, 0
    for _, batch in plan.batches(BATCH):
        firing = [feature for feature in batch if counts.tokens[feature]]
        missing = [feature for feature in firing if not _path(plan, feature).exists()]
        earlier |= len(missing) < len(firing)
        n_firing += len(firing)
        n_examples += _write(plan, missing, counts) if missing else 0
        plan.advance(len(batch))
    return ExportReport(
        format="features-json",
        folder=str(plan.out),
        files=n_firing,
        n_features=len(plan.features),
        n_firing=n_firing,
        n_examples=None if earlier else n_examples,
        provenance=provenance(plan.whole.subject, "any"),
    )


def _path(plan: Plan, feature: int) -> Path:
    return plan.out / FOLDER / f"{cantor(plan.whole.sae.layer, feature)}.json"


def _write(plan: Plan, features: Sequence[int], counts: Totals) -> int:
    sae, n_written = plan.whole.sae, 0
    logits = read_logits(plan.library.store, sae, features)
    with plan.library.home.database.reading() as session:
        labels = {feature: label.text for feature, label in best_labels(session, sae.id, features).items()}
    for feature, examples in find_examples(plan.library.store, plan.whole, features, plan.choice).items():
        row = _row(sae.name, feature, counts, examples, logits[feature], labels.get(feature, ""))
        with whole_file(_path(plan, feature)) as file:
            file.write(json.dumps(row, ensure_ascii=False).encode())
        n_written += len(examples.found)
    return n_written


def _row(sae: str, feature: int, counts: Totals, examples: Examples, logits: Logits, label: str) -> dict[str, Any]:
    heights, _ = counts.histogram(feature)
    return {
        "transcoder_id": sae,
        "index": feature,
        "clerp": label,
        "examples_quantiles": _quantiles(examples),
        "top_logits": logits.top_tokens,
        "bottom_logits": logits.bottom_tokens,
        "act_min": 0.0,
        "act_max": float(counts.largest[feature]),
        "quantile_values": examples.edges,
        "histogram": heights,
        "activation_frequency": counts.density(feature),
    }


def _quantiles(examples: Examples) -> list[dict[str, Any]]:
    """The strongest examples, then the intervals of activation from the highest down, each named by its bounds."""
    named: dict[str, list[Example]] = {}
    for example in examples.found:
        named.setdefault(_name(examples, example.group), []).append(example)
    return [{"quantile_name": name, "examples": [_example(each) for each in found]} for name, found in named.items()]


def _name(examples: Examples, group: int) -> str:
    if group == TOP:
        return STRONGEST
    return f"Activations of {examples.edges[group]:.3g} to {examples.edges[group + 1]:.3g}"


def _example(example: Example) -> dict[str, Any]:
    return {
        "tokens": example.tokens(),
        "tokens_acts_list": example.activations(),
        "train_token_ind": example.strongest,
        "is_repeated_datapoint": False,
    }
