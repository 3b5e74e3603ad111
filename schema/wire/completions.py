"""POST /v1/completions in OpenAI's shapes. With `steering` the text is steered, and the answer says how."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from schema.wire.base import Wire
from schema.wire.sampling import MOST_CHOICES, MOST_LIKELY, Answered, Finish, GenerationBody, Whole, check_text

MOST_CHARS = 2_000_000
MOST_IDS = 1 << 20
DEFAULT_TOKENS = 16
TokenId = Annotated[Whole, Field(ge=0, lt=1 << 31)]
Ids = Annotated[list[TokenId], Field(min_length=1, max_length=MOST_IDS)]
Text = Annotated[str, Field(min_length=1, max_length=MOST_CHARS)]
FORMS = "a text, a list of texts, a list of token ids, or a list of such lists"


class CompletionBody(GenerationBody):
    """Prompts to go on from."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model": "tinystories-3m",
                "prompt": "Once upon a time there was a",
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
                    ],
                    "compare": True,
                },
            }
        }
    )
    NOT_BUILT: ClassVar[dict[str, tuple[Any, ...]]] = {"suffix": ("",), "best_of": ()}

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MOST_CHOICES)]
        | Ids
        | Annotated[list[Ids], Field(min_length=1, max_length=MOST_CHOICES)]
    ) = Field(description=f"{FORMS[0].upper()}{FORMS[1:]}")
    max_tokens: Annotated[Whole, Field(ge=1, le=1 << 20)] | None = Field(
        None, description=f"Most tokens of each choice; {DEFAULT_TOKENS} unless given"
    )
    logprobs: Annotated[Whole, Field(ge=0, le=MOST_LIKELY)] | None = Field(
        None, description="Log-probabilities of the tokens chosen, and of so many of the likeliest beside each"
    )
    echo: bool | None = Field(None, description="The text of the prompt in front of each choice")
    suffix: Literal[""] | None = Field(None, description="Not built in")
    best_of: Annotated[Whole, Field(ge=1, le=MOST_CHOICES)] | None = Field(
        None, description="Not built in: nothing but the same as `n`"
    )

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_form(cls, given: Any) -> Any:
        """Says what is wrong in a sentence; a union of four would answer with four."""
        if isinstance(given, str):
            check_text(given, "the prompt", MOST_CHARS)
        elif isinstance(given, list) and given:
            kinds = {type(each) for each in given}
            if kinds == {str}:
                _check_number(given)
                for each in given:
                    check_text(each, "a prompt", MOST_CHARS)
            elif kinds == {list}:
                _check_number(given)
                for each in given:
                    _check_ids(each)
            else:
                _check_ids(given)
        else:
            raise ValueError("give at least one prompt" if given == [] else f"give {FORMS}")
        return given

    @model_validator(mode="before")
    @classmethod
    def _best(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("best_of") is not None and given["best_of"] == (given.get("n") or 1):
            return {name: value for name, value in given.items() if name != "best_of"}
        return given

    @model_validator(mode="after")
    def _together(self) -> CompletionBody:
        if self.echo and self.logprobs is not None:
            raise ValueError("echo with logprobs is not built in: the prompt's tokens are not scored; leave one out")
        return self


class CompletionLogprobs(Wire):
    tokens: list[str]
    token_logprobs: list[float] = Field(description="Before temperature, natural logarithm")
    top_logprobs: list[dict[str, float]] = Field(description="The likeliest, and the chosen one")
    text_offset: list[int] = Field(description="Characters of the choice before the token")


class CompletionChoice(Wire):
    index: int = Field(description="Prompt by prompt; an unsteered one's follows on those of the steered")
    text: str
    finish_reason: Finish | None = Field(description="null in a stream until the choice has ended")
    logprobs: CompletionLogprobs | None = None
    seed: int | None = Field(default=None, description="Repeats this choice alone, with `n` left out")


class Completion(Answered):
    """The whole answer."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    unsteered: list[CompletionChoice] | None = Field(
        default=None, description="With `compare`: the same choices without steering, in the same order"
    )


class CompletionChunk(Answered):
    """A piece of a streamed answer."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice] = Field(description="One with more text; none in the chunk that tells the usage")
    unsteered: Literal[True] | None = Field(
        default=None, description="With `compare`: this piece is of an unsteered choice"
    )


def _check_ids(ids: list[Any]) -> None:
    wrong = next((each for each in ids if type(each) is not int or not 0 <= each < 1 << 31), None)
    if not ids:
        raise ValueError("the prompt is empty; give at least one token id")
    if wrong is not None:
        raise ValueError(f"give {FORMS}; {str(wrong)[:40]!r} is no token id")


def _check_number(prompts: list[Any]) -> None:
    if len(prompts) > MOST_CHOICES:
        raise ValueError(f"{len(prompts):,} prompts are more than the {MOST_CHOICES} that a request may have")
