"""Rules, and results of evaluations. `**more` are further parameters or fields of the route."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from schema.wire.base import Page
from schema.wire.discovery import DiscoverAnswer, TransferAnswer
from schema.wire.evaluations import (
    EvaluationItem,
    EvaluationReport,
    FailuresAnswer,
    PerformanceAnswer,
    PreservationAnswer,
    SimilarityAnswer,
)
from schema.wire.rules import ClassifyAnswer, DriftAnswer, EvaluateAnswer, RuleItem
from scopebase.client.asking import Asking
from scopebase.client.rows import Rows


class Rules(Asking):
    def discover_rules(self, saes: Sequence[str], dataset: str, **more: Any) -> DiscoverAnswer:
        """Which features tell two classes apart, per SAE and number of features."""
        return self._post("/rules/discover", DiscoverAnswer, {"saes": list(saes), "dataset": dataset, **more})

    def transfer_rules(self, saes: Sequence[str], datasets: Sequence[str], **more: Any) -> TransferAnswer:
        """Rules discovered in each dataset, measured in each other."""
        return self._post("/rules/transfer", TransferAnswer, {"saes": list(saes), "datasets": list(datasets), **more})

    def rules(self, name: str | None = None) -> Rows[RuleItem]:
        """Stored rules."""
        return self._all("/rules", Page[RuleItem], {"name": name})

    def rule(self, name: str, version: int | None = None) -> RuleItem:
        """A stored rule, in its newest version unless one is named."""
        return self._get("/rules/{name}", RuleItem, {"version": version}, name=name)

    def store_rule(self, name: str, **more: Any) -> RuleItem:
        """A rule from an `expression`, or from a `discovery` and its `choice`. Needs the scope `write`."""
        return self._post("/rules", RuleItem, {"name": name, **more})

    def sign_rule(self, name: str, version: int | None = None) -> RuleItem:
        """Says that somebody answers for it. Needs the scope `write`."""
        return self._post("/rules/{name}/sign", RuleItem, {"version": version}, name=name)

    def evaluate_rule(self, name: str, datasets: Sequence[str], **more: Any) -> EvaluateAnswer:
        """How well a rule does on labelled datasets. Needs the scope `write`, because the result is kept."""
        return self._post("/rules/{name}/evaluate", EvaluateAnswer, {"datasets": list(datasets), **more}, name=name)

    def rule_evaluations(self, name: str) -> Rows[EvaluateAnswer]:
        """What a rule was measured to do."""
        return self._all("/rules/{name}/evaluations", Page[EvaluateAnswer], {}, name=name)

    def rule_drift(self, name: str, version: int | None = None) -> DriftAnswer:
        """Whether what a rule was made with is still what is there."""
        return self._get("/rules/{name}/drift", DriftAnswer, {"version": version}, name=name)

    def classify(
        self,
        name: str,
        texts: Sequence[str] | None = None,
        *,
        dataset: str | None = None,
        cursor: str | None = None,
        **more: Any,
    ) -> ClassifyAnswer:
        """What a rule says of texts, through the service's model, or of stored samples of a dataset: one page."""
        asked = {"texts": texts, "dataset": dataset, "cursor": cursor, **more}
        return self._post("/rules/{name}/classify", ClassifyAnswer, asked, name=name)


class Evaluations(Asking):
    def evaluations(self, dataset: str | None = None, **more: Any) -> Rows[EvaluationItem]:
        """Imported evaluation results."""
        return self._all("/evaluations", Page[EvaluationItem], {"dataset": dataset, **more})

    def import_scores(
        self, dataset: str, evaluated: str, metric: str, rows: Sequence[Mapping[str, Any]], **more: Any
    ) -> EvaluationReport:
        """One model's score on each sample of a dataset. Needs the scope `write`."""
        asked = {"dataset": dataset, "evaluated": evaluated, "metric": metric, "rows": list(rows), **more}
        return self._post("/evaluations", EvaluationReport, asked)

    def import_evaluation(
        self, path: str | Path, dataset: str, metric: str, *, evaluated: str | None = None, match: str = "auto"
    ) -> EvaluationReport:
        """A file of one model's scores, however large: lm-eval samples, an Inspect log, CSV or JSONL, plain or gzip. Needs the scope
        `write`. An Inspect log names the model itself."""
        asked = {"dataset": dataset, "metric": metric, "evaluated": evaluated, "match": match, "name": Path(path).name}
        return self._upload("/evaluations/import", EvaluationReport, path, asked)

    def remove_evaluation(self, evaluation: int) -> None:
        """Removes the scores of one model on one dataset. Needs the scope `write`."""
        self._transport.send("DELETE", f"/evaluations/{evaluation}")

    def rank_preservation(self, dataset: str, **more: Any) -> PreservationAnswer:
        """Whether a subset (`samples`, `coverage` or `n`) keeps the order of the evaluated models."""
        return self._post("/rank-preservation", PreservationAnswer, {"dataset": dataset, **more})

    def performance_redundancy(self, *datasets: str, sae: str | None = None, **more: Any) -> PerformanceAnswer:
        """Performance redundancy beside feature redundancy."""
        return self._get("/performance-redundancy", PerformanceAnswer, {"dataset": datasets, "sae": sae, **more})

    def performance_similarity(self, *datasets: str, sae: str | None = None, **more: Any) -> SimilarityAnswer:
        """Shared features beside shared ranking."""
        return self._get("/performance-similarity", SimilarityAnswer, {"dataset": datasets, "sae": sae, **more})

    def failures(
        self, dataset: str, *, evaluated: str | None = None, limit: int = 50, cursor: str | None = None, **more: Any
    ) -> FailuresAnswer:
        """Features whose samples an evaluated model scores differently from the others: one page."""
        asked = {"dataset": dataset, "evaluated": evaluated, "limit": limit, "cursor": cursor, **more}
        return self._get("/failures", FailuresAnswer, asked)
