"""Jobs: what is asked for, how far it is, and what happened to it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from schema.errors import InputError
from schema.names import check_dataset
from schema.places import check_place
from schema.recipe import MAX_TOKENS, check_template, unescape
from schema.wire.base import Wire
from schema.words import JobState

Place = Annotated[str, Field(min_length=1, max_length=1024)]
_PLACE = "`owner/name[@revision]` on the hub, or a path under the folder that workers were started with (`--data-root`)"
_LAYERS = r"^(all|[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*)$"


class JobDataset(Wire):
    """A dataset to index."""

    name: str = Field(min_length=1, max_length=64, description="Its name in the index")
    source: Place = Field(
        description="`hub:<owner>/<dataset>[:<config>][:<split>]`, or a .jsonl, .jsonl.gz, .parquet or .csv file, or a directory "
        "of those, under the folder that workers were started with (`--data-root`)"
    )

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        return _checked(check_dataset, name)

    @field_validator("source")
    @classmethod
    def _source(cls, source: str) -> str:
        return _checked(check_place, source)


class IndexJob(Wire):
    """`scopebase index`, for a worker to do. What is left out is as that command has it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "kind": "index",
                    "model": "Qwen/Qwen3-1.7B-Base",
                    "sae": "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50",
                    "layers": "12-15",
                    "datasets": [{"name": "gsm8k", "source": "hub:openai/gsm8k:main:test"}],
                    "template": "{question}\n{answer}",
                }
            ]
        }
    )

    kind: Literal["index"] = Field(description="What is to be done")
    model: Place = Field(description=f"A model: {_PLACE}")
    sae: Place = Field(description=f"Its SAEs: {_PLACE}")
    datasets: list[JobDataset] = Field(min_length=1, max_length=200, description="What to index")
    layers: str = Field("all", max_length=2000, pattern=_LAYERS, description="`all`, or numbers and ranges: `0,3-5`")
    set: str | None = Field(
        None, max_length=120, pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", description="Name of the set in SAE ids"
    )
    model_name: str | None = Field(None, min_length=1, max_length=128, description="The model's name in ids")
    text_field: str = Field("text", min_length=1, max_length=256, description="The row's field that holds the text")
    template: str | None = Field(
        None, max_length=20_000, description="Makes the text of several fields: `{question}\\n{answer}`"
    )
    id_field: str | None = Field(
        None, max_length=256, description="The field that names a row; `id` where rows have one, empty numbers them"
    )
    limit: int | None = Field(None, ge=1, le=1 << 40, description="Only the first rows")
    bad_rows: Literal["stop", "skip"] = Field(
        "stop", description="`skip` leaves rows out that cannot be used, and reports them"
    )
    max_tokens: int = Field(512, ge=1, le=MAX_TOKENS, description="Longer texts are cut here")
    mask: Literal["none", "special", "first", "special,first"] = Field(
        "special,first", description="Tokens that never fire"
    )
    batch_tokens: int | None = Field(None, ge=1, le=1 << 22, description="Padded tokens a batch")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="The model's arithmetic")
    logits: Literal["auto", "yes", "no"] = Field("auto", description="Whether logit effects are stored")

    @field_validator("model", "sae")
    @classmethod
    def _place(cls, place: str) -> str:
        if place.startswith("hub:"):
            raise ValueError(f"{place!r}: 'hub:' is for datasets; write owner/name")
        return _checked(check_place, place)

    @field_validator("model_name", "text_field", "id_field", "template")
    @classmethod
    def _text(cls, text: str | None) -> str | None:
        if text is not None and ("\0" in text or not _is_unicode(text)):
            raise ValueError("it holds a NUL character, or half of a surrogate pair; leave that out")
        return text

    @field_validator("template")
    @classmethod
    def _template(cls, template: str | None) -> str | None:
        if template is not None:
            _checked(check_template, unescape(template))
        return template

    @model_validator(mode="after")
    def _once(self) -> IndexJob:
        names = [dataset.name for dataset in self.datasets]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"dataset {name!r} is given twice; each needs a name of its own")
        return self


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _checked(check: Any, value: str) -> str:
    """What `check` refuses, as pydantic wants it refused."""
    try:
        check(value)
    except InputError as error:
        raise ValueError(str(error)) from None
    return value


class JobProgress(Wire):
    """How far a piece of a job is."""

    title: str = Field(description="What is done, such as `indexing gsm8k`")
    done: int
    total: int | None
    tokens: int = Field(description="Since this attempt began with it")
    tokens_per_second: float | None
    seconds_left: float | None = Field(description="Of what `title` says, at the rate so far")
    at: datetime = Field(description="By the worker's clock")


class JobRun(Wire):
    """A run that holds what the job asked for."""

    id: int
    dataset: str
    version: int
    saes: list[str]
    n_samples: int
    n_tokens: int
    n_activations: int
    bytes: int
    already: bool = Field(description="It was finished before the last attempt began")


class JobItem(Wire):
    """A job."""

    id: int
    kind: Literal["index"]
    state: JobState
    cancelling: bool = Field(description="It runs, and ends at the next border between two pieces of work")
    author: str
    created_at: datetime
    begun_at: datetime | None = Field(description="When a worker took it first")
    finished_at: datetime | None
    attempts: int
    most_attempts: int
    worker: str | None = Field(description="Who works on it: host, process and its start")
    leased_until: datetime | None = Field(description="Another worker takes over unless this one is heard before")
    progress: JobProgress | None
    runs: list[JobRun] = Field(description="Once it has finished")
    error: str | None = Field(description="What kept the last attempt from going on")
    request: IndexJob
    last_event: int = Field(description="Number of the newest event")


class JobEvent(Wire):
    """Something that happened to a job. Its number is the `id` of the server-sent event."""

    id: int
    event: Literal["state", "line", "progress"]
    state: JobState = Field(description="Of the job at that moment")
    text: str | None = Field(description="What happened, or what was said")
    at: datetime
    progress: JobProgress | None = None


class JobRemoval(Wire):
    """A job that was forgotten. What it indexed stays."""

    id: int
    state: JobState
