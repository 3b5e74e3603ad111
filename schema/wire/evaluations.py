"""Scores of evaluated models on the samples of a dataset, and what they say about it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from schema.wire.base import Provenance, Wire

Match = Literal["auto", "id", "text", "order"]
MOST_ROWS = 1_000_000


class EvaluationItem(Wire):
    """One evaluated model's scores on one dataset under one metric."""

    id: int
    dataset: str = Field(description="`<name>@<version>`")
    evaluated: str
    metric: str
    n_scores: int
    n_samples: int = Field(description="Samples of the dataset")
    mean: float
    format: str
    source: str
    sha256: str = Field(description="Over the scores by sample")
    created_at: datetime


class EvaluationRequest(Wire):
    """Scores as rows: `{"id", "score"}`, or the lines of an lm-eval samples file."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "dataset": "gsm8k",
                    "evaluated": "qwen3-8b",
                    "metric": "exact_match",
                    "rows": [{"id": "gsm8k/1", "score": 1}, {"id": "gsm8k/2", "score": 0}],
                }
            ]
        }
    )
    dataset: str = Field(max_length=80)
    evaluated: str = Field(min_length=1, max_length=200, description="The model that was evaluated")
    metric: str = Field(min_length=1, max_length=120, description="lm-eval's `metric` or `metric,filter`")
    match: Match = Field("auto", description="What joins rows and samples")
    source: str = Field("api", max_length=400, description="Where the rows come from")
    rows: list[dict[str, Any]] = Field(min_length=1, max_length=MOST_ROWS)


class EvaluationReport(Wire):
    """What an import did."""

    evaluation: EvaluationItem
    state: Literal["added", "unchanged", "replaced"]
    matched_by: Literal["id", "text", "order"]
    n_rows: int
    n_matched: int
    n_unmatched: int = Field(description="Rows that no sample of the dataset answers to; left out")
    unmatched: list[str] = Field(description="The first few of them")
    n_missing: int = Field(description="Samples of the dataset without a score")


class Estimate(Wire):
    """A number with what it rests on."""

    value: float | None = Field(description="Null where it is not defined, such as for equal values")
    low: float | None = Field(default=None, description="95 % interval; null where there are too few values for one")
    high: float | None = None
    n: int = Field(description="What it was computed over")
    p_value: float | None = Field(default=None, description="Two-sided, of no correlation")


class ModelMean(Wire):
    """One evaluated model of a panel."""

    evaluated: str
    evaluation: int
    mean: float = Field(description="Over the samples that all models of the panel have scores of")
    subset_mean: float | None = Field(None, description="Over the subset")


class RandomTau(Wire):
    """Kendall's tau of random subsets of the same size."""

    draws: int
    seed: int
    mean: float
    quantiles: tuple[float, float, float] = Field(description="2.5 %, median, 97.5 %")
    share_below: float = Field(description="Share of the random subsets whose tau is lower; ties count half")


class TauPoint(Wire):
    """The order that n random samples keep."""

    n: int
    tau: float = Field(description="Mean over the draws")
    low: float = Field(description="2.5 % of the draws")
    high: float = Field(description="97.5 % of the draws")


