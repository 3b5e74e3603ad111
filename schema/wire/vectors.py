"""Steering vectors: a feature's direction with its usual strengths, and directions saved under a name."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from schema.wire.base import BasedOn, Provenance, Wire
from schema.wire.features import Histogram, Neighbour
from schema.wire.reading import Mask
from schema.wire.steering import Unit

VectorFormat = Literal["json", "safetensors", "gguf", "easysteer", "neuronpedia", "lm-eval"]
VectorMade = Literal["components", "decoded_means", "residual_means", "import"]
Normalise = Literal["none", "components", "result"]
TokensRead = Literal["all", "last"]
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
MOST_COMPONENTS = 256
MOST_LAYERS = 512
MOST_TEXTS = 1_000

VectorName = Annotated[str, StringConstraints(pattern=NAME)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=20_000)]
Layer = Annotated[int, Field(ge=0, le=100_000)]
Weight = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]


class TypicalActivation(Wire):
    """How large a feature's activations are where it fires, over the datasets of the answer."""

    n_fired: int = Field(description="Tokens that fire it: the denominator of the mean and the quantiles")
    n_tokens: int = Field(description="Tokens that count")
    density: float | None = Field(description="n_fired / n_tokens")
    mean: float | None = Field(description="Mean of its positive activations; null where it never fires")
    max: float
    quantiles: dict[str, float] = Field(
        description="Of its positive activations, by share of the tokens that fire it; read from half-octave bins, at most a "
        "factor 1.42 off"
    )
    histogram: Histogram


class Suggestion(Wire):
    """A strength to begin with. None is proven: a sweep measures what it does to the text."""

    name: Literal["light", "medium", "strong"] | None
    strength: float
    unit: Unit
    rule: str = Field(description="How it was computed")


class FeatureVector(Wire):
    """A feature's decoder column, and how much of it is much."""

    feature: str
    sae: str
    sae_sha256: str
    index: int
    model: str
    layer: int = Field(description="The residual stream after this block, counted from 0")
    d_model: int
    label: str | None
    labels: list[str] = Field(description="All that it is said to mean, the best first")
    norm: float = Field(description="Of the decoder column at full precision")
    vector: list[float] = Field(description="The decoder column, not normalised, as the home keeps it")
    precision: Literal["float16"] = Field(
        description="The home keeps decoder columns in this; each number is exact in it"
    )
    sha256: str = Field(description="Of the vector's float32 bytes, little-endian")
    typical: TypicalActivation | None = Field(description="Null where no dataset was indexed with the SAE")
    suggested: list[Suggestion]
    neighbours: list[Neighbour] = Field(description="Nearest decoder directions, where asked for")
    left_out: list[str] = Field(description="Datasets that were indexed under another recipe only")
    provenance: Provenance | None = Field(description="Of `typical`")


class VectorItem(Wire):
    """One version of a saved vector, without its numbers."""

    id: str = Field(description="`<name>@<version>`")
    name: str
    version: int
    model: str
    layers: list[int] = Field(description="Ascending; the residual stream after each of these blocks")
    d_model: int
    norms: list[float] = Field(description="Length of each layer's vector")
    sha256: str = Field(description="Of all float32 bytes, little-endian, layer after layer")
    made: VectorMade
    description: str | None
    author: str
    created_at: datetime
    deleted_at: datetime | None


class LayerVector(Wire):
    layer: int
    norm: float
    vector: list[float]


class SavedVector(VectorItem):
    """One version of a saved vector."""

    vectors: list[LayerVector]
    suggested: list[Suggestion]
    provenance: dict[str, Any] = Field(
        description="The request or the file, SAE hashes, runs, snapshot, and what was counted"
    )


class Component(Wire):
    """One direction of a combination."""

    feature: str | None = Field(default=None, max_length=300, description="`<sae>/<index>`: its decoder column")
    vector: str | None = Field(
        default=None, max_length=80, description="Or a saved vector, `<name>` or `<name>@<version>`"
    )
    weight: Weight = Field(default=1.0, description="It is multiplied by this")
    layer: Layer | None = Field(
        default=None, description="Another layer than its own; of a vector of several layers, this one alone"
    )

    @model_validator(mode="after")
    def _one(self) -> Component:
        if (self.feature is None) == (self.vector is None):
            raise ValueError("give either feature or vector")
        return self


