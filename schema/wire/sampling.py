"""What requests for a completion and for a chat share: OpenAI's fields, ours beside them, and those that are refused."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from schema.wire.base import Wire
from schema.wire.steering import Steering, SteeringApplied

MOST_CHOICES = 128
"""Texts generated for one request: prompts times `n`, twice that with `compare`."""
MOST_STOPS = 64
MOST_STOP_CHARS = 256
MOST_BIASED = 1_024
MOST_LIKELY = 20
MOST_TOKENS = 1 << 20
Whole = Annotated[int, Field(strict=True)]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Empty = Annotated[list[Any], Field(max_length=0)]
Finish = Literal["stop", "length"]
UNSEEN = -9999.0
"""OpenAI's number for a log-probability that cannot be told, such as that of a token that was ruled out."""


def check_text(text: str, what: str, most: int) -> None:
    """Raises ValueError for a text that no model can read."""
    if not text:
        raise ValueError(f"{what} is empty; give at least one character")
    if len(text) > most:
        raise ValueError(f"{what} has {len(text):,} characters, more than the {most:,} that are read")
    if "\0" in text:
        raise ValueError(f"{what} holds a NUL character; leave it out")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} is no valid Unicode: it holds half of a surrogate pair") from None


class StreamOptions(Wire):
    include_usage: bool | None = Field(None, description="A last chunk without choices tells the tokens used")
    include_obfuscation: bool | None = Field(None, description="Without meaning here")


class GenerationBody(Wire):
    """What both routes take. `null` is the same as leaving a field out."""

    NOT_BUILT: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """Fields that would change the answer and are not built in -> the values that change nothing."""

    model: str | None = Field(None, max_length=256, description="The loaded model; may be left out")
    max_tokens: Annotated[Whole, Field(ge=1, le=MOST_TOKENS)] | None = Field(
        None, description="Most tokens of each choice"
    )
    temperature: Annotated[Real, Field(ge=0, le=2)] | None = Field(
        None, description="1 unless given; 0 takes the likeliest token"
    )
    top_p: Annotated[Real, Field(gt=0, le=1)] | None = Field(
        None, description="Only the likeliest tokens that together have this probability; 1 unless given"
    )
    top_k: Annotated[Whole, Field(ge=0, le=1 << 20)] | None = Field(
        None, description="Only so many of the likeliest tokens; 0 or left out: all. Not OpenAI's"
    )
    n: Annotated[Whole, Field(ge=1, le=MOST_CHOICES)] | None = Field(
        None, description=f"Choices of each prompt; 1 unless given, at most {MOST_CHOICES} in one request"
    )
    stop: (
        str
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=MOST_STOP_CHARS)]], Field(max_length=MOST_STOPS)]
        | None
    ) = Field(None, description=f"A choice ends before one of these strings; at most {MOST_STOPS}")
    seed: Annotated[Whole, Field(ge=-(1 << 63), lt=1 << 63)] | None = Field(
        None, description="The same seed gives the same answer; one is drawn and told unless given"
    )
    presence_penalty: Annotated[Real, Field(ge=-2, le=2)] | None = Field(
        None, description="Taken from the logit of each token that was generated already"
    )
    frequency_penalty: Annotated[Real, Field(ge=-2, le=2)] | None = Field(
        None, description="The same for each time that it was generated"
    )
    logit_bias: dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[Real, Field(ge=-100, le=100)]] | None = (
        Field(None, max_length=MOST_BIASED, description="Token id -> what is added to its logit")
    )
    ignore_eos: bool | None = Field(None, description="Goes on after an end token. Not OpenAI's")
    stream: bool | None = Field(None, description="Answer in pieces, as server-sent events")
    stream_options: StreamOptions | None = Field(None, description="Only with `stream`")
    steering: Steering | None = Field(None, description="What is done to the residual stream. Not OpenAI's")
    user: str | None = Field(None, max_length=512, description="Without meaning here")

    @field_validator("*", mode="before")
    @classmethod
    def _built(cls, given: Any, info: ValidationInfo) -> Any:
        """A sentence for what is not built in; pydantic's own would speak of types."""
        neutral = cls.NOT_BUILT.get(info.field_name or "")
        if neutral is None or given is None or any(given == each and type(given) is type(each) for each in neutral):
            return given
        raise ValueError("not built in, and it would change the answer; leave it out")

    @field_validator("stop", mode="before")
    @classmethod
    def _stops(cls, given: Any) -> Any:
        if isinstance(given, list) and len(given) > MOST_STOPS:
            raise ValueError(f"{len(given):,} stop strings are more than the {MOST_STOPS} that a request may have")
        for each in given if isinstance(given, list) else [given]:
            if isinstance(each, str):
                check_text(each, "a stop string", MOST_STOP_CHARS)
            elif each is not None:
                raise ValueError("give a string, or a list of strings")
        return given

    @model_validator(mode="after")
    def _streamed(self) -> Any:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are for a stream; set stream, or leave them out")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class Usage(Wire):
    prompt_tokens: int = Field(description="Of all prompts, each counted once")
    completion_tokens: int = Field(description="Generated for all choices, unsteered ones included")
    total_tokens: int


class Answered(Wire):
    """What every answer carries, whole or in pieces."""

    id: str
    created: int = Field(description="Seconds since 1970")
    model: str
    system_fingerprint: str = Field(
        description="Engine and version; another one may give other texts for the same seed"
    )
    usage: Usage | None = None
    seed: int | None = Field(default=None, description="Given again, it repeats this answer")
    steering_applied: SteeringApplied | None = Field(default=None, description="In every answer that was steered")
