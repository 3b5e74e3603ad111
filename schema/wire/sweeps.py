"""Sweeps: a direction tried at several strengths, what it does and what it costs, beside controls."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from schema.wire.base import Provenance, Wire
from schema.wire.effects import Effect
from schema.wire.steering import MOST_OPS, OpSpec, When

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
MOST_PROMPTS = 256
MOST_STRENGTHS = 32
MOST_EFFECTS = 8
MOST_GENERATIONS = 50_000
"""Texts of one sweep, over all its points."""

Strength = Annotated[float, Field(allow_inf_nan=False)]
Prompt = Annotated[str, StringConstraints(min_length=1, max_length=20_000)]
State = Literal["waiting", "running", "stopped", "failed", "done"]
PointKind = Literal["unsteered", "target", "random_feature", "random_direction"]


class PromptSlice(Wire):
    """Beginnings of a dataset's texts."""

    dataset: str = Field(max_length=80)
    where: dict[str, Any] = Field(default_factory=dict, max_length=20, description="As in /v1/features/contrast")
    n: int = Field(32, ge=1, le=MOST_PROMPTS, description="Texts")
    tokens: int = Field(16, ge=1, le=8_192, description="Each is cut after so many tokens")
    draw: Literal["first", "random"] = Field("random", description="`random` by the sweep's seed")


class Controls(Wire):
    """What the direction must be better than."""

    random_features: int = Field(
        default=3,
        ge=0,
        le=32,
        description="Features of the same SAE that fire about as often, at equal norm, at each strength",
    )
    random_directions: int = Field(
        default=0, ge=0, le=32, description="Gaussian directions of equal norm, at each strength"
    )
    negative: bool = Field(
        default=True, description="The direction itself at each strength's negative; for `add` alone"
    )


class Bounds(Wire):
    """The rule by which a strength is suggested; see `Suggestion`."""

    perplexity: float = Field(
        default=1.5, gt=1, le=1e6, description="Perplexity may be at most so many times that of the unsteered texts"
    )
    repetition: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="The share of repeated 4-grams may grow by so much; perplexity does not see loops",
    )


