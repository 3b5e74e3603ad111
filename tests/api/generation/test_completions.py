"""/v1/completions and /v1/chat/completions by OpenAI's official clients, over the real engine, against the plain model of transformers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from openai.types import Completion
from openai.types.chat import ChatCompletion
from transformers import AutoModelForCausalLM, AutoTokenizer

from api.app import create_app
from api.services.generation.prepared import seed_of
from schema.home import open_home
from schema.settings import Settings
from steering.generator import TorchGenerator, open_generator
from tests.api.generation.listening import listening

PROMPT = "the cat runs under"
FEATURE = "tiny-qwen3/2-tiny/7"
TEMPLATE = (
    "<s>{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if loud %}LOUD {% endif %}assistant:"
)
MODEL = "tiny-qwen3"


@pytest.fixture(scope="module")
def generator(indexed: Settings, model_dir: Path) -> Iterator[TorchGenerator]:
    home = open_home(indexed)
    made = open_generator(home, str(model_dir), chat_template=TEMPLATE)
    yield made
    made.close(0)
    home.close()


@pytest.fixture(scope="module")
def url(indexed: Settings, generator: TorchGenerator) -> Iterator[str]:
    with listening(create_app(open_home(indexed), generator=generator)) as address:
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0)


class Plain:
    """The model by transformers alone, greedy, with a direction added after a block if wanted."""

    def __init__(self, model_dir: Path, release_dir: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(model_dir)
        self.model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
        self.columns = torch.load(release_dir / "layer2.sae.pt", weights_only=True)["W_dec"].half().float()

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    @torch.inference_mode()
    def logits(self, ids: list[int], added: torch.Tensor | None = None) -> torch.Tensor:
        """(n, vocabulary). The special token at the front is left alone."""

        def add(_module: Any, _inputs: Any, out: Any) -> Any:
            moved = (out[0] if isinstance(out, tuple) else out).clone()
            moved[:, 1:] += added
            return (moved, *out[1:]) if isinstance(out, tuple) else moved

        with ExitStack() as stack:
            if added is not None:
                stack.callback(self.model.model.layers[2].register_forward_hook(add).remove)
            return self.model(input_ids=torch.tensor([ids])).logits[0]  # type: ignore[no-any-return]

    def greedy(self, ids: list[int], n: int, added: torch.Tensor | None = None) -> list[int]:
        made: list[int] = []
        for _ in range(n):
            made.append(int(self.logits([*ids, *made], added)[-1].argmax()))
            if made[-1] == 1:
                break
        return made

    def text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


@pytest.fixture(scope="module")
def plain(model_dir: Path, release_dir: Path) -> Plain:
    return Plain(model_dir, release_dir)


def complete(client: openai.OpenAI, **asked: Any) -> Completion:
    steering = asked.pop("steering", None)
    extra = {**asked.pop("extra_body", {}), **({"steering": steering} if steering else {})}
    given = {"model": MODEL, "prompt": PROMPT, "max_tokens": 12, "temperature": 0, **asked}
    return client.completions.create(**given, extra_body=extra)  # type: ignore[no-any-return]


def add(strength: float, **more: Any) -> dict[str, Any]:
    return {"ops": [{"feature": FEATURE, "strength": strength}], **more}


# Completions


def test_greedy_is_the_models_own(client: openai.OpenAI, plain: Plain) -> None:
    answer = complete(client)
    ids = plain.ids(PROMPT)
    expected = plain.greedy(ids, 12)
    assert answer.choices[0].text == plain.text(expected)
    assert answer.choices[0].finish_reason == ("stop" if expected[-1] == 1 else "length")
    assert (answer.object, answer.model, answer.id[:5]) == ("text_completion", MODEL, "cmpl-")
    usage = answer.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(ids), len(expected))
    assert usage.total_tokens == len(ids) + len(expected)
    assert "steering_applied" not in (answer.model_extra or {})


def test_steered_is_what_a_hook_of_ones_own_makes(client: openai.OpenAI, plain: Plain) -> None:
    """Another text than unsteered; the answer says what was done to how many tokens."""
    answer = complete(client, steering=add(6.0, compare=True), extra_body={"ignore_eos": True})
    ids = plain.ids(PROMPT)
    column = 6.0 * plain.columns[:, 7]
    expected = plain.text(plain.greedy(ids, 12, column))
    assert answer.choices[0].text == expected
    unsteered = answer.unsteered[0]  # type: ignore[attr-defined]
    assert unsteered["text"] == plain.text(plain.greedy(ids, 12)) != expected
    assert (unsteered["index"], unsteered["seed"]) == (1, answer.choices[0].seed)  # type: ignore[attr-defined]
    applied = answer.steering_applied  # type: ignore[attr-defined]
    (op,) = applied["ops"]
    assert (op["target"], op["layer"], op["prompt_tokens"], op["generated_tokens"]) == (FEATURE, 2, len(ids) - 1, 11)
    assert 0 < op["mean_relative_norm"] <= op["max_relative_norm"]
    first = [plain.logits(ids, each)[-1].double().log_softmax(0) for each in (column, None)]
    kl = float((first[0].exp() * (first[0] - first[1])).sum())
    assert applied["kl_first"] == pytest.approx(kl, rel=1e-3)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 24


def test_strength_0_is_unsteered(client: openai.OpenAI) -> None:
    for temperature in (0, 1):
        asked = {"temperature": temperature, "seed": 3}
        assert complete(client, steering=add(0.0), **asked).choices[0].text == complete(client, **asked).choices[0].text


def test_a_seed_repeats_the_answer_and_each_choice_alone(client: openai.OpenAI) -> None:
    asked = {"temperature": 1.0, "n": 4}
    drawn = complete(client, **asked)
    texts = [choice.text for choice in drawn.choices]
    assert len(set(texts)) > 1
    seed = drawn.seed  # type: ignore[attr-defined]
    again = complete(client, **asked, seed=seed)
    assert [choice.text for choice in again.choices] == texts
    assert [choice.seed for choice in drawn.choices] == [seed_of(seed, i) for i in range(4)]  # type: ignore[attr-defined]
    for choice in drawn.choices:
        alone = complete(client, temperature=1.0, seed=choice.seed)  # type: ignore[attr-defined]
        assert alone.choices[0].text == choice.text
    other = complete(client, **asked, seed=seed + 1)
    assert [choice.text for choice in other.choices] != texts


def test_several_prompts_in_every_form(client: openai.OpenAI, plain: Plain) -> None:
    prompts = [PROMPT, "La la la, the moon"]
    alone = [complete(client, prompt=prompt).choices[0].text for prompt in prompts]
    both = complete(client, prompt=prompts, n=2)
    assert [(c.index, c.text) for c in both.choices] == list(enumerate([alone[0], alone[0], alone[1], alone[1]]))
    assert both.usage is not None
    assert both.usage.prompt_tokens == sum(len(plain.ids(prompt)) for prompt in prompts)
    ids = [plain.ids(prompt) for prompt in prompts]
    assert complete(client, prompt=ids[0]).choices[0].text == alone[0]
    assert [c.text for c in complete(client, prompt=ids).choices] == alone
    assert complete(client, prompt=PROMPT, echo=True).choices[0].text == PROMPT + alone[0]
    assert complete(client, prompt=ids[0][1:], echo=True).choices[0].text.startswith(PROMPT)


def test_stop_strings_end_a_choice_before_them(client: openai.OpenAI) -> None:
    whole = complete(client, extra_body={"ignore_eos": True}).choices[0].text
    stop = whole[4:7]
    place = whole.index(stop)
    for given in (stop, [stop], ["never in it", stop]):
        answer = complete(client, stop=given, extra_body={"ignore_eos": True})
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == (whole[:place], "stop")
    pieces = client.completions.create(
        model=MODEL,
        prompt=PROMPT,
        max_tokens=12,
        temperature=0,
        stop=stop,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    assert "".join(piece.choices[0].text for piece in pieces) == whole[:place]


def test_a_condition_says_at_how_many_tokens_it_held(client: openai.OpenAI) -> None:
    """One that always holds steers as if there were none; one that never does leaves the text as it is, and says so."""
    plain, steered = (complete(client, steering=each, extra_body={"ignore_eos": True}) for each in (None, add(6.0)))
    leaf = {"feature": "tiny-qwen3/0-tiny/0", "above": 6e4}
    never = complete(
        client, steering=add(6.0, when={"expression": leaf, "scope": "token"}), extra_body={"ignore_eos": True}
    )
    assert never.choices[0].text == plain.choices[0].text
    assert never.steering_applied["condition_tokens"] == 0  # type: ignore[attr-defined]
    assert never.steering_applied["ops"][0]["mean_relative_norm"] is None  # type: ignore[attr-defined]
    always = {"expression": {"not": leaf}, "scope": "token"}
    found = complete(client, steering=add(6.0, when=always), extra_body={"ignore_eos": True})
    assert found.choices[0].text == steered.choices[0].text
    assert found.steering_applied["condition_tokens"] > 0  # type: ignore[attr-defined]


def test_who_leaves_frees_the_place_in_the_batch(indexed: Settings, model_dir: Path) -> None:
    """One row, and a minute's work for it: once its reader has left, the next one is served at once."""
    home = open_home(indexed)
    narrow = open_generator(home, str(model_dir), max_rows=1)
    with listening(create_app(home, generator=narrow)) as address:
        impatient = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        long = {"ignore_eos": True}
        begun = impatient.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=240, n=128, stream=True, extra_body=long
        )
        next(iter(begun))
        begun.close()
        begin = time.monotonic()
        assert complete(impatient, max_tokens=3).choices[0].text
        assert time.monotonic() - begin < 15
    narrow.close(0)


