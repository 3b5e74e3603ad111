"""POST /v1/chat/completions in OpenAI's shapes. With `steering` the answer is steered, and says how."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from schema.wire.base import Wire
from schema.wire.completions import MOST_CHARS
from schema.wire.sampling import MOST_LIKELY, MOST_TOKENS, Answered, Empty, Finish, GenerationBody, Whole, check_text

MOST_MESSAGES = 2_000
DEFAULT_TOKENS = 2_048
ROLES = ("system", "developer", "user", "assistant")
NO_CHOICE = ("none", "auto")


class TextPart(Wire):
    type: Literal["text"]
    text: str = Field(max_length=MOST_CHARS)

    @field_validator("text", mode="before")
    @classmethod
    def _readable(cls, given: Any) -> Any:
        if isinstance(given, str) and given:
            check_text(given, "text", MOST_CHARS)
        return given


class Message(Wire):
    role: Literal["system", "developer", "user", "assistant"] = Field(
        description="`developer` is put to the model as `system`"
    )
    content: (
        Annotated[str, Field(max_length=MOST_CHARS)] | Annotated[list[TextPart], Field(min_length=1, max_length=256)]
    ) = Field(description="A text, or parts of one")
    name: str | None = Field(None, max_length=256, description="Who speaks, where the model's template knows names")
    refusal: None = Field(None, description="As OpenAI's own answers carry it")

    @model_validator(mode="before")
    @classmethod
    def _readable(cls, given: Any) -> Any:
        """Sentences for what a chat with tools or pictures would send."""
        if not isinstance(given, dict):
            return given
        role, content = given.get("role"), given.get("content")
        if role is not None and role not in ROLES:
            raise ValueError(f"role {str(role)[:40]!r}: one of {', '.join(ROLES)} (tools are not built in)")
        if given.get("tool_calls"):
            raise ValueError("tool_calls are not built in; leave such messages out")
        if isinstance(content, list):
            kinds = [each.get("type") for each in content if isinstance(each, dict)]
            other = next((kind for kind in kinds if kind != "text"), None)
            if other is not None:
                raise ValueError(f"a part of type {str(other)[:40]!r} cannot be read; text alone can")
        if isinstance(content, str) and content:
            check_text(content, "content", MOST_CHARS)
        return {name: value for name, value in given.items() if value is not None or name in ("role", "content")}

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatBody(GenerationBody):
    """A conversation to go on with."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model": "tinystories-3m",
                "messages": [{"role": "user", "content": "Tell me of a cat."}],
                "max_tokens": 40,
                "temperature": 0,
                "steering": {
                    "ops": [
                        {
                            "feature": "tinystories-3m/3-qwenscope-res-3k-l32/99",
                            "mode": "add",
                            "strength": 0.4,
                            "unit": "residual_norm",
                        }
                    ]
                },
            }
        }
    )
    NOT_BUILT: ClassVar[dict[str, tuple[Any, ...]]] = {
        "tools": ([],),
        "functions": ([],),
        "tool_choice": NO_CHOICE,
        "function_call": NO_CHOICE,
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "audio": (),
        "web_search_options": (),
        "moderation": (),
        "reasoning_effort": (),
        "verbosity": (),
    }

    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)] = Field(
        description="Oldest first, as the model's own chat template takes them"
    )
    max_tokens: Annotated[Whole, Field(ge=1, le=MOST_TOKENS)] | None = Field(
        None, description=f"Most tokens of each choice; what the context leaves, at most {DEFAULT_TOKENS}, unless given"
    )
    max_completion_tokens: Annotated[Whole, Field(ge=1, le=MOST_TOKENS)] | None = Field(
        None, description="The newer name of max_tokens"
    )
    logprobs: bool | None = Field(None, description="Log-probabilities of the tokens chosen")
    top_logprobs: Annotated[Whole, Field(ge=0, le=MOST_LIKELY)] | None = Field(
        None, description="And of so many of the likeliest beside each; with `logprobs`"
    )
    chat_template_kwargs: dict[str, bool | int | str] | None = Field(
        None,
        max_length=16,
        description="Switches of the model's own template, such as `enable_thinking`. Not OpenAI's",
    )
    tools: Empty | None = Field(None, description="Not built in")
    functions: Empty | None = Field(None, description="Not built in")
    tool_choice: Literal["none", "auto"] | None = Field(None, description="Not built in")
    function_call: Literal["none", "auto"] | None = Field(None, description="Not built in")
    parallel_tool_calls: bool | None = Field(None, description="Without meaning here")
    response_format: dict[Literal["type"], Literal["text"]] | None = Field(
        None, description="Text alone is built in: `{'type': 'text'}`"
    )
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = Field(
        None, description="Text alone is built in"
    )
    audio: None = Field(None, description="Not built in")
    web_search_options: None = Field(None, description="Not built in")
    moderation: None = Field(None, description="Not built in")
    reasoning_effort: None = Field(None, description="Not built in; see `chat_template_kwargs`")
    verbosity: None = Field(None, description="Not built in")
    store: bool | None = Field(None, description="Without meaning here: nothing is stored")
    metadata: dict[str, str] | None = Field(None, max_length=16, description="Without meaning here")
    service_tier: str | None = Field(None, max_length=64, description="Without meaning here")
    prediction: dict[str, Any] | None = Field(None, description="Without meaning here: it only saves time elsewhere")
    prompt_cache_key: str | None = Field(None, max_length=512, description="Without meaning here")
    prompt_cache_options: dict[str, Any] | None = Field(None, description="Without meaning here")
    prompt_cache_retention: str | None = Field(None, max_length=64, description="Without meaning here")
    safety_identifier: str | None = Field(None, max_length=512, description="Without meaning here")

    @field_validator("messages", mode="before")
    @classmethod
    def _some(cls, given: Any) -> Any:
        if given == []:
            raise ValueError("give at least one message")
        return given

    @model_validator(mode="after")
    def _together(self) -> ChatBody:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs; set it to true")
        both = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(both) > 1:
            raise ValueError("max_tokens and max_completion_tokens mean the same and differ; leave one out")
        return self


class LikelyToken(Wire):
    token: str
    logprob: float
    bytes: list[int] | None = Field(description="In UTF-8; null for a token that is only a part of a character")


class ChatToken(LikelyToken):
    top_logprobs: list[LikelyToken]


class ChatLogprobs(Wire):
    content: list[ChatToken]
    refusal: None = None


class AnswerMessage(Wire):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(Wire):
    index: int = Field(description="An unsteered one's follows on those of the steered")
    message: AnswerMessage
    finish_reason: Finish
    logprobs: ChatLogprobs | None = None
    seed: int = Field(description="Repeats this choice alone, with `n` left out")


class ChatCompletion(Answered):
    """The whole answer."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    unsteered: list[ChatChoice] | None = Field(
        default=None, description="With `compare`: the same choices without steering, in the same order"
    )


class Delta(Wire):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(Wire):
    index: int
    delta: Delta
    finish_reason: Finish | None = None
    logprobs: ChatLogprobs | None = None
    seed: int | None = None


class ChatChunk(Answered):
    """A piece of a streamed answer."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice] = Field(description="One with more text; none in the chunk that tells the usage")
    unsteered: Literal[True] | None = Field(
        default=None, description="With `compare`: this piece is of an unsteered choice"
    )
