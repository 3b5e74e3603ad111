"""Labels: what people, models and the built-in describer say that features mean, and what a lab says about that."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints

from schema.wire.base import Progress, Wire

LabelSource = Literal["person", "model", "import", "describer"]
ShownSource = Annotated[
    LabelSource | None,
    Field(description="Who says so; `describer`: nobody yet, it was made from tokens and logits without a model"),
]
How = Literal["text", "meaning", "both"]
"""How labels are searched: by their words, by a sentence model, or by both ranks fused."""
Policy = Literal["skip", "update", "duplicate"]
"""What an import does with a label that is here with other words: keep ours, take the later version, keep both."""
PackFormat = Literal["jsonl", "parquet", "neuronpedia"]
MOST_FEATURES = 1 << 24
_NO_NUL = r"^[^\x00]*$"
"""PostgreSQL keeps no NUL character."""
LabelText = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=10_000, pattern=_NO_NUL)]
Short = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=120, pattern=_NO_NUL)]
Explainer = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=_NO_NUL)]
Prompt = Annotated[str, StringConstraints(max_length=200_000, pattern=_NO_NUL)]
Person = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=128, pattern=_NO_NUL)]
Uid = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$")]
Score = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)]


def _without_nul(examples: list[Any]) -> list[Any]:
    if "\\u0000" in json.dumps(examples):
        raise ValueError("holds a NUL character, which cannot be kept")
    return examples


Examples = Annotated[list[Any], Field(max_length=1_000), AfterValidator(_without_nul)]


class Stop(Wire):
    """One exchange that a label went through."""

    home: str | None = Field(default=None, description="The home it came from, by the id in its packs", max_length=64)
    by: Person = Field(description="Who imported it")
    at: datetime


class LabelContent(Wire):
    """What a label says, and how it was come by."""

    text: LabelText
    explainer: Explainer | None = Field(default=None, description="The model that wrote it")
    method: Short | None = Field(default=None, description="How it was written, such as `detection-top20`")
    score: Score | None = Field(default=None, description="How well it explains, by `score_method`")
    score_method: Short | None = None
    prompt: Prompt | None = Field(default=None, description="What the explainer was asked")
    examples: Examples | None = Field(
        default=None, description="The samples that were shown to the explainer, or that the author saw"
    )
    licence: Short | None = Field(default=None, description="Such as `CC-BY-4.0`")


class LabelItem(LabelContent):
    id: str = Field(description="The same in every home that has the label")
    feature: str = Field(description="`<sae>/<index>`")
    sae: str
    sae_sha256: str = Field(description="The tensors that it speaks of; it holds for no others")
    index: int
    author: str
    source: LabelSource
    origin: list[Stop] = Field(description="The exchanges it went through, oldest first; empty where it was made here")
    votes: int = Field(description="Sum of the votes, +1 or -1 each")
    version: int = Field(description="Counts the changes; name it when you change the label")
    deleted: bool = False
    created_at: datetime
    updated_at: datetime


class NewLabel(LabelContent):
    """A label to be made. Its author is who asks."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "feature": "qwen3-1.7b-base/12-qwenscope-res-32k-l50/1234",
                "text": "sums of money in word problems",
            }
        }
    )
    feature: str = Field(max_length=300, description="`<sae>/<index>`")
    sae_sha256: str | None = Field(
        None, max_length=64, description="Refused with 409 where the SAE here has other tensors"
    )
    source: Literal["person", "model"] = "person"


class LabelChange(Wire):
    """What changes; what is left out stays, null empties."""

    model_config = ConfigDict(json_schema_extra={"example": {"version": 1, "text": "sums of money"}})
    version: int = Field(ge=1, le=1 << 31, description="The one you saw; 409 where somebody was quicker")
    text: LabelText | None = None
    explainer: Explainer | None = None
    method: Short | None = None
    score: Score | None = None
    score_method: Short | None = None
    prompt: Prompt | None = None
    examples: Examples | None = None
    licence: Short | None = None


class NewVote(Wire):
    model_config = ConfigDict(json_schema_extra={"example": {"value": 1}})
    value: Literal[-1, 0, 1] = Field(description="0 takes the vote back")


class NewComment(Wire):
    model_config = ConfigDict(json_schema_extra={"example": {"text": "It also fires on prices."}})
    text: LabelText


class CommentItem(Wire):
    id: int
    author: str
    home: str | None = Field(description="The home it came from, by the id in its packs; null where it was made here")
    text: str
    at: datetime


class LabelEventItem(Wire):
    """One change, with the fields that it changed."""

    id: int
    action: Literal["create", "import", "describe", "edit", "delete", "undo"]
    actor: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    undoes: int | None = Field(description="The event that an undo took back")
    at: datetime


