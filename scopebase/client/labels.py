"""Labels: read, made, talked about, exchanged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from schema.wire.base import Page
from schema.wire.labels import (
    CommentItem,
    DescribeProgress,
    DescribeReport,
    ExplainProgress,
    ExplainReport,
    FeaturesFound,
    ImportReport,
    LabelEventItem,
    LabelItem,
)
from scopebase.client.asking import Asking, given
from scopebase.client.rows import Rows

NDJSON, PARQUET = "application/x-ndjson", "application/vnd.apache.parquet"


class Labels(Asking):
    def labels(self, *, limit: int = 50, cursor: str | None = None, **which: Any) -> Page[LabelItem]:
        """Labels, newest first, narrowed by `sae`, `feature`, `author`, `source`, `text`, ...: one page; `each` has them all."""
        return self._get("/labels", Page[LabelItem], {"limit": limit, "cursor": cursor, **which})

    def label(self, label: str) -> LabelItem:
        """A label, by its id."""
        return self._get("/labels/{label}", LabelItem, {}, label=label)

    def make_label(self, feature: str, text: str, **more: Any) -> LabelItem:
        """A new label; its author is the key's holder. This and what follows needs the scope `label`."""
        return self._post("/labels", LabelItem, {"feature": feature, "text": text, **more})

    def change_label(self, label: str, version: int, **changes: Any) -> LabelItem:
        """What is left out stays, None empties.

        Raises:
            Conflict: somebody was quicker than the version that you saw.
        """
        return self._patch("/labels/{label}", LabelItem, {"version": version, **changes}, label=label)

    def delete_label(self, label: str, version: int | None = None) -> LabelItem:
        """`undo_label` brings it back."""
        return self._delete("/labels/{label}", LabelItem, {"version": version}, label=label)

    def undo_label(self, label: str) -> LabelItem:
        """Takes the last change back."""
        return self._post("/labels/{label}/undo", LabelItem, {}, label=label)

    def vote(self, label: str, value: int) -> LabelItem:
        """+1, -1, or 0 to take the vote back."""
        return self._post("/labels/{label}/votes", LabelItem, {"value": value}, label=label)

    def comments(self, label: str) -> Rows[CommentItem]:
        """Comments on a label, oldest first."""
        return self._all("/labels/{label}/comments", Page[CommentItem], {}, label=label)

    def comment(self, label: str, text: str) -> CommentItem:
        """Says something about a label."""
        return self._post("/labels/{label}/comments", CommentItem, {"text": text}, label=label)

    def label_history(self, label: str) -> Rows[LabelEventItem]:
        """Every change of a label, newest first."""
        return self._all("/labels/{label}/history", Page[LabelEventItem], {}, label=label)

    def search(self, text: str, *, sae: str | None = None, how: str = "text", limit: int = 50) -> FeaturesFound:
        """Features by what their labels say: by words (`text`), by meaning (`meaning`), or `both`."""
        return self._post("/features/search", FeaturesFound, {"text": text, "sae": sae, "how": how, "limit": limit})

    def describe_features(
        self,
        *,
        sae: str | None = None,
        features: Sequence[int] | None = None,
        advance: Callable[[int, int], None] = lambda _done, _of: None,
    ) -> DescribeReport:
        """Labels made of the tokens that fire each feature, without a model; of every feature that fires unless `features` says
        which. `advance` is told how far it is."""
        line = self._transport.follow(
            "/labels/describe", DescribeProgress, given({"sae": sae, "features": features}), advance
        )
        assert line.report is not None
        return line.report

    def explain_features(
        self,
        *,
        sae: str | None = None,
        features: Sequence[int] | None = None,
        advance: Callable[[int, int], None] = lambda _done, _of: None,
        **more: Any,
    ) -> ExplainReport:
        """Labels by the explainer model that the service was started with; `scored`, `max_requests`, `max_tokens`, `at_once` and
        others as the route takes them. Asked again, it goes on.

        Raises:
            WorkFailed: the service has no explainer model, or it refuses.
        """
        body = {**given({"sae": sae, "features": features}), **more}
        line = self._transport.follow("/labels/explain", ExplainProgress, body, advance)
        assert line.report is not None
        return line.report

    def export_labels(self, to: str | Path, format: str = "jsonl", **which: Any) -> Path:
        """Labels as a pack, into a file: `jsonl`, `parquet` or `neuronpedia`."""
        return self._save("GET", "/labels/export", to, params={"format": format, **which})

    def import_labels(
        self, pack: str | Path, *, sae: str | None = None, policy: str = "skip", dry_run: bool = False
    ) -> ImportReport:
        """Takes a pack in, however large; sent again after an interruption, it goes on."""
        kind = PARQUET if str(pack).endswith(".parquet") else NDJSON
        asked = {"sae": sae, "policy": policy, "dry_run": dry_run}
        return self._upload("/labels/import", ImportReport, pack, asked, kind)
