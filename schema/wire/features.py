"""A feature's dossier: where it fires, on what, what it does to the output, which features are near it, what it is said to mean."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from schema.wire.base import Provenance, Wire
from schema.wire.questions import SampleProof

NeighbourKind = Literal["cosine", "coactivation", "rivals"]
SampleChoice = Literal["top", "quantiles", "random"]


class Histogram(Wire):
    """Tokens by activation, in half-octaves, from the first bin that holds any to the last."""

    edges: list[float] = Field(description="One more than there are bins; each bin from its edge up to the next")
    counts: list[int]


class FeatureProfile(Wire):
    """How a feature fires in one dataset."""

    dataset: str
    version: int
    n_samples: int
    n_tokens: int = Field(description="Tokens that count")
    samples: int = Field(description="Samples that fire the feature under the pool")
    rate: float = Field(description="The same over all samples")
    rate_interval: tuple[float, float] = Field(description="95 %, Wilson's score")
    tokens: int = Field(description="Tokens that fire it")
    density: float | None = Field(description="The same over all tokens that count")
    mean: float | None = Field(description="Mean activation over the tokens that fire it")
    max: float
    histogram: Histogram


class FeatureSample(SampleProof):
    """A sample that fires the feature."""

    quantile: tuple[float, float] | None = Field(
        None, description="Of the samples that fire the feature, by activation, the part that it was drawn from"
    )


class LogitEffect(Wire):
    token: str
    id: int
    value: float = Field(description="Logits for an activation of 1 where the final norm divides by 1")


class LogitEffects(Wire):
    """Tokens that the feature's direction raises and lowers most, through final norm and unembedding."""

    positive: list[LogitEffect]
    negative: list[LogitEffect]


class FeatureLabel(Wire):
    """What the feature is said to mean."""

    id: str
    text: str
    author: str
    source: str
    explainer: str | None
    score: float | None
    score_method: str | None
    votes: int
    licence: str | None
    updated_at: datetime


class Together(Wire):
    """How often two features fire in the same samples."""

    both: int = Field(description="Samples that fire the other one, of those read that fire this one")
    n: int = Field(description="Samples read: all that fire this feature, or a random part of them")
    rate: float = Field(description="both / n")
    base_rate: float = Field(description="Share of all samples that fire the other one")
    lift: float = Field(description="rate / base_rate")
    phi: float = Field(description="Correlation of the two, -1 to 1; estimated where only a part was read")
    p_value: float = Field(description="Fisher's exact test, two-sided")
    q_value: float = Field(description="Benjamini-Hochberg over the features of its SAE that fire at all")


class Neighbour(Wire):
    feature: str
    sae: str
    index: int
    label: str | None
    cosine: float | None = Field(None, description="Of the two decoder directions")
    together: Together | None = None


class Neighbours(Wire):
    cosine: list[Neighbour] | None = Field(description="Nearest decoder directions; null where the home has none")
    coactivation: list[Neighbour] = Field(description="Most positive phi first")
    rivals: list[Neighbour] = Field(description="Most negative phi first")
    n_fired: int = Field(description="Samples that fire the feature")
    n_read: int = Field(description="Samples read for co-activation and rivals")
    n_tested: int = Field(description="Features that fire at all: the denominator of the q-values")
    seed: int


class DossierSamples(Wire):
    top: list[FeatureSample] = Field(description="Strongest first")
    quantiles: list[FeatureSample] = Field(
        description="Some from each fifth of the samples that fire it, strongest fifth first"
    )
    random: list[FeatureSample] = Field(description="Drawn from all samples that fire it")
    seed: int


class Dossier(Wire):
    """Everything that the home knows of a feature."""

    feature: str
    sae: str
    index: int
    layer: int
    label: str | None = Field(description="The best of `labels`")
    labels: list[FeatureLabel]
    description: str | None = Field(
        description="What can be said without a model, from tokens, datasets and logit effects; null where there are labels"
    )
    n_samples: int
    n_tokens: int
    samples: int = Field(description="Samples that fire the feature under the pool, over all datasets here")
    rate: float | None
    tokens: int
    density: float | None = Field(description="Share of the tokens that count on which it fires")
    mean: float | None = Field(description="Mean activation over the tokens that fire it")
    max: float
    histogram: Histogram
    profiles: list[FeatureProfile]
    left_out: list[str] = Field(description="Datasets that were indexed under another recipe only")
    firing_tokens: list[str] = Field(description="Tokens on which it fires in the top samples, most frequent first")
    shown: DossierSamples
    logits: LogitEffects | None = Field(description="Null where none were made ('scopebase index --logits yes')")
    norm: float | None = Field(description="Of the decoder direction; null where the home has none")
    neighbours: Neighbours
    provenance: Provenance


class ProfilesAnswer(Wire):
    feature: str
    data: list[FeatureProfile]
    left_out: list[str]
    provenance: Provenance


class FeatureSamplesAnswer(Wire):
    feature: str
    by: SampleChoice
    data: list[FeatureSample]
    next_cursor: str | None
    total: int = Field(description="Samples that fire the feature")
    seed: int
    provenance: Provenance


class NeighboursAnswer(Wire):
    feature: str
    by: NeighbourKind
    data: list[Neighbour] = Field(description="For each SAE asked for, its nearest first")
    n_fired: int | None = Field(description="Samples that fire the feature; null by cosine")
    n_read: int | None
    n_tested: dict[str, int] = Field(description="SAE -> features that fire at all: the denominator of its q-values")
    seed: int
    provenance: Provenance


class MatchPair(Wire):
    a: str
    b: str
    cosine: float
    mutual: bool = Field(description="Each is the other's nearest")
    label_a: str | None
    label_b: str | None


class MatchSide(Wire):
    """One SAE's features, each with the nearest direction of the other SAE."""

    sae: str
    sae_sha256: str
    d_sae: int
    n: int = Field(description="Features compared: all, or a random part")
    mean_max_cosine: float
    interval: tuple[float, float] = Field(
        description="95 % of the mean, normal; both ends equal where all were compared"
    )
    matched: int = Field(description="Features whose nearest has a cosine of at least the threshold")
    matched_share: float = Field(description="matched / n")
    mutual: int = Field(description="Features whose nearest has them as its nearest")
    mutual_share: float = Field(description="mutual / n")
    quantiles: list[float] = Field(description="Of the largest cosines: at 5, 25, 50, 75 and 95 %")
    null_mean_max_cosine: float = Field(
        description="The same mean for random directions instead of this SAE's: what chance alone gives"
    )
    null_quantile_99: float = Field(description="99 % of random directions have no nearer feature than this")
    null_matched_share: float


class MatchAnswer(Wire):
    """How much of one SAE another one has."""

    a: MatchSide
    b: MatchSide
    threshold: float
    data: list[MatchPair] = Field(description="Features of a with their nearest in b, as sorted")
    next_cursor: str | None
    total: int
    sort: Literal["cosine", "-cosine"]
    n_null: int = Field(description="Random directions drawn")
    seed: int
