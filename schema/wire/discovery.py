"""Discovering rules: requests and answers (paper, section 5)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, ConfigDict, Field

from schema.wire.base import Pool, Provenance, Wire
from schema.wire.expressions import Expression

LabelValue = bool | int | float | str
Baseline = Literal["logistic", "difference_of_means"]
MOST_SAES = 100


def _distinct(values: list[int]) -> list[int]:
    if len(set(values)) < len(values):
        raise ValueError("each number once")
    return sorted(values)


Numbers = Annotated[
    list[Annotated[int, Field(ge=1, le=100)]], Field(min_length=1, max_length=20), AfterValidator(_distinct)
]
Shares = Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1, max_length=20)]


class Estimate(Wire):
    """A measure and its 95 % bootstrap interval; null where it is a share of nothing."""

    value: float | None
    interval: tuple[float, float] | None


class Metrics(Wire):
    """How predictions agree with labels; precision, recall and F1 are those of the positive class."""

    n: int
    n_positive: int
    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int
    f1: Estimate
    precision: Estimate
    recall: Estimate
    accuracy: Estimate


class EfficiencyBody(Wire):
    """A data-efficiency curve: the same discovery with less data."""

    shares: Shares = Field(default_factory=lambda: [1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01])
    n_seeds: int = Field(5, ge=1, le=20, description="Draws for each share")


class TaskBody(Wire):
    """What discovery and transfer share."""

    saes: list[str] = Field(min_length=1, max_length=MOST_SAES, description="One or more layers of one model")
    label_field: str = Field("label", max_length=256, description="The field of the samples that holds the class")
    positive: LabelValue = Field(1, description="Its value in the positive class; every other value is negative")
    where: dict[str, Any] = Field(default_factory=dict, description='A slice of the dataset, `{"language": "en"}`')
    pool: Pool = "any"
    k: Numbers = Field(default_factory=lambda: [1, 2, 5, 10], description="How many features of a layer")
    discovery_share: float = Field(0.8, gt=0, lt=1, description="The rest is held out")
    seed: int = Field(0, ge=0, le=2**31, description="Of the split and the bootstrap")
    as_of: int | None = Field(None, ge=1, le=1 << 31)


class DiscoverBody(TaskBody):
    """Which features tell two classes apart."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "saes": ["m/3-tiny", "m/4-tiny"],
                    "dataset": "toxicity_en",
                    "label_field": "label",
                    "positive": 1,
                    "k": [1, 2, 5, 10],
                    "discovery_share": 0.8,
                    "seed": 0,
                }
            ]
        }
    )
    dataset: str = Field(max_length=80)
    m: Numbers = Field(default_factory=lambda: [1, 2, 3, 5], description="How many layers, one feature each")
    baselines: list[Baseline] = Field(
        default_factory=lambda: [*get_args(Baseline)],
        description="Trained heads in the same table; they need the extra `probe`",
    )
    probe_all: bool = Field(False, description="Also train the baselines on all features of each layer")
    efficiency: EfficiencyBody | None = None


class DiscoveredFeature(Wire):
    """A feature that fires more often in the positive class of the discovery part."""

    feature: str
    index: int
    label: str | None
    counts: dict[str, int] = Field(description="`positive`, `negative`: discovery samples that fire it")
    rates: dict[str, float] = Field(description="The same over all discovery samples of the class")
    difference: float = Field(description="Delta: rate in the positive class less rate in the negative one")
    interval: tuple[float, float] = Field(
        description="95 %, Newcombe's hybrid score; not corrected for having been chosen"
    )
    p_value: float = Field(description="Fisher's exact test, two-sided")
    q_value: float = Field(description="Benjamini-Hochberg over the layer's `n_tested` features")
    held_out_difference: float = Field(description="The same difference where nothing was chosen")


class BaselineResult(Wire):
    name: Baseline
    over: Literal["chosen", "all"] = Field(description="The rule's k features, or all of the layer")
    n_features: int
    metrics: Metrics


class Candidate(Wire):
    """An OR rule over features, chosen on the discovery part and measured on the held-out part."""

    saes: list[str]
    k: int | None = Field(description="Features of the one layer")
    m: int | None = Field(description="Layers, with one feature each")
    features: list[str]
    expression: Expression
    discovery_f1: float = Field(description="On the part that it was chosen on")
    metrics: Metrics = Field(description="On the held-out part")
    baselines: list[BaselineResult]


