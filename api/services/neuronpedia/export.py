"""Neuronpedia's v1 export of one SAE, as their importer reads it.

    v1/config/*.jsonl                                  kinds of explanations, explainers and scores
    v1/<model>/<source>/{model,release,source,sourceset}.jsonl
    v1/<model>/<source>/{features,activations,explanations}/batch-<n>.jsonl.gz     1,024 features each

A file is there whole or not at all; the same call goes on where it was stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from api.services.exchange.examples import find_examples
from api.services.exchange.files import claim, lines, write_rows
from api.services.exchange.logits import read_logits
from api.services.exchange.plan import Plan
from api.services.exchange.whole import Totals, totals
from api.services.neuronpedia.catalogue import overview
from api.services.neuronpedia.features import labels_of
from api.services.neuronpedia.names import source_id
from api.services.neuronpedia.rows import (
    activation_rows,
    explanation_row,
    feature_row,
    model_row,
    release_row,
    source_row,
    source_set_row,
)
from api.services.provenance import provenance
from schema.wire.exchange import ExportReport

BATCH = 1024
EXPLANATION_COLUMNS = {
    "id",
    "modelId",
    "layer",
    "index",
    "authorId",
    "description",
    "typeName",
    "explanationModelName",
    "triggeredById",
    "notes",
    "createdAt",
}
NOT_COLUMNS = {"source"}
"""Of an activation: what routes add for their client and their table does not have."""


def export_neuronpedia(plan: Plan) -> ExportReport:
    """Writes the export.

    Raises:
        Conflict: the place holds something else.
        InputError: the place cannot be written.
    """
    sae = plan.whole.sae
    folder = plan.out / "v1" / sae.model.name / source_id(sae)
    claim(folder, plan.manifest("neuronpedia"))
    counts = totals(plan.library, plan.whole)
    _write_heads(plan, folder)
    n_examples, earlier = 0, False
    for number, batch in plan.batches(BATCH):
        n_found = _write_batch(plan, folder, number, batch, counts)
        n_examples += n_found or 0
        earlier |= n_found is None
        plan.advance(len(batch))
    return ExportReport(
        format="neuronpedia",
        folder=str(folder),
        files=sum(1 for _ in folder.rglob("*.jsonl*")),
        n_features=len(plan.features),
        n_firing=int((counts.tokens[list(plan.features)] > 0).sum()),
        n_examples=None if earlier else n_examples,
        provenance=provenance(plan.whole.subject, "any"),
    )


def _write_heads(plan: Plan, folder: Path) -> None:
    """The files that are small: what models, sources and kinds there are."""
    sae = plan.whole.sae
    write_rows(folder / "model.jsonl", model_row(sae.model, [sae]))
    write_rows(folder / "release.jsonl", release_row(sae))
    write_rows(folder / "source.jsonl", source_row(sae, plan.whole))
    write_rows(folder / "sourceset.jsonl", source_set_row(sae))
    with plan.library.home.database.reading() as session:
        kinds = overview(session)
    config = plan.out / "v1" / "config"
    write_rows(config / "explanation_type.jsonl", *kinds.explanationTypes)
    write_rows(config / "explanation_model_type.jsonl", *kinds.explanationModels)
    write_rows(config / "explanation_score_type.jsonl", *kinds.explanationScoreTypes)
    write_rows(config / "explanation_score_model.jsonl", *kinds.explanationScoreModelTypes)
    write_rows(config / "eval_type.jsonl")


def _write_batch(plan: Plan, folder: Path, number: int, batch: Sequence[int], counts: Totals) -> int | None:
    """One batch of features; how many examples, None where they were written before."""
    sae = plan.whole.sae
    name = f"batch-{number}.jsonl.gz"
    _write_explanations(plan, folder / "explanations" / name, batch)
    if not (folder / "features" / name).exists():
        logits = read_logits(plan.library.store, sae, batch)
        write_rows(folder / "features" / name, *(feature_row(sae, counts, f, logits[f]) for f in batch))
    if (folder / "activations" / name).exists():
        return None
    written = 0
    with lines(folder / "activations" / name) as file:
        for block in plan.blocks(batch):
            for feature, examples in find_examples(plan.library.store, plan.whole, block, plan.choice).items():
                for row in activation_rows(sae, feature, examples):
                    # their database holds no NUL; their importer puts a space in its place, too
                    file.write(row.model_dump_json(exclude=NOT_COLUMNS).replace("\\u0000", " ") + "\n")
                    written += 1
    return written


def _write_explanations(plan: Plan, path: Path, batch: Sequence[int]) -> None:
    """Labels change, so these are always written anew."""
    with plan.library.home.database.reading() as session:
        found = labels_of(session, plan.whole.sae, batch)
    with lines(path) as file:
        for labels in found.values():
            for label in labels:
                row = explanation_row(plan.whole.sae, label)
                file.write(row.model_dump_json(include=EXPLANATION_COLUMNS) + "\n")
