"""Questions over datasets: their footprints, what sets them apart, what they lack. `**more` are further parameters of the route."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from schema.wire.gaps import CoverageGapAnswer
from schema.wire.query import FeatureQueryAnswer
from schema.wire.questions import DiffAnswer, OverlapAnswer, RedundancyAnswer
from schema.wire.suite import SubsetAnswer, SuiteAnswer
from schema.words import Pool, Sort
from scopebase.client.asking import Asking

Target = Mapping[str, Any]
Part = str | Mapping[str, Any]
"""A dataset's name, or a slice such as `{"dataset": "mmlu", "where": {"subject": "anatomy"}}`."""
Where = Mapping[str, Any]
"""A condition on the samples' fields, such as `{"subject": "anatomy"}`."""


class Questions(Asking):
    def overlap(
        self, *datasets: str, sae: str | None = None, pool: Pool = "any", min_samples: int = 1, as_of: int | None = None
    ) -> OverlapAnswer:
        """How much of each dataset's footprint each other one covers, all pairs at once."""
        asked = {"dataset": datasets, "sae": sae, "pool": pool, "min_samples": min_samples, "as_of": as_of}
        return self._get("/overlap", OverlapAnswer, asked)

    def diff(
        self,
        covered_by: str,
        not_covered_by: str,
        *,
        sae: str | None = None,
        pool: Pool = "any",
        min_samples: int = 1,
        sort: Sort = "rate_difference",
        samples: int = 2,
        limit: int = 50,
        cursor: str | None = None,
        as_of: int | None = None,
    ) -> DiffAnswer:
        """Features that one dataset covers and another does not, ranked: one page; `each` has them all."""
        asked = {"covered_by": covered_by, "not_covered_by": not_covered_by, "sae": sae, "pool": pool, "sort": sort}
        page = {"min_samples": min_samples, "samples": samples, "limit": limit, "cursor": cursor, "as_of": as_of}
        return self._get("/diff", DiffAnswer, {**asked, **page})

    def redundancy(
        self,
        *datasets: str,
        sae: str | None = None,
        pool: Pool = "any",
        where: Where | None = None,
        where_not: Where | None = None,
        as_of: int | None = None,
    ) -> RedundancyAnswer:
        """Feature redundancy of each dataset, or of the same slice of each, beside the baselines it must beat."""
        asked = {"dataset": datasets, "sae": sae, "pool": pool, "as_of": as_of}
        asked |= {"where": _json(where), "where_not": _json(where_not)}
        return self._get("/redundancy", RedundancyAnswer, asked)

    def query(
        self,
        where: Mapping[str, Any] | None = None,
        *,
        sae: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
        **more: Any,
    ) -> FeatureQueryAnswer:
        """Features by any and/or/not of conditions, such as `{"dataset": "gsm8k", "min_rate": 0.05}`: one page.

        `include=["samples"]` adds what proves each feature.
        """
        asked = {"where": where, "sae": sae, "limit": limit, "cursor": cursor, **more}
        return self._post("/features/query", FeatureQueryAnswer, asked)

    def coverage_gap(
        self,
        datasets: Sequence[Part],
        target: Target,
        *,
        sae: str | None = None,
        cursor: str | None = None,
        **more: Any,
    ) -> CoverageGapAnswer:
        """What datasets lack of a target, such as `{"dataset": "safety"}` or `{"rule": "toxic_en"}`: one page."""
        asked = {"datasets": list(datasets), "target": target, "sae": sae, "cursor": cursor, **more}
        return self._post("/coverage-gaps", CoverageGapAnswer, asked)

    def save_coverage_gap(
        self,
        to: str | Path,
        datasets: Sequence[Part],
        target: Target,
        *,
        format: Literal["ndjson", "parquet"] = "parquet",
        **more: Any,
    ) -> Path:
        """The whole gap, as a file."""
        asked = {"datasets": list(datasets), "target": target, **more}
        return self._save("POST", "/coverage-gaps", to, params={"format": format}, json=asked)

    def subset(
        self,
        dataset: str,
        *,
        sae: str | None = None,
        coverage: float | None = None,
        n: int | None = None,
        where: Where | None = None,
        where_not: Where | None = None,
        **more: Any,
    ) -> SubsetAnswer:
        """The smallest subset found that keeps a share of the footprint of a dataset or slice, or the best of n samples."""
        asked = {"dataset": dataset, "sae": sae, "coverage": coverage, "n": n, **more}
        asked |= {"where": _json(where), "where_not": _json(where_not)}
        return self._get("/subset", SubsetAnswer, asked)

    def suite(self, *datasets: Part, sae: str | None = None, **more: Any) -> SuiteAnswer:
        """Which datasets or slices of a suite the others cover, and in what order to drop them."""
        return self._post("/suite", SuiteAnswer, {"datasets": list(datasets), "sae": sae, **more})


def _json(where: Where | None) -> str | None:
    return None if where is None else json.dumps(where)
