"""Bad input to generation: each is refused before anything is queued, with a sentence, and what was sent is not sent back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from schema.home import open_home
from schema.settings import Settings
from tests.api.generation.scripted import Scripted

FEATURE = "tiny-qwen3/2-tiny/7"
PATH, CHAT = "/v1/completions", "/v1/chat/completions"


@pytest.fixture(scope="module")
def generator() -> Scripted:
    """Its context is 256 tokens; a prompt has one token a byte, and one in front."""
    return Scripted()


@pytest.fixture(scope="module")
def client(indexed: Settings, generator: Scripted) -> Iterator[TestClient]:
    with TestClient(create_app(open_home(indexed), generator=generator), raise_server_exceptions=False) as made:
        yield made


def op(**changes: Any) -> dict[str, Any]:
    return {"steering": {"ops": [{"feature": FEATURE, "strength": 1.0, **changes}]}}


def refused(client: TestClient, generator: Scripted, path: str, body: dict[str, Any] | str) -> tuple[int, str]:
    """Status and sentence; nothing was queued, and OpenAI's clients read the same sentence."""
    before = len(generator.said)
    content = body if isinstance(body, str) else json.dumps(body)
    response = client.post(path, content=content, headers={"content-type": "application/json"})
    assert len(generator.said) == before
    assert len(response.content) < 4_000
    assert response.headers["content-type"] == "application/problem+json"
    told = response.json()
    assert told["error"]["message"] == told["detail"]
    return response.status_code, told["detail"]