class SweepRequest(Wire):
    """A sweep. The same request sent again goes on where the sweep stopped."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "dogs",
                    "target": [{"feature": "tinystories-3m/3-qwenscope-res-3k-l32/17", "unit": "residual_norm"}],
                    "strengths": [0.1, 0.2, 0.4],
                    "prompts": ["Once upon a time", "One day"],
                    "effects": [{"measure": "words", "words": ["dog", "puppy"]}],
                    "max_tokens": 40,
                }
            ]
        }
    )
    name: str = Field(pattern=NAME, description="What it is stored under")
    target: list[OpSpec] = Field(
        min_length=1,
        max_length=MOST_OPS,
        description="As `steering.ops`; each one's strength is multiplied by that of the point, so 1 leaves it as it is",
    )
    when: When | None = Field(None, description="As `steering.when`")
    strengths: list[Strength] = Field(
        min_length=1, max_length=MOST_STRENGTHS, description="In the units of the operations"
    )
    prompts: Annotated[list[Prompt], Field(min_length=1, max_length=MOST_PROMPTS)] | PromptSlice = Field(
        description="Texts, or the beginnings of a dataset's"
    )
    chat: bool = Field(False, description="Prompts are what a user says, in the model's chat template")
    samples: int = Field(1, ge=1, le=64, description="Texts generated for each prompt at each point")
    max_tokens: int = Field(64, ge=1, le=4_096, description="Tokens generated, at most")
    temperature: float = Field(1.0, ge=0, le=10, allow_inf_nan=False, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="Of what the likeliest tokens share, sample from these alone")
    seed: int = Field(0, ge=0, le=(1 << 31) - 1, description="Of prompts, controls, samples and intervals")
    effects: list[Effect] = Field(
        min_length=1, max_length=MOST_EFFECTS, description="What is measured; the first decides the suggestion"
    )
    want: Literal["more", "less"] = Field("more", description="Of the first effect")
    controls: Controls = Field(default=Controls(), description="What it is compared with")
    bounds: Bounds = Field(default=Bounds(), description="What a suggested strength may cost")

    @model_validator(mode="after")
    def _fits(self) -> SweepRequest:
        if 0 in self.strengths or len(set(self.strengths)) < len(self.strengths):
            raise ValueError("strengths: each once, and none 0; the unsteered point is always there")
        n = self.samples * (self.prompts.n if isinstance(self.prompts, PromptSlice) else len(self.prompts))
        points = 1 + len(self.strengths) * (2 + self.controls.random_features + self.controls.random_directions)
        if n * points > MOST_GENERATIONS:
            raise ValueError(
                f"{points} points of {n:,} texts are {n * points:,}, and a sweep may have {MOST_GENERATIONS:,}; "
                "give fewer strengths, prompts, samples or controls"
            )
        return self


class Estimate(Wire):
    """A number with its 95 % interval, from a bootstrap over prompts; null where no text has it."""

    value: float | None
    low: float | None
    high: float | None


class PointEffect(Wire):
    name: str
    value: Estimate
    difference: Estimate | None = Field(
        description="To the unsteered texts, prompt by prompt; null at the unsteered point"
    )


class Point(Wire):
    """One operation, control or none at one strength, over all prompts."""

    place: int
    kind: PointKind
    strength: float = Field(description="0 at the unsteered point")
    control: str | None = Field(description="The random feature or direction")
    n_texts: int
    n_tokens: int = Field(description="Tokens generated")
    n_ended: int = Field(description="Texts that ended by themselves within `max_tokens`")
    effects: list[PointEffect]
    perplexity: Estimate = Field(description="Of what was generated, under the unsteered model")
    perplexity_ratio: Estimate | None = Field(description="Over that of the unsteered texts of the same prompts")
    repetition: Estimate = Field(description="Share of 4-grams of tokens that stood in the text before")
    distinct: Estimate = Field(description="Different pairs of neighbouring tokens over all pairs: distinct-2")
    longest_repeat: Estimate = Field(description="Longest run of tokens that occurs twice, over the text's length")
    relative_norm: float | None = Field(description="Mean norm added over the residual's, at the tokens touched")
    example: str = Field(description="The first prompt's first text")


class Null(Wire):
    """What the controls of one kind do to one effect at one strength."""

    effect: str
    strength: float
    kind: PointKind
    n: int
    mean: float | None
    low: float | None = Field(description="The smallest of them")
    high: float | None = Field(description="The largest of them")


class Verdict(Wire):
    """One strength held against the rule."""

    strength: float
    beyond: Estimate = Field(
        description="The first effect less the mean of its controls; the interval is wider than 95 % by the number of strengths"
    )
    beyond_unsteered: bool = Field(
        description="The first effect differs the wanted way from the unsteered texts, at the same level"
    )
    beyond_mean: bool | None = Field(description="`beyond` lies the wanted way of 0; null without controls")
    beyond_all: bool | None = Field(description="It is farther the wanted way than each control; null without controls")
    fluent: bool = Field(description="Perplexity is within bounds.perplexity")
    not_looping: bool = Field(description="Repetition is within bounds.repetition")
    passes: bool


class Suggestion(Wire):
    """The smallest strength, by size, that passes, or none."""

    strength: float | None
    strongest: float | None = Field(description="Of those that pass, the one whose effect is farthest the wanted way")
    reason: str
    rule: str = Field(description="The rule in words, with its numbers")
    level: float = Field(description="Of the intervals of `beyond`: 1 - 0.05 / strengths")
    enough_prompts: int = Field(description="Fewer prompts could not show an effect at that level")
    verdicts: list[Verdict]


class SweepItem(Wire):
    """A sweep in a list."""

    id: str = Field(description="Its name")
    name: str
    model: str
    target: list[str]
    strengths: list[float]
    state: State
    n_points: int
    n_done: int
    suggested: float | None = Field(description="The suggested strength; null where none is, or none yet")
    error: str | None
    author: str
    created_at: datetime
    finished_at: datetime | None


class SweepMade(Wire):
    """What a sweep was made with."""

    engine: str
    versions: dict[str, str]
    dtype: str | None
    model: str
    revision: str
    tokenizer_sha256: str
    vectors: list[str] = Field(description="SHA-256 of each target's float32 bytes")
    prompts_sha256: str = Field(description="Of the prompts' token ids")
    n_prompts: int
    mask: str = Field(description="Of what is read back")


class SweepAnswer(SweepItem):
    """A sweep with all points that are done, in the order of its plan."""

    request: SweepRequest
    made: SweepMade
    points: list[Point]
    nulls: list[Null]
    suggestion: Suggestion | None = Field(description="Null until every point is there")
    provenance: list[Provenance] = Field(description="Of each SAE that took part")


class SweepText(Wire):
    """One generated text."""

    place: int = Field(description="Its point")
    prompt: str
    sample: int
    seed: int
    text: str
    ended: bool
    perplexity: float | None
    effects: dict[str, float | None]