def test_default_length_is_openais(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=PROMPT, extra_body={"ignore_eos": True})
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16
    full = client.completions.create(model=MODEL, prompt=[5] * 250, extra_body={"ignore_eos": True})
    assert full.usage is not None
    assert full.usage.completion_tokens == 6  # what the context leaves


def test_logprobs_are_the_models(client: openai.OpenAI, plain: Plain) -> None:
    answer = complete(client, logprobs=3, extra_body={"ignore_eos": True})
    told = answer.choices[0].logprobs
    assert told is not None
    ids = plain.ids(PROMPT)
    made = plain.greedy(ids, 12)
    scores = plain.logits([*ids, *made])[len(ids) - 1 : -1].log_softmax(1)
    assert told.token_logprobs == pytest.approx([float(scores[i, token]) for i, token in enumerate(made)], abs=1e-4)
    assert told.tokens is not None
    assert told.text_offset is not None
    assert told.top_logprobs is not None
    for i, (token, offset, top) in enumerate(zip(told.tokens, told.text_offset, told.top_logprobs, strict=True)):
        assert offset == sum(map(len, told.tokens[:i]))
        assert top[token] == pytest.approx(told.token_logprobs[i])  # type: ignore[index]
        assert sorted(top.values(), reverse=True)[:1] == pytest.approx([float(scores[i].max())], abs=1e-4)
    chosen = complete(client, logprobs=0).choices[0].logprobs
    assert chosen is not None
    assert all(len(top) == 1 for top in chosen.top_logprobs or [])