class DecodedMeans(Wire):
    """The difference of two datasets' mean activations, decoded: the sum over features of (mean in a - mean in b) x decoder column.

    It is what the SAE sees of the difference of the mean residuals, and needs no model.
    """

    a: str = Field(max_length=80, description="Towards this dataset")
    b: str = Field(max_length=80, description="And away from this one")
    saes: list[Annotated[str, StringConstraints(max_length=256)]] = Field(
        default_factory=list,
        max_length=MOST_LAYERS,
        description="One a layer; may be left out where the home has one SAE",
    )
    top: int | None = Field(None, ge=1, le=1 << 20, description="Only the features whose means differ most, a layer")
    max_q: float | None = Field(
        None, gt=0, le=1, description="Only features whose firing rates differ at this false discovery rate"
    )
    as_of: int | None = Field(None, ge=1, le=1 << 31, description="Answer as of this snapshot")


class Sample(Wire):
    """Stored texts of a dataset, drawn with the seed."""

    dataset: str = Field(max_length=80, description="`<name>` or `<name>@<version>`")
    where: dict[str, Any] = Field(default_factory=dict, max_length=20, description="Of a slice only")
    n: int = Field(128, ge=1, le=100_000, description="Texts; all where there are fewer")


class ResidualMeans(Wire):
    """The difference of the mean residuals of two sets of texts, read by the loaded model."""

    a: Annotated[list[Text], Field(min_length=1, max_length=MOST_TEXTS)] | Sample = Field(
        description="Towards these texts"
    )
    b: Annotated[list[Text], Field(min_length=1, max_length=MOST_TEXTS)] | Sample = Field(
        description="And away from these"
    )
    layers: list[Layer] = Field(min_length=1, max_length=MOST_LAYERS, description="After these blocks")
    tokens: TokensRead = Field("all", description="Mean over all tokens that count, or over each text's last one")
    mask: Mask | None = Field(None, description="As in the model's newest run unless given")
    max_tokens: int = Field(512, ge=1, le=8_192, description="Longer texts are cut here")
    seed: int = Field(0, ge=0, le=(1 << 31) - 1, description="Of the drawing")


class SaveVector(Wire):
    """A direction to keep: a combination, or a difference of means."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "dogs",
                    "components": [
                        {"feature": "tinystories-3m/3-qwenscope-res-3k-l32/17", "weight": 2.0},
                        {"feature": "tinystories-3m/4-qwenscope-res-3k-l32/99"},
                    ],
                },
                {"name": "sums", "decoded_means": {"a": "gsm8k", "b": "math", "saes": ["m/3-tiny"], "top": 100}},
            ]
        }
    )
    name: VectorName = Field(description="A new version of it is made where one of this name exists")
    based_on: BasedOn = None
    description: str | None = Field(None, max_length=2_000, description="For those who read it later")
    components: list[Component] | None = Field(
        None,
        min_length=1,
        max_length=MOST_COMPONENTS,
        description="A weighted sum, at each layer of its own components",
    )
    normalise: Normalise = Field(
        "none", description="`components`: each at length 1 before its weight; `result`: each layer's sum at length 1"
    )
    decoded_means: DecodedMeans | None = Field(None, description="A difference of datasets, from the index")
    residual_means: ResidualMeans | None = Field(None, description="A difference of texts, through the loaded model")

    @model_validator(mode="after")
    def _one(self) -> SaveVector:
        given = [self.components, self.decoded_means, self.residual_means]
        if sum(each is not None for each in given) != 1:
            raise ValueError("give one of components, decoded_means and residual_means")
        if self.normalise == "components" and self.components is None:
            raise ValueError(
                "normalise=components is for components; a difference of means can be normalised as `result`"
            )
        return self


class ImportVector(Wire):
    """How a file of vectors is taken in."""

    name: VectorName | None = Field(
        default=None, description="What the file says unless given; a new version where it exists"
    )
    based_on: BasedOn = Field(default=None, examples=[1])
    model: str | None = Field(
        default=None,
        max_length=128,
        description="Whose residual stream it is for; what the file says, or the only model that it fits, unless given",
    )
    description: str | None = Field(default=None, max_length=2_000, description="For those who read it later")
    layer_shift: int = Field(
        default=0,
        ge=-8,
        le=8,
        description="Added to every layer of the file: -1 for vectors of llama.cpp's cvector-generator",
    )
    file: str | None = Field(default=None, max_length=300, description="The file's name, for the record")
