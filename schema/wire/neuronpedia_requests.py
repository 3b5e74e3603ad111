"""Neuronpedia's bodies: what its clients send to the routes under `/api`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

IGNORE_BOS = (
    "True leaves the first token out; false shows what masked tokens fire, too; unless given, masked tokens do not fire"
)


class NpRequest(BaseModel):
    """Bodies: fields that they know and we do not are passed over, for their clients send more than is read."""

    model_config = ConfigDict(extra="ignore", frozen=True, coerce_numbers_to_str=True)


class NpFeatureId(NpRequest):
    modelId: str = Field(max_length=256, description="Id of the model, or its name on the hub")
    layer: str | None = Field(None, max_length=256, description="The source, by its older name")
    source: str | None = Field(None, max_length=256, description="`<layer>-<set>`, or another name of the SAE")
    index: str = Field(max_length=20, description="The feature, as text or number")
    maxActsToReturn: int | None = Field(None, ge=0, le=1000, description="Examples of each feature")


class NpOffset(NpRequest):
    modelId: str = Field(max_length=256, description="Id of the model, or its name on the hub")
    layer: str | None = Field(None, max_length=256, description="The source, by its older name")
    source: str | None = Field(None, max_length=256, description="`<layer>-<set>`, or another name of the SAE")
    offset: int = Field(ge=0, le=1 << 31, description="Where the page begins")


class NpSearch(NpRequest):
    query: str = Field(min_length=3, max_length=1000, description="What the labels should say")
    modelId: str | None = Field(None, max_length=256, description="Id of the model, or its name on the hub")
    layers: list[str] | None = Field(None, max_length=1000, description="The sources searched")
    releaseName: str | None = Field(None, max_length=1000, description="The release searched")
    offset: int = Field(0, ge=0, le=1_000_000, description="Where the page begins")


Text = str | list[str]


class NpActivationNew(NpRequest):
    feature: NpFeatureId = Field(description="The feature")
    customText: Text = Field(description="A text, or up to four")
    ignoreBos: bool | None = Field(
        None,
        description="True leaves the first token out; false shows what masked tokens fire, too; unless given, masked tokens do not fire",
    )


class NpActivationSource(NpRequest):
    modelId: str = Field(max_length=256, description="Id of the model, or its name on the hub")
    source: str = Field(max_length=256, description="`<layer>-<set>`, or another name of the SAE")
    customText: Text = Field(description="A text, or up to four")


class NpSearchAll(NpRequest):
    modelId: str = Field(max_length=256, description="Id of the model, or its name on the hub")
    sourceSet: str = Field(max_length=256, description="Name of the source set")
    text: Text = Field(description="A text, or up to four")
    selectedLayers: list[str] = Field(
        default_factory=list, max_length=200, description="Sources of the set; all unless given"
    )
    sortIndexes: list[int] = Field(
        default_factory=list,
        max_length=200,
        description="Tokens that rank the features, by the sum of their activations",
    )
    ignoreBos: bool | None = Field(
        None,
        description="True leaves the first token out; false shows what masked tokens fire, too; unless given, masked tokens do not fire",
    )
    densityThreshold: float = Field(-1, ge=-1, lt=1, description="Features denser than this are left out; -1 for none")
    numResults: int = Field(50, ge=1, le=100, description="Features at most")


class NpTopK(NpRequest):
    modelId: str = Field(max_length=256, description="Id of the model, or its name on the hub")
    source: str = Field(max_length=256, description="`<layer>-<set>`, or another name of the SAE")
    text: Text = Field(description="A text, or up to four")
    numResults: int = Field(10, ge=1, le=20, description="Features at most")
    ignoreBos: bool | None = Field(
        None,
        description="True leaves the first token out; false shows what masked tokens fire, too; unless given, masked tokens do not fire",
    )
    densityThreshold: float = Field(
        0.01, ge=-1, lt=1, description="Features denser than this are left out; -1 for none"
    )


class NpCosSimAsked(NpRequest):
    modelId: str = Field(max_length=256, description="Id of the model, or its name on the hub")
    source: str = Field(max_length=256, description="`<layer>-<set>`, or another name of the SAE")
    index: str = Field(max_length=20, description="The feature, as text or number")
    targetModelId: str = Field(max_length=256, description="Model of the source that is looked in")
    targetSourceId: str = Field(max_length=256, description="The source that is looked in")