PROMPTS = [
    ({"prompt": ""}, 422, "the prompt is empty; give at least one character"),
    ({"prompt": []}, 422, "give at least one prompt"),
    ({"prompt": [[]]}, 422, "the prompt is empty; give at least one token id"),
    ({"prompt": ["a", ""]}, 422, "a prompt is empty"),
    ({}, 422, "prompt: Field required"),
    ({"prompt": None}, 422, "give a text, a list of texts"),
    ({"prompt": 7}, 422, "give a text, a list of texts"),
    ({"prompt": ["a", 7]}, 422, "'a' is no token id"),
    ({"prompt": [1, -1]}, 422, "'-1' is no token id"),
    ({"prompt": [1, True]}, 422, "'True' is no token id"),
    ({"prompt": [10**30]}, 422, "is no token id"),
    ({"prompt": "a\0b"}, 422, "NUL character"),
    ({"prompt": "x" * 2_000_001}, 422, "has 2,000,001 characters, more than the 2,000,000"),
    ({"prompt": ["a"] * 129}, 422, "129 prompts are more than the 128"),
    ({"prompt": "x" * 300}, 400, "context length is 256 tokens with the answer, and the prompt alone has 301"),
    (
        {"prompt": "x" * 250, "max_tokens": 10},
        400,
        "context length is 256 tokens, and the prompt's 251 with max_tokens 10 are 261; ask for at most 5",
    ),
    ({"prompt": ["a"] * 100, "n": 2}, 422, "100 prompts with n=2 make 200 texts, more than the 128"),
]
FIELDS = [
    ({"stop": ["x"] * 10_000}, 422, "10,000 stop strings are more than the 64"),
    ({"stop": ""}, 422, "a stop string is empty"),
    ({"stop": "x" * 300}, 422, "a stop string has 300 characters, more than the 256"),
    ({"stop": 3}, 422, "stop: give a string, or a list of strings"),
    ({"max_tokens": 0}, 422, "max_tokens: Input should be greater than or equal to 1"),
    ({"max_tokens": -1}, 422, "max_tokens"),
    ({"max_tokens": 8.0}, 422, "max_tokens: Input should be a valid integer"),
    ({"max_tokens": "8"}, 422, "max_tokens: Input should be a valid integer"),
    ({"max_tokens": 10**9}, 422, "max_tokens: Input should be less than or equal to"),
    ({"temperature": -0.1}, 422, "temperature"),
    ({"temperature": "hot"}, 422, "temperature: Input should be a valid number"),
    ({"top_p": 0}, 422, "top_p: Input should be greater than 0"),
    ({"n": 0}, 422, "n: Input should be greater than or equal to 1"),
    ({"n": 1000}, 422, "n: Input should be less than or equal to 128"),
    ({"seed": 2**63}, 422, "seed"),
    ({"logit_bias": {"cat": 1}}, 422, "logit_bias"),
    ({"logit_bias": {"3": 101}}, 422, "logit_bias"),
    ({"logprobs": 21}, 422, "logprobs"),
    ({"logprobs": 1, "echo": True}, 422, "echo with logprobs is not built in"),
    ({"suffix": "and"}, 422, "suffix: not built in, and it would change the answer"),
    ({"best_of": 3}, 422, "best_of: not built in, and it would change the answer"),
    ({"best_of": 3, "n": 2}, 422, "best_of: not built in, and it would change the answer"),
    ({"stream_options": {"include_usage": True}}, 422, "stream_options are for a stream"),
    ({"trust_remote_code": True}, 422, "trust_remote_code: Extra inputs are not permitted"),
    ({"model": "gpt-4o"}, 404, "model 'gpt-4o' is not loaded here, tiny-qwen3 is; name that one, or leave model out"),
]
STEERING = [
    (op(feature="tiny-qwen3/2-tinny/7"), 404, "no SAE named 'tiny-qwen3/2-tinny'; did you mean tiny-qwen3/2-tiny"),
    (op(feature="tiny-qwen3/2-tiny/256"), 404, "has features 0 to 255, and none 256"),
    (op(feature="tiny-qwen3/2-tiny/" + "9" * 40), 422, "9999"),
    ({"steering": {"ops": [{"vector": "calm"}]}}, 404, "no vector named 'calm'"),
    ({"steering": {"ops": [{"vector": "calm", "feature": FEATURE}]}}, 422, "give either feature or vector"),
    (op(layer=4), 422, "layer 4, but tiny-qwen3 has layers 0 to 3"),
    (op(layer=-1), 422, "steering.ops.0.layer"),
    (op(layer=10**30), 422, "steering.ops.0.layer"),
    (op(strength="nan"), 422, "steering.ops.0.strength: Input should be a valid number"),
    (op(strength="3"), 422, "steering.ops.0.strength: Input should be a valid number"),
    (op(strength=True), 422, "steering.ops.0.strength: Input should be a valid number"),
    (op(strength=None), 422, "steering.ops.0.strength: Input should be a valid number"),
    (op(strength=1e9), 422, "it must lie between -1,000,000 and 1,000,000"),
    (op(strength=500, unit="residual_norm"), 422, "it must lie between -100 and 100"),
    (op(mode="shout"), 422, "steering.ops.0.mode"),
    ({"steering": {"ops": []}}, 422, "steering.ops"),
    ({"steering": {"ops": op()["steering"]["ops"] * 17}}, 422, "steering.ops: List should have at most 16 items"),
    (
        {"steering": {"ops": [{"feature": FEATURE, "mode": "set"}, {"feature": FEATURE, "mode": "suppress"}]}},
        422,
        "steering.ops.0 and steering.ops.1 contradict each other",
    ),
    ({"steering": {**op()["steering"], "when": {"rule": "toxic"}}}, 404, "no rule named 'toxic'"),
    ({"n": 65, "steering": {**op()["steering"], "compare": True}}, 422, "n=65 and compare make 130 texts"),
]


@pytest.mark.parametrize(("body", "status", "words"), PROMPTS)
def test_prompts(client: TestClient, generator: Scripted, body: Any, status: int, words: str) -> None:
    found = refused(client, generator, PATH, body)
    assert found[0] == status
    assert words in found[1]


@pytest.mark.parametrize(("body", "status", "words"), [*FIELDS, *STEERING])
def test_fields(client: TestClient, generator: Scripted, body: Any, status: int, words: str) -> None:
    found = refused(client, generator, PATH, {"prompt": "a cat", **body})
    assert found[0] == status
    assert words in found[1]