def test_logit_bias_and_penalties_reach_the_sampler(client: openai.OpenAI, plain: Plain) -> None:
    answer = complete(client, max_tokens=4, logit_bias={"70": 100}, logprobs=0)
    assert answer.choices[0].text == plain.text([70] * 4)
    made: list[int] = []
    for _ in range(6):
        logits = plain.logits([*plain.ids(PROMPT), *made])[-1].clone()
        logits[[70, 71, 72]] += 90
        for token in set(made):
            logits[token] -= 1.5 + 0.5 * made.count(token)
        made.append(int(logits.argmax()))
    penalised = complete(
        client,
        max_tokens=6,
        logit_bias={"70": 90, "71": 90, "72": 90},
        presence_penalty=1.5,
        frequency_penalty=0.5,
    )
    assert penalised.choices[0].text == plain.text(made)
    assert len(set(made)) > 1


# Streams


@pytest.mark.parametrize("steering", [None, add(6.0), add(6.0, compare=True)])
def test_a_stream_is_the_same_answer_in_pieces(client: openai.OpenAI, steering: Any) -> None:
    asked: dict[str, Any] = {"temperature": 1.0, "seed": 5, "n": 2, "logprobs": 2, "steering": steering}
    whole = complete(client, **asked)
    chunks = list(complete(client, **asked, stream=True, stream_options={"include_usage": True}))  # type: ignore[call-overload]
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    *pieces, last = chunks
    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in pieces)
    assert (last.choices, last.usage) == ([], whole.usage)
    assert last.model_extra == {k: v for k, v in (whole.model_extra or {}).items() if k != "unsteered"}
    twins = (whole.model_extra or {}).get("unsteered", [])
    for choice in [*whole.choices, *(type(whole.choices[0]).construct(**each) for each in twins)]:
        own = [chunk for chunk in pieces if chunk.choices[0].index == choice.index]
        assert "".join(chunk.choices[0].text for chunk in own) == choice.text
        assert [c.choices[0].finish_reason for c in own] == [None] * (len(own) - 1) + [choice.finish_reason]
        assert all((chunk.model_extra or {}).get("unsteered", False) == (choice.index >= 2) for chunk in own)
        told = [chunk.choices[0].logprobs for chunk in own if chunk.choices[0].logprobs]
        expected = choice.logprobs if isinstance(choice.logprobs, dict) else choice.logprobs.model_dump()
        assert [offset for each in told for offset in each.text_offset] == expected["text_offset"]
        assert [token for each in told for token in each.tokens] == expected["tokens"]


