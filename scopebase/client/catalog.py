"""What is there, and who wrote what."""

from __future__ import annotations

from schema.wire.access import AuditItem
from schema.wire.base import Health, Page
from schema.wire.catalog import DatasetItem, ModelItem, RunItem, SaeItem
from schema.wire.removals import RemovalAnswer
from scopebase.client.asking import Asking
from scopebase.client.rows import Rows


class Catalog(Asking):
    def health(self) -> Health:
        """That the service lives, and its version."""
        return self._get("/health", Health, {})

    def models(self) -> Rows[ModelItem]:
        """Models under study."""
        return self._all("/models", Page[ModelItem], {})

    def saes(self, model: str | None = None, layer: int | None = None, set: str | None = None) -> Rows[SaeItem]:
        """SAEs, with the datasets that each was run over."""
        return self._all("/saes", Page[SaeItem], {"model": model, "layer": layer, "set": set})

    def datasets(self, name: str | None = None) -> Rows[DatasetItem]:
        """Datasets; a changed source is a new version."""
        return self._all("/datasets", Page[DatasetItem], {"name": name})

    def runs(self, dataset: str | None = None, state: str | None = None) -> Rows[RunItem]:
        """Runs, finished or not, with what they counted."""
        return self._all("/runs", Page[RunItem], {"dataset": dataset, "state": state})

    def remove_run(self, run: int) -> RemovalAnswer:
        """Removes a run with everything that it wrote. This and the next two need a key with the scope `admin`."""
        return self._delete("/runs/{run}", RemovalAnswer, {}, run=run)

    def remove_dataset(self, name: str) -> RemovalAnswer:
        """Removes a dataset, or of `name@version` the one version, with its runs and the evaluations on it."""
        return self._delete("/datasets/{name}", RemovalAnswer, {}, name=name)

    def remove_sae(self, sae: str, *, labels: bool = False) -> RemovalAnswer:
        """Removes an SAE with everything that was indexed with it; its labels only where that is said."""
        return self._delete("/saes/{sae}", RemovalAnswer, {"labels": labels}, sae=sae)

    def audit(
        self,
        *,
        actor: str | None = None,
        action: str | None = None,
        target: str | None = None,
        since: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[AuditItem]:
        """The log of writes, newest first. Needs a key with the scope `admin`."""
        asked = {"actor": actor, "action": action, "target": target, "since": since, "limit": limit, "cursor": cursor}
        return self._get("/audit", Page[AuditItem], asked)
