"""Neuronpedia's shapes, with its own names: what its read routes answer and what a line of its v1 export holds.

Columns of theirs that the index has nothing for are there and empty, because their importer and their client read them all.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from schema.wire.base import Provenance, Wire

Floats = list[float]
Names = list[str]


class NpUser(Wire):
    id: str
    name: str


class NpActivation(Wire):
    """One example: a window of a sample's tokens and the feature's activation at each."""

    id: str = Field(description="Derived from what it shows, so that it is the same in every answer and export")
    tokens: Names
    values: Floats = Field(description="The stored float16 activations; 0 where the feature does not fire")
    dataIndex: str | None = Field(description="Id of the sample")
    dataSource: str | None = Field(description="Dataset of the sample")
    modelId: str
    layer: str = Field(description="The same as `source`, by its older name")
    source: str
    index: str
    maxValue: float
    maxValueTokenIndex: int
    minValue: float
    binMin: float | None = Field(description="Least activation of the interval; -1 for the strongest examples of all")
    binMax: float | None
    binContains: float | None = Field(
        description="Share of the firing samples whose maximum lies in the interval, or that the strongest examples are"
    )
    qualifyingTokenIndex: int | None = None
    dfaValues: Floats = Field(default_factory=list)
    dfaTargetIndex: int | None = None
    dfaMaxValue: float | None = None
    lossValues: Floats = Field(default_factory=list)
    logitContributions: str | None = None
    creatorId: str
    createdAt: datetime


class NpScore(Wire):
    id: str
    value: float
    explanationScoreTypeName: str | None
    explanationScoreModelName: str | None = None


class NpExplanation(Wire):
    """A label."""

    id: str
    modelId: str
    layer: str
    source: str
    index: str
    description: str
    authorId: str
    authorName: str
    typeName: str | None
    explanationModelName: str | None
    triggeredByUser: NpUser | None
    triggeredById: str | None = Field(description="The person who wrote it; null for a model's")
    scores: list[NpScore]
    notes: str | None = None
    createdAt: datetime


class NpFeatureColumns(Wire):
    """What their table of features holds of one: a line of `features/batch-N.jsonl.gz`."""

    modelId: str
    layer: str = Field(description="The source: `<layer>-<set>`")
    index: str
    sourceSetName: str
    creatorId: str
    createdAt: datetime
    maxActApprox: float = Field(description="The largest activation in the index, exactly")
    frac_nonzero: float = Field(description="Share of the tokens that count on which it fires")
    hasVector: bool = False
    vector: Floats = Field(default_factory=list)
    vectorLabel: str | None = None
    vectorDefaultSteerStrength: float | None = None
    hookName: str
    topkCosSimIndices: list[int] = Field(default_factory=list)
    topkCosSimValues: Floats = Field(default_factory=list)
    neuron_alignment_indices: list[int] = Field(default_factory=list)
    neuron_alignment_values: Floats = Field(default_factory=list)
    neuron_alignment_l1: Floats = Field(default_factory=list)
    correlated_neurons_indices: list[int] = Field(default_factory=list)
    correlated_neurons_pearson: Floats = Field(default_factory=list)
    correlated_neurons_l1: Floats = Field(default_factory=list)
    correlated_features_indices: list[int] = Field(default_factory=list)
    correlated_features_pearson: Floats = Field(default_factory=list)
    correlated_features_l1: Floats = Field(default_factory=list)
    neg_str: Names
    neg_values: Floats
    pos_str: Names
    pos_values: Floats
    freq_hist_data_bar_heights: list[int] = Field(description="Tokens in each bar")
    freq_hist_data_bar_values: Floats = Field(description="The middle of each bar; bars are half-octaves of activation")
    logits_hist_data_bar_heights: Floats = Field(default_factory=list)
    logits_hist_data_bar_values: Floats = Field(default_factory=list)
    decoder_weights_dist: Floats = Field(default_factory=list)


class NpModel(Wire):
    id: str
    displayName: str
    displayNameShort: str
    layers: int
    neuronsPerLayer: int = 0
    dimension: int
    instruct: bool
    tlensId: str | None
    owner: str
    visibility: str = "PUBLIC"
    defaultSourceSetName: str | None
    defaultSourceId: str | None
    creatorId: str
    createdAt: datetime
    updatedAt: datetime
    thinking: bool = False
    inferenceEnabled: bool = False
    website: str | None


class NpSource(Wire):
    """One SAE."""

    id: str
    modelId: str
    setName: str
    creatorId: str
    hasDashboards: bool
    inferenceEnabled: bool
    saelensConfig: dict[str, int | str | None]
    saelensRelease: str | None
    saelensSaeId: str | None
    hfRepoId: str | None
    hfFolderId: str | None
    visibility: str = "PUBLIC"
    dataset: str | None
    num_prompts: int | None
    num_tokens_in_prompt: int | None
    notes: str | None
    hasUmap: bool = False
    hasUmapLogSparsity: bool = False
    hasUmapClusters: bool = False
    cosSimMatchSourceId: str | None = None
    cosSimMatchModelId: str | None = None
    createdAt: datetime


class NpSourceSet(Wire):
    """The SAEs of one model that were trained alike."""

    modelId: str
    name: str
    description: str
    type: str
    creatorId: str
    creatorName: str
    urls: Names
    releaseName: str
    visibility: str = "PUBLIC"
    hasDashboards: bool
    defaultOfModelId: str | None = None
    defaultRange: int = 1
    defaultShowBreaks: bool = True
    showDfa: bool = False
    showCorrelated: bool = False
    showHeadAttribution: bool = False
    showUmap: bool = False
    createdAt: datetime


class NpSourceSetAnswer(NpSourceSet):
    sources: list[NpSource]


class NpModelAnswer(NpModel):
    sourceSets: list[NpSourceSetAnswer]


class NpRelease(Wire):
    name: str
    description: str
    descriptionShort: str
    creatorId: str
    creatorName: str
    creatorNameShort: str
    urls: Names
    visibility: str = "PUBLIC"
    isNewUi: bool = True
    featured: bool = False
    defaultSourceSetName: str | None
    defaultSourceId: str | None
    createdAt: datetime


class NpName(Wire):
    """A kind of explanation, explainer or score."""

    name: str
    displayName: str
    description: str = ""


class NpGlobal(Wire):
    models: dict[str, NpModelAnswer]
    releases: list[NpRelease]
    explanationTypes: list[NpName]
    explanationModels: list[NpName]
    explanationScoreTypes: list[NpName]
    explanationScoreModelTypes: list[NpName]


class NpFeature(NpFeatureColumns):
    """One feature with everything that is known of it."""

    model: NpModel
    source: NpSource
    sourceSet: NpSourceSet
    creator: dict[str, str]
    lists: list[str] = Field(default_factory=list)
    comments: list[dict[str, str]] = Field(default_factory=list)
    activations: list[NpActivation] = Field(description="The largest `maxValue` first")
    explanations: list[NpExplanation]
    scopebase: Provenance | None = Field(description="What the counts and examples were made from")


class NpFound(Wire):
    """One explanation that a search found."""

    modelId: str
    layer: str
    source: str
    index: str
    description: str
    explanationModelName: str | None
    typeName: str | None
    cosine_similarity: float | None = Field(description="Null where the search went by words, not by meaning")
    neuron: dict[str, str | float]


class NpFoundPage(Wire):
    request: dict[str, str | int | list[str] | None]
    results: list[NpFound]
    resultsCount: int
    hasMore: bool
    nextOffset: int | None


class NpExported(Wire):
    """One line of their bulk export of explanations."""

    modelId: str
    layer: str
    index: str
    description: str
    explanationModelName: str | None
    typeName: str | None


class NpError(Wire):
    """An error as their clients read it."""

    error: str
    message: str


class NpVector(Wire):
    """A direction in the residual stream: a feature's decoder column, or a vector that was saved."""

    modelId: str
    layer: str = Field(description="The same as `source`, by its older name")
    source: str = Field(description="The source of a feature; `<layer>-vectors` for a saved vector")
    index: str = Field(description="The feature, or the name of a saved vector")
    vectorLabel: str | None
    hookName: str
    vector: Floats
    vectorDefaultSteerStrength: float | None = None


class NpVectorAnswer(Wire):
    vector: NpVector


class NpVectorList(Wire):
    vectors: list[NpVector] = Field(description="Newest versions, one entry a layer, at most 1,000")


class NpNearId(Wire):
    model: str
    source: str
    index: int


class NpNear(Wire):
    feature: NpNearId
    cosine_similarity: float


class NpCosSim(Wire):
    """As their inference server answers, whose answer their web page's route hands on."""

    feature: NpNearId
    topk_decoder_cossim_features: list[NpNear] = Field(description="The ten nearest directions, nearest first")
