"""Single features, and what texts and samples fire. `**more` are further parameters of the route."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from schema.wire.contrast import ContrastAnswer
from schema.wire.features import Dossier, FeatureSamplesAnswer, MatchAnswer, NeighboursAnswer, ProfilesAnswer
from schema.wire.reading import InspectAnswer, SampleAnswer
from scopebase.client.asking import Asking


class Features(Asking):
    def feature(self, feature: str, **more: Any) -> Dossier:
        """A feature's dossier, by its id `<sae>/<index>`."""
        return self._get("/features/{feature}", Dossier, more, feature=feature)

    def profiles(self, feature: str, **more: Any) -> ProfilesAnswer:
        """How a feature fires in each dataset."""
        return self._get("/features/{feature}/profiles", ProfilesAnswer, more, feature=feature)

    def samples(
        self, feature: str, *, by: str = "top", limit: int = 50, cursor: str | None = None, **more: Any
    ) -> FeatureSamplesAnswer:
        """Samples that fire a feature: one page; `by` is `top`, `quantiles` or `random`."""
        asked = {"by": by, "limit": limit, "cursor": cursor, **more}
        return self._get("/features/{feature}/samples", FeatureSamplesAnswer, asked, feature=feature)

    def neighbours(self, feature: str, **more: Any) -> NeighboursAnswer:
        """Features near a feature, by direction or by firing together."""
        return self._get("/features/{feature}/neighbours", NeighboursAnswer, more, feature=feature)

    def match(self, a: str, b: str, *, limit: int = 50, cursor: str | None = None, **more: Any) -> MatchAnswer:
        """How much of one SAE another one has: one page of pairs."""
        return self._get("/match", MatchAnswer, {"a": a, "b": b, "limit": limit, "cursor": cursor, **more})

    def sample(self, dataset: str, sample: str, **more: Any) -> SampleAnswer:
        """A stored sample's features, token by token."""
        return self._get("/samples/{dataset}/{sample}", SampleAnswer, more, dataset=dataset, sample=sample)

    def inspect(
        self, text: str | None = None, *, token_ids: Sequence[int] | None = None, saes: Sequence[str] = (), **more: Any
    ) -> InspectAnswer:
        """Which features a text fires, or token ids; the service needs a model."""
        asked = {"text": text, "token_ids": token_ids, "saes": list(saes) or None, **more}
        return self._post("/inspect", InspectAnswer, asked)

    def contrast(
        self, positive: Sequence[str], negative: Sequence[str], *, sae: str | None = None, **more: Any
    ) -> ContrastAnswer:
        """Features that set positive texts or samples apart from negative ones."""
        asked = {"positive": list(positive), "negative": list(negative), "sae": sae, **more}
        return self._post("/features/contrast", ContrastAnswer, asked)