STRONG = '{"prompt": "a", "steering": {"ops": [{"vector": "calm", "strength": 1}]}}'
USER = {"role": "user", "content": "hello"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"messages": []}, "give at least one message"),
        ({"messages": [{"role": "tool", "content": "4"}]}, "role 'tool': one of system, developer, user, assistant"),
        ({"messages": [{"role": "user"}]}, "content"),
        ({"messages": [{"role": "user", "content": None}]}, "content"),
        ({"messages": [{**USER, "tool_calls": [{}]}]}, "tool_calls are not built in"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "a part of type 'image_url' cannot be read",
        ),
        ({"messages": [{"role": "user", "content": "a\0"}]}, "NUL character"),
        ({"tools": [{"type": "function"}]}, "tools: not built in, and it would change the answer"),
        ({"tool_choice": "required"}, "tool_choice: not built in, and it would change the answer"),
        ({"functions": [{}]}, "functions: not built in, and it would change the answer"),
        ({"response_format": {"type": "json_object"}}, "response_format: not built in, and it would change the answer"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format: not built in, and it would change the answer",
        ),
        ({"audio": {"voice": "x"}}, "audio: not built in, and it would change the answer"),
        ({"modalities": ["text", "audio"]}, "modalities: not built in, and it would change the answer"),
        ({"reasoning_effort": "high"}, "reasoning_effort: not built in, and it would change the answer"),
        ({"web_search_options": {}}, "web_search_options: not built in, and it would change the answer"),
        ({"top_logprobs": 3}, "top_logprobs needs logprobs"),
        (
            {"max_tokens": 3, "max_completion_tokens": 4},
            "max_tokens and max_completion_tokens mean the same and differ",
        ),
        ({"chat_template_kwargs": {"tokenize": False}}, "'tokenize' is no switch of a template"),
        ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "'chat_template' is no switch of a template"),
        ({"chat_template_kwargs": {"broken": True}}, "has no chat template"),
        ({"best_of": 2}, "best_of: Extra inputs are not permitted"),
    ],
)
def test_chats(client: TestClient, generator: Scripted, body: Any, words: str) -> None:
    status, sentence = refused(client, generator, CHAT, {"messages": [USER], **body})
    assert status == 422
    assert words in sentence


@pytest.mark.parametrize("path", [PATH, CHAT])
@pytest.mark.parametrize(
    ("literal", "status", "words"),
    [
        (STRONG.replace("1", "NaN"), 422, "finite number"),
        (STRONG.replace("1", "-Infinity"), 422, "finite"),
        (STRONG.replace("1", "1e999"), 422, "finite"),
        ('{"prompt": "a", "temperature": NaN}', 422, "temperature"),
        ('{"prompt": "half \\ud800 of a pair"}', 422, "half of a surrogate pair"),
        ('{"prompt": "a", "max_tokens": ' + "9" * 5000 + "}", 422, ""),
        ("[" * 100_000, 422, ""),
        ("{", 422, ""),
        ("", 422, ""),
    ],
)
def test_what_json_lets_through(
    client: TestClient, generator: Scripted, path: str, literal: str, status: int, words: str
) -> None:
    if path == CHAT:
        literal = literal.replace('"prompt": "a"', '"messages": [{"role": "user", "content": "a"}]')
        literal = literal.replace('"prompt": "half', '"messages": [{"role": "user", "content": "half').replace(
            'pair"}', 'pair"}]}'
        )
    found = refused(client, generator, path, literal)
    assert found[0] in (status, 400)
    assert words in found[1]


def test_bytes_that_are_no_text(client: TestClient, generator: Scripted) -> None:
    response = client.post(PATH, content=b'{"prompt": "\xff\xfe"}', headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)
    assert response.json()["error"]["message"]
    form = client.post(PATH, content=b"prompt=a", headers={"content-type": "application/x-www-form-urlencoded"})
    assert form.status_code in (400, 415, 422)
    assert not [choices for choices in generator.said if len(choices) > 1000]


def test_a_body_beyond_the_bound_is_413(client: TestClient, generator: Scripted) -> None:
    status, sentence = refused(client, generator, PATH, {"prompt": "x" * (9 << 20)})
    assert status == 413
    assert "--max-body" in sentence


def test_after_all_this_it_still_answers(client: TestClient) -> None:
    assert client.post(PATH, json={"prompt": "a cat", "max_tokens": 2, **op()}).status_code == 200