class PreservationRequest(Wire):
    """A dataset, a metric, and a subset: its samples, a share of the footprint, or a number."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"dataset": "gsm8k", "metric": "acc", "coverage": 0.95, "pool": "last"}]}
    )
    dataset: str = Field(max_length=80)
    metric: str | None = Field(None, max_length=120, description="May be left out where there is one")
    samples: list[Annotated[str, Field(max_length=1000)]] | None = Field(
        None, min_length=1, max_length=MOST_ROWS, description="Ids of the subset"
    )
    coverage: float | None = Field(None, gt=0, le=1, description="The subset that `/v1/subset` finds")
    n: int | None = Field(None, ge=1, le=1 << 40, description="The best so many samples that `/v1/subset` finds")
    sae: str | None = Field(None, max_length=256)
    pool: Literal["any", "last"] = "any"
    weights: Literal["uniform", "inverse_frequency", "activation"] = "uniform"
    draws: int = Field(200, ge=20, le=2000)
    seed: int = Field(0, ge=0, le=1 << 31)


class PreservationAnswer(Wire):
    """How well subsets keep the order of a panel of models."""

    dataset: str
    metric: str
    models: list[ModelMean] = Field(description="Best first")
    n_samples: int = Field(description="Samples that all models have scores of")
    n_left_out: int = Field(description="Samples of the dataset that some model has no score of")
    subset_n: int | None = Field(description="Size of the subset, of the samples above; null where none was asked for")
    subset: str | None = Field(description="How the subset was chosen")
    tau: Estimate | None = Field(
        description="Kendall's tau-b between the means on all samples and on the subset; percentile bootstrap over the models"
    )
    pairs_kept: float | None = Field(description="(tau + 1) / 2: share of the pairs of models in the same order")
    random: RandomTau | None
    curve: list[TauPoint]
    redundancy: float = Field(description="R(D): mean of tau_n over n = 1..N, tau_n linear between the curve's points")
    redundancy_error: float = Field(description="Standard error of R over the draws")
    draws: int
    seed: int
    evaluations: list[int] = Field(description="Ids of the evaluations read")
    provenance: Provenance | None = Field(None, description="Of the subset, where a footprint chose it")


class PerformanceItem(Wire):
    """One dataset: how early a sample of it ranks the models, beside how early it covers its footprint."""

    dataset: str
    n_samples: int
    n_models: int
    n_features: int
    performance_redundancy: float = Field(description="R(D)")
    performance_error: float = Field(description="Standard error over the draws")
    feature_redundancy: float | None
    baseline_n: int
    baseline_n_over_f: float | None


class PerformanceAnswer(Wire):
    """Does the feature redundancy of datasets tell their performance redundancy, and more than their size does?"""

    data: list[PerformanceItem]
    correlations: dict[str, Estimate] = Field(
        description="Of R over the datasets with: `spearman`, `pearson_log` the feature redundancy (its logarithm); "
        "`spearman_n`, `spearman_n_over_f` the baselines; `partial_spearman`, `partial_pearson` the feature redundancy given log N"
    )
    interval: str
    metric: str
    draws: int
    seed: int
    provenance: Provenance


class PairItem(Wire):
    """Two datasets: shared features beside shared ranking."""

    datasets: tuple[str, str]
    overlap_min: float | None
    similarity: Estimate = Field(description="Pearson correlation of the models' means; Fisher's z")
    partial: Estimate | None = Field(description="The same given the means on the control dataset; Fisher's z")


class SimilarityAnswer(Wire):
    """Do datasets that share features rank models alike?"""

    data: list[PairItem]
    correlations: dict[str, Estimate] = Field(
        description="Over the pairs, of overlap_min with the similarity (`pearson`, `spearman`) and with the partial one "
        "(`partial_pearson`, `partial_spearman`); p_value: Mantel's permutation of the datasets"
    )
    interval: str
    models: list[str]
    control: str | None
    metric: str
    seed: int
    resamples: int
    provenance: Provenance


class FailureItem(Wire):
    """A feature, and how a model does on the samples that fire it and on the others."""

    feature: str
    index: int
    label: str | None
    n_firing: int = Field(description="Scored samples that fire it")
    n_silent: int
    mean_firing: float = Field(description="Mean score over those that fire it")
    mean_silent: float
    difference: float = Field(description="mean_firing - mean_silent")
    interval: tuple[float, float] = Field(
        description="95 % of the difference: Newcombe's for scores of 0 and 1, else Welch's"
    )
    p_value: float = Field(description="Two-sided: Fisher's exact test for scores of 0 and 1, else Mann-Whitney")
    q_value: float = Field(description="Benjamini-Hochberg over the `n_tested` features")
    samples: list[str] = Field(description="Ids of the lowest-scored samples that fire it, the strongest first")


class FailuresAnswer(Wire):
    """Where a model fails: features whose samples it scores differently."""

    data: list[FailureItem]
    next_cursor: str | None
    total: int = Field(description="Features in the direction asked for")
    n_tested: int
    n_scored: int = Field(description="Samples with a score")
    min_support: int
    mean: float
    test: Literal["fisher", "mann-whitney"]
    evaluated: str
    metric: str
    evaluation: int
    direction: Literal["lower", "higher", "both"]
    sort: Literal["q_value", "difference"]
    provenance: Provenance