class LayerDiscovery(Wire):
    """One SAE: its best features and the rules made of the first k of them."""

    sae: str
    sae_sha256: str
    layer: int
    top1_difference: float = Field(description="d_l: the largest difference of firing rates")
    n_tested: int = Field(description="Features that fire in the discovery part")
    features: list[DiscoveredFeature]
    rules: list[Candidate]
    all_features: list[BaselineResult] = Field(description="With `probe_all`: baselines over the whole layer")


class LengthControl(Wire):
    """What the number of tokens alone tells: longer texts fire more features."""

    mean_tokens: dict[str, float] = Field(description="`positive`, `negative`: of the discovery part")
    rule: str = Field(description="The best rule on the discovery part, such as `tokens > 31`")
    metrics: Metrics


class Split(Wire):
    """How the labelled samples were parted, class by class, by the SHA-256 of the seed and each sample's id."""

    discovery: dict[str, int] = Field(description="`positive`, `negative`: samples")
    held_out: dict[str, int]
    n_unlabelled: int = Field(description="Samples left out because they have no label")
    share: float
    seed: int


class EfficiencyPoint(Wire):
    """Discovery with a share of the discovery part, over several draws."""

    share: float
    n: dict[str, int] = Field(description="`positive`, `negative`: samples used")
    f1: float = Field(
        description="Held-out F1, mean of the draws; layer by top1-diff and k by F1, both on the data used"
    )
    f1_range: tuple[float, float]
    relative: float | None = Field(description="f1 over that with all the discovery data")
    f1_oracle: float = Field(
        description="Mean of the best F1 over layers and k, chosen on the held-out part: an oracle"
    )


class Oracle(Wire):
    """The best rule when one may look at the held-out part: no result, a bound."""

    oracle: Literal[True] = True
    sae: str
    k: int
    f1: float


class RuleProvenance(Provenance):
    """Of an answer over several SAEs; `sae` is the one that speaks for them."""

    saes: dict[str, str] = Field(description="SAE -> SHA-256 of its tensors")


class DiscoverAnswer(Wire):
    """Rules for each layer and k, the layer that the discovery data chooses, and what else reaches the same."""

    dataset: str
    label_field: str
    positive: LabelValue
    split: Split
    layers: list[LayerDiscovery]
    top1_diff: str = Field(description="l*: the SAE with the largest difference on the discovery part")
    chosen: Candidate = Field(description="Of that SAE, the k with the best F1 on the discovery part")
    multi_layer: list[Candidate]
    trivial: Metrics = Field(description="Of calling every sample positive")
    length: LengthControl
    oracle: Oracle
    efficiency: list[EfficiencyPoint]
    n_bootstrap: int
    provenance: RuleProvenance


class TransferBody(TaskBody):
    """Discover on each of several datasets, or on each value of a field, and measure on all of them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"saes": ["m/3-tiny"], "datasets": ["toxicity_en", "toxicity_de"], "positive": 1}]
        }
    )
    datasets: list[str] = Field(min_length=1, max_length=50)
    group_by: str | None = Field(
        None, max_length=256, description="With one dataset: the field whose values are compared"
    )


class TransferSource(Wire):
    """What was discovered on one of them."""

    name: str
    split: Split
    chosen: Candidate | None = Field(description="Null where no feature fires more often in the positive class")
    macro_f1: float | None = Field(description="Mean F1 on the others")
    macro_trivial_f1: float | None = Field(description="The same of calling every sample positive")


class TransferAnswer(Wire):
    """`f1[i][j]`: discovered on i, measured on the held-out part of j."""

    names: list[str]
    discovered: list[TransferSource]
    f1: list[list[Estimate | None]]
    accuracy: list[list[Estimate | None]]
    trivial_f1: list[float]
    trivial_accuracy: list[float]
    oracle_f1: list[list[float | None]] = Field(
        description="The best F1 over layers and k, chosen on the held-out part of j: an oracle"
    )
    top_shared: dict[str, list[list[float | None]]] = Field(
        description="SAE -> Jaccard index of the two lists of the `top_n` features with the largest difference"
    )
    top_n: int
    n_bootstrap: int
    provenance: RuleProvenance
