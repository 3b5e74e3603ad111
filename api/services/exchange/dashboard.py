"""SAEDashboard's intermediate batches: `batch-<n>.json` of 128 features, and `skipped_indexes.json`, those that never fire."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from api.services.exchange.compare import Theirs
from api.services.exchange.examples import TOP, Examples, find_examples
from api.services.exchange.files import claim, whole_file
from api.services.exchange.logits import Logits, read_logits
from api.services.exchange.plan import Plan
from api.services.exchange.whole import Totals, totals
from api.services.provenance import provenance
from schema.errors import InputError
from schema.wire.exchange import ExportReport

BATCH = 128
SKIPPED = "skipped_indexes.json"
EMPTY = (
    "neuron_alignment_indices",
    "neuron_alignment_values",
    "neuron_alignment_l1",
    "correlated_neurons_indices",
    "correlated_neurons_l1",
    "correlated_neurons_pearson",
    "correlated_features_indices",
    "correlated_features_l1",
    "correlated_features_pearson",
    "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values",
    "decoder_weights_dist",
)
"""Lists that the index has nothing for; its readers want them there."""


def export_dashboard(plan: Plan) -> ExportReport:
    """Writes the batches.

    Raises:
        Conflict: the place holds something else.
        InputError: the place cannot be written.
    """
    claim(plan.out, plan.manifest("dashboard"))
    counts = totals(plan.library, plan.whole)
    head = {
        "model_id": plan.whole.sae.model.name,
        "layer": plan.whole.sae.layer,
        "sae_set": plan.whole.sae.set_name,
    }
    silent = [feature for feature in plan.features if not counts.tokens[feature]]
    with whole_file(plan.out / SKIPPED) as file:
        file.write(json.dumps({**head, "log_sparsity": None, "skipped_indexes": silent}).encode())
    n_examples, earlier = 0, False
    for number, batch in plan.batches(BATCH):
        path = plan.out / f"batch-{number}.json"
        if path.exists():
            earlier = True
        else:
            firing = [feature for feature in batch if counts.tokens[feature]]
            n_examples += _write_batch(plan, path, {**head, "sae_id_suffix": None}, firing, counts)
        plan.advance(len(batch))
    return ExportReport(
        format="dashboard",
        folder=str(plan.out),
        files=sum(1 for _ in plan.out.glob("batch-*.json")) + 1,
        n_features=len(plan.features),
        n_firing=len(plan.features) - len(silent),
        n_examples=None if earlier else n_examples,
        provenance=provenance(plan.whole.subject, "any"),
    )


def _write_batch(plan: Plan, path: Path, head: dict[str, Any], features: Sequence[int], counts: Totals) -> int:
    logits = read_logits(plan.library.store, plan.whole.sae, features)
    found = find_examples(plan.library.store, plan.whole, features, plan.choice) if features else {}
    rows = [_feature(plan, counts, feature, logits[feature], examples) for feature, examples in found.items()]
    with whole_file(path) as file:
        file.write(json.dumps({**head, "features": rows}, ensure_ascii=False).encode())
    return sum(len(row["activations"]) for row in rows)


def _feature(plan: Plan, counts: Totals, feature: int, logits: Logits, examples: Examples) -> dict[str, Any]:
    heights, middles = counts.histogram(feature)
    return {
        "feature_index": feature,
        **{name: [] for name in EMPTY},
        "pos_str": logits.top_tokens,
        "pos_values": logits.top_values,
        "neg_str": logits.bottom_tokens,
        "neg_values": logits.bottom_values,
        "frac_nonzero": counts.density(feature),
        "freq_hist_data_bar_heights": heights,
        "freq_hist_data_bar_values": middles,
        "n_prompts_total": sum(source.n_samples for source in plan.whole.sources),
        "n_tokens_in_prompt": plan.choice.window,
        "dataset": ", ".join(source.name for source in plan.whole.sources),
        "activations": _activations(examples),
    }


def _activations(examples: Examples) -> list[dict[str, Any]]:
    shown = []
    for example in examples.found:
        top = example.group == TOP
        shown.append(
            {
                "bin_min": -1.0 if top else examples.edges[example.group],
                "bin_max": examples.found[0].maximum if top else examples.edges[example.group + 1],
                "bin_contains": -1.0 if top else examples.shares[example.group],
                "tokens": example.tokens(),
                "values": example.activations(),
                "qualifying_token_index": example.strongest,
            }
        )
    return shown


def read_dashboard(folder: Path) -> Iterator[Theirs]:
    """The features of a folder of batches, a batch in memory at a time.

    Raises:
        InputError: there is none, or a file is none.
    """
    paths = sorted(folder.glob("batch-*.json"), key=lambda path: (len(path.name), path.name))
    if not paths:
        raise InputError(f"{folder} holds no batch-*.json of SAEDashboard")
    for path in paths:
        try:
            batch = json.loads(path.read_bytes())
            for row in batch["features"]:
                values = [max(each["values"], default=0.0) for each in row["activations"]]
                yield Theirs(int(row["feature_index"]), float(max(values, default=0.0)), float(row["frac_nonzero"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise InputError(f"{path} is no batch of SAEDashboard: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return f"it has no {error.args[0]!r}" if isinstance(error, KeyError) else str(error)[:200]