class LabelSearch(Wire):
    """Features by what their labels say."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"text": "sums of money", "sae": None, "how": "text", "limit": 20}}
    )
    text: Annotated[str, Field(min_length=1, max_length=1_000)]
    sae: str | None = Field(default=None, max_length=256, description="Only this SAE's features")
    how: How = Field("text", description="By words, by a sentence model, or by both ranks fused")
    limit: int = Field(50, ge=1, le=1000)


class FeatureFound(Wire):
    id: str = Field(description="The feature, `<sae>/<index>`")
    index: int
    sae: str
    score: float = Field(description="BM25, cosine, or fused ranks; comparable within this answer only")
    label: LabelItem = Field(description="The label that was found; the feature may have others")


class FeaturesFound(Wire):
    data: list[FeatureFound]
    how: How
    model: str | None = Field(default=None, description="The sentence model, where one was used")


FeatureIndexes = Annotated[list[Annotated[int, Field(ge=0, le=MOST_FEATURES)]], Field(min_length=1, max_length=100_000)]


class DescribeAsk(Wire):
    """Features to be described from the tokens that fire them; no model is asked."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"sae": "qwen3-1.7b-base/12-qwenscope-res-32k-l50", "features": [7, 1234]}}
    )
    sae: str | None = Field(default=None, max_length=256)
    features: FeatureIndexes | None = Field(
        default=None, description="Their indexes; every one that fires unless given"
    )


class ExplainAsk(Wire):
    """Features to be labelled by the explainer model that the service was started with; no other can be named."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "sae": "qwen3-1.7b-base/12-qwenscope-res-32k-l50",
                "features": [7, 1234],
                "scored": 10,
                "max_requests": 100,
            }
        }
    )
    sae: str | None = Field(default=None, max_length=256)
    features: FeatureIndexes | None = Field(
        default=None, description="Their indexes; every one that fires unless given"
    )
    shown: int = Field(12, ge=1, le=200, description="Samples shown to the model")
    scored: int = Field(
        0, ge=0, le=100, description="Held-out samples for a detection score, and as many that do not fire; 0 for none"
    )
    seed: int = Field(0, ge=0, le=1 << 53, description="Of the silent samples of the score")
    again: bool = Field(False, description="Also what this model explained before")
    at_once: int = Field(4, ge=1, le=64, description="Features asked about at the same time")
    max_requests: int | None = Field(
        1_000, ge=1, le=1 << 40, description="Never more, retries included; null for no end"
    )
    max_tokens: int | None = Field(
        None, ge=1, le=1 << 40, description="No request begins once so many are used, as the endpoint counts them"
    )


class DescribeReport(Wire):
    """What the built-in describer stored."""

    sae: str
    described: int = Field(description="Features that fire and have a description now")
    written: int = Field(description="Descriptions that are new or say something else than before")
    never_firing: int


class Unexplained(Wire):
    """A feature that got no label, and why. Nothing was stored for it; the same command asks again."""

    feature: str
    reason: str


class ExplainReport(Wire):
    """What asking an explainer model brought."""

    data: list[LabelItem]
    failed: list[Unexplained]
    skipped: int = Field(description="Features that this model and method had explained before")
    never_firing: int
    left: int = Field(description="Features that the budget left for the next call")
    requests: int = Field(description="Retries included")
    tokens: int = Field(description="As the endpoint counts them; four characters a token where it does not")
    stopped: str | None = Field(default=None, description="Why it ended before the last feature")


class DescribeProgress(Progress):
    """A line of the stream; the last one has the report, or what went wrong."""

    report: DescribeReport | None = None


class ExplainProgress(Progress):
    """A line of the stream; the last one has the report, or what went wrong."""

    report: ExplainReport | None = None


class LabelConflict(Wire):
    """A label of a pack that is here already and says something else."""

    line: int
    id: str
    feature: str
    mine: str = Field(description="The text here")
    theirs: str = Field(description="The text in the pack")
    my_version: int
    their_version: int
    deleted_here: bool = False
    done: Literal["kept", "updated", "duplicated"]


class TalkConflict(Wire):
    """A vote or a comment of a pack that is here and says something else. What is here stays."""

    line: int
    id: str = Field(description="The label's")
    feature: str
    what: Literal["vote", "comment"]
    by: str
    mine: str = Field(description="What it says here")
    theirs: str = Field(description="What it says in the pack")


class ImportReport(Wire):
    """What an import did, or with `dry_run` would do."""

    read: int
    created: int
    unchanged: int
    updated: int
    duplicated: int = Field(description="Kept beside the label here, under an id of their own")
    kept: int = Field(description="Labels here that differ from the pack's and were left as they are")
    skipped: int = Field(description="Rows without a text")
    conflicts: list[LabelConflict] = Field(description="The first of those that differ, 1,000 at most")
    n_conflicts: int
    votes: int = Field(description="Votes that are new here or were changed")
    comments: int = Field(description="Comments that are new here")
    talk_conflicts: list[TalkConflict] = Field(
        description="The first votes and comments that differ from those here, 1,000 at most"
    )
    n_talk_conflicts: int
    dry_run: bool
    policy: Policy