def test_without_usage_the_last_chunk_ends_a_choice_and_says_what_steering_did(client: openai.OpenAI) -> None:
    """So that a script which reads `choices[0]` of each chunk works."""
    *rest, last = complete(client, steering=add(6.0, compare=True), stream=True)  # type: ignore[misc]
    assert all(len(chunk.choices) == 1 for chunk in (*rest, last))
    assert last.choices[0].finish_reason is not None
    assert last.model_extra["steering_applied"]["ops"][0]["target"] == FEATURE
    assert not any("steering_applied" in (chunk.model_extra or {}) for chunk in rest)


def test_many_at_once_by_the_asynchronous_client(url: str, client: openai.OpenAI) -> None:
    """Each as if it were alone."""
    prompts = [f"{word} gives three red" for word in ("Ann", "the sun", "a dog", "how many", "moon", "La la la")]
    steerings = [add(float(i)) if i % 2 else None for i in range(len(prompts))]

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as many:

            async def one(prompt: str, steering: Any) -> str:
                extra = {"steering": steering} if steering else {}
                made = await many.completions.create(
                    model=MODEL, prompt=prompt, max_tokens=9, temperature=0, stream=True, extra_body=extra
                )
                return "".join([chunk.choices[0].text async for chunk in made])

            return await asyncio.gather(*map(one, prompts, steerings))

    found = asyncio.run(ask_all())
    for prompt, steering, text in zip(prompts, steerings, found, strict=True):
        assert complete(client, prompt=prompt, steering=steering, max_tokens=9).choices[0].text == text


# Chats

MESSAGES: list[Any] = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "a red apple?"}]


def chat(client: openai.OpenAI, **asked: Any) -> ChatCompletion:
    given = {"model": MODEL, "messages": MESSAGES, "max_completion_tokens": 9, "temperature": 0, **asked}
    return client.chat.completions.create(**given)  # type: ignore[no-any-return]


def test_a_chat_is_a_completion_of_the_template(client: openai.OpenAI, plain: Plain) -> None:
    answer = chat(client, logprobs=True, top_logprobs=2, extra_body={"ignore_eos": True})
    text = "<s>system: Be brief.\nuser: a red apple?\nassistant:"
    ids = list(plain.tokenizer(text, add_special_tokens=False)["input_ids"])
    made = plain.greedy(ids, 9)
    assert answer.choices[0].message.content == plain.text(made)
    assert (answer.choices[0].message.role, answer.object) == ("assistant", "chat.completion")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(ids)
    told = answer.choices[0].logprobs
    assert told is not None
    scores = plain.logits([*ids, *made])[len(ids) - 1 : -1].log_softmax(1)
    for i, token in enumerate(told.content or []):
        assert token.logprob == pytest.approx(float(scores[i, made[i]]), abs=1e-4)
        assert [each.logprob for each in token.top_logprobs] == pytest.approx(
            scores[i].topk(2).values.tolist(), abs=1e-4
        )
        assert token.bytes is None or bytes(token.bytes).decode() == token.token
    parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in MESSAGES]
    assert chat(client, messages=parts, extra_body={"ignore_eos": True}).choices[0].message.content == plain.text(made)


def test_a_chat_streams_with_a_role_first(client: openai.OpenAI) -> None:
    whole = chat(client, extra_body={"steering": add(6.0)})
    chunks = list(chat(client, stream=True, extra_body={"steering": add(6.0)}))  # type: ignore[call-overload]
    assert (chunks[0].choices[0].delta.role, chunks[0].choices[0].delta.content) == ("assistant", "")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].model_extra["steering_applied"] == whole.model_extra["steering_applied"]  # type: ignore[index]
    assert chunks[0].object == "chat.completion.chunk"


def test_the_clients_own_accumulator_keeps_steered_and_unsteered_apart(client: openai.OpenAI) -> None:
    steering = {"steering": add(6.0, compare=True)}
    whole = chat(client, extra_body=steering)
    made = client.chat.completions.stream(
        model=MODEL, messages=MESSAGES, max_completion_tokens=9, temperature=0, extra_body=steering
    )
    with made as stream, pytest.raises(openai.LengthFinishReasonError) as raised:
        stream.get_final_completion()
    twin = whole.unsteered[0]["message"]["content"]  # type: ignore[attr-defined]
    found = [choice.message.content for choice in raised.value.completion.choices]
    assert found == [whole.choices[0].message.content, twin]


def test_switches_of_a_template(client: openai.OpenAI) -> None:
    plainly = chat(client).usage
    loudly = chat(client, extra_body={"chat_template_kwargs": {"loud": True}}).usage
    assert plainly is not None
    assert loudly is not None
    assert loudly.prompt_tokens > plainly.prompt_tokens


def test_fields_without_meaning_change_nothing(client: openai.OpenAI) -> None:
    harmless = {"user": "ann", "store": False, "metadata": {"a": "b"}, "service_tier": "auto", "safety_identifier": "x"}
    neutral = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "parallel_tool_calls": True}
    asked = {**harmless, **neutral, "modalities": ["text"], "prompt_cache_key": "k", "n": None, "stop": None}
    assert chat(client, **asked).choices[0].message == chat(client).choices[0].message


# Models


def test_models_are_listed_as_openais_clients_expect(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert (model.id, model.object, model.owned_by, model.loaded) == (MODEL, "model", "scopebase", True)  # type: ignore[attr-defined]
    assert model.created > 1_700_000_000
    assert client.models.retrieve(MODEL) == model
    facts = model.steering  # type: ignore[attr-defined]
    assert (facts["engine"], facts["layers"], facts["max_ops"]) == ("torch", [0, 1, 2, 3], 16)
    assert facts["saes"] == [f"{MODEL}/{layer}-tiny" for layer in facts["layers"]]
    assert ("suppress" in facts["modes"], "feature_max" in facts["units"]) == (True, True)
    with pytest.raises(openai.NotFoundError, match="no model named 'tiny-qwen'; did you mean tiny-qwen3"):
        client.models.retrieve("tiny-qwen")


@pytest.mark.parametrize("name", [MODEL, "Some-Lab/Tiny-Qwen3"])
def test_the_loaded_model_goes_by_its_name_and_its_hub_id(client: openai.OpenAI, name: str) -> None:
    assert complete(client, model=name).model == MODEL


def test_another_model_is_not_there(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="model 'gpt-4o' is not loaded here, tiny-qwen3 is"):
        complete(client, model="gpt-4o")
