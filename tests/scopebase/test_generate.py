"""`scopebase generate`, and `complete` and `chat` of the Python client: the same texts as over HTTP."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.app import create_app
from schema.errors import InputError, NotFound, TooMany, WorkFailed
from schema.generation import Choice, Ended, Event, Failed, Piece
from schema.home import open_home
from schema.settings import Settings
from schema.wire.completions import Completion
from schema.wire.steering import OpSpec, Steering
from scopebase import Client
from scopebase.cli.side_by_side import Sheet
from scopebase.cli.steer import read_op, read_steering
from tests.api.generation.listening import listening
from tests.api.generation.scripted import Scripted
from tests.scopebase.test_cli import Call, call  # noqa: F401 - a fixture

FEATURE = "tiny-qwen3/2-tiny/7"
STEER = f"{FEATURE}:6:absolute"


@pytest.fixture(scope="module")
def generator() -> Scripted:
    return Scripted()


@pytest.fixture(scope="module")
def url(indexed: Settings, generator: Scripted) -> Iterator[str]:
    with listening(create_app(open_home(indexed), generator=generator)) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Client]:
    with Client(url) as made:
        yield made


# A conversation


def test_a_conversation_remembers_itself_and_steers_as_it_is_told(
    url: str,
    generator: Scripted,
    call: Call,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    typed = "hello\n/applied\n/plain\n\nagain\n/applied\n/new\n/steered\nlast\n/end\nnever\n"
    monkeypatch.setattr(sys, "stdin", StringIO(typed))
    before = len(generator.said)
    done = call("chat", "--url", url, "--steer", STEER, "--system", "be kind", "--max-tokens", "2", "--seed", "1")
    assert done.status == 0
    assert [line for line in done.out.splitlines() if line.startswith(" w")] == [
        " warm0 warm1",
        " word0 word1",
        " warm0 warm1",
    ]
    asked = [bytes(choices[0].ids[1:]).decode() for choices in generator.said[before:]]
    first = "<system>be kind<user>hello"
    assert asked == [first, f"{first}<assistant> warm0 warm1<user>again", "<system>be kind<user>last"]
    assert [bool(choices[0].ops) for choices in generator.said[before:]] == [True, False, True]
    assert f"1: add 6 absolute of {FEATURE}" in done.out
    assert "the last answer was not steered" in done.err


def test_a_conversation_from_a_file_ends_with_what_is_wrong(
    url: str,
    call: Call,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", StringIO(f"{'long ' * 100}\n"))
    done = call("chat", "--url", url)
    assert done.status == 2
    assert "maximum context length is 256 tokens" in done.err


# What is typed


@pytest.mark.parametrize(
    ("text", "mode", "unit", "expected"),
    [
        (
            "m/3-tiny/99:0.4",
            None,
            None,
            {"feature": "m/3-tiny/99", "mode": "add", "strength": 0.4, "unit": "residual_norm"},
        ),
        (
            "m/3-tiny/99:-2:unit",
            None,
            None,
            {"feature": "m/3-tiny/99", "mode": "add", "strength": -2.0, "unit": "unit"},
        ),
        ("calm@2:1.5", None, "absolute", {"vector": "calm@2", "mode": "add", "strength": 1.5, "unit": "absolute"}),
        (
            "m/3-t/9:set:2:feature_max",
            None,
            None,
            {"feature": "m/3-t/9", "mode": "set", "strength": 2.0, "unit": "feature_max"},
        ),
        ("m/3-t/9:ablate", None, None, {"feature": "m/3-t/9", "mode": "ablate", "unit": "absolute"}),
        ("m/3-t/9", "suppress", "unit", {"feature": "m/3-t/9", "mode": "suppress", "unit": "absolute"}),
        (
            "m/3-t/9:3:cap",
            "add",
            "feature_max",
            {"feature": "m/3-t/9", "mode": "cap", "strength": 3.0, "unit": "feature_max"},
        ),
    ],
)
def test_operations_as_they_are_typed(text: str, mode: str | None, unit: str | None, expected: dict[str, Any]) -> None:
    found = read_op(text, mode, unit)
    assert found == expected
    OpSpec(**found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("m/3-tiny/99", "no strength; FEATURE:STRENGTH"),
        ("m/3-tiny/99:strong", "'strong' is neither a number nor a mode"),
        ("m/3-tiny/99:1:2", "FEATURE:STRENGTH or VECTOR:STRENGTH"),
        ("m/3-tiny/99:1:add:set", "FEATURE:STRENGTH or VECTOR:STRENGTH"),
        (":1", "FEATURE:STRENGTH or VECTOR:STRENGTH"),
    ],
)
def test_operations_that_cannot_be_read(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_op(text)


def test_steering_as_json(tmp_path: Path) -> None:
    path = tmp_path / "steering.json"
    path.write_text(json.dumps({"ops": [{"vector": "calm"}], "when": {"rule": "toxic"}}))
    found = read_steering(["m/3-tiny/9:1"], f"@{path}", None, None, {"compare": True, "kl": None})
    assert found is not None
    assert [op.vector or op.feature for op in found.ops] == ["calm", "m/3-tiny/9"]
    assert found.compare
    assert found.when is not None
    assert found.when.rule == "toxic"
    assert read_steering(None, None, None, None, {"compare": True}) is None
    for text, words in (
        ("{", "is no JSON"),
        ("[]", "an object with ops"),
        ("{}", ""),
        ("@nowhere.json", "No such file"),
    ):
        if words:
            with pytest.raises(InputError, match=words):
                read_steering(None, text, None, None, {})
    with pytest.raises(InputError, match="has no operation in its ops"):
        read_steering(None, '{"compare": true}', None, None, {})


# The command


def test_a_model_loaded_here(call: Call, indexed: Settings, model_dir: Path) -> None:  # noqa: F811
    args = [
        "--home",
        indexed.home,
        "generate",
        "--model",
        model_dir,
        "the cat runs",
        "--temperature",
        0,
        "--max-tokens",
        8,
    ]
    plain = call(*args, "--json")
    assert plain.status == 0
    assert "steering_applied" not in plain.json
    steered = call(*args, "--json", "--steer", STEER, "--n", 2)
    assert [each["text"] for each in steered.json["unsteered"]] == [plain.json["choices"][0]["text"]] * 2
    assert steered.json["choices"][0]["text"] != plain.json["choices"][0]["text"]
    assert steered.json["steering_applied"]["ops"][0]["target"] == FEATURE
    alone = call(*args, "--json", "--steer", STEER, "--no-compare")
    assert "unsteered" not in alone.json
    assert alone.json["choices"][0]["text"] == steered.json["choices"][0]["text"]
    shown = call(*args, "--steer", STEER, "--seed", 4)
    assert shown.status == 0
    assert "steered" in shown.out
    assert "unsteered" in shown.out
    assert "seed 4" in shown.out
    assert f"1: add 6 absolute of {FEATURE}" in shown.out
    assert "KL of the first token" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 100


def test_a_chat_needs_a_template(call: Call, indexed: Settings, model_dir: Path, tmp_path: Path) -> None:  # noqa: F811
    args = ["--home", indexed.home, "generate", "--model", model_dir, "a cat", "--chat", "--max-tokens", 3, "--json"]
    said = call(*args)
    assert said.status == 2
    assert "has no chat template, so it is no chat model; ask /v1/completions" in said.err
    template = tmp_path / "chat.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert call(*args, "--chat-template", template).json["object"] == "chat.completion"
    missing = call(*args, "--chat-template", tmp_path / "other.jinja")
    assert missing.status == 2
    assert "No such file" in missing.err


def test_a_running_service_is_asked(call: Call, url: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(sys, "stdin", StringIO("the cat"))
    said = call("generate", "-", "--url", url, "--steer", STEER, "--max-tokens", 3, "--json")
    assert said.json["choices"][0]["text"] == " warm0 warm1 warm2"
    assert said.json["unsteered"][0]["text"] == " word0 word1 word2"
    lines = call("generate", "a", "--url", url, "--max-tokens", 2, "--json", "--stream").out.splitlines()
    texts = [choice["text"] for line in lines for choice in json.loads(line)["choices"]]
    assert "".join(texts) == " word0 word1"
    shown = call("generate", "hello", "--chat", "--url", url, "--max-tokens", 2, "--stream")
    assert "word0 word1" in shown.out
    assert "tokens read, 2 generated" in shown.out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["a"], "give either --model, which is loaded here, or --url"),
        (["a", "--model", "x", "--url", "y"], "give either --model, which is loaded here, or --url"),
        (["a", "--url", "x", "--when", "toxic"], "--when and --kl are about steering; give --steer too"),
        (["", "--url", "x"], "the prompt is empty"),
        (["a", "--url", "x", "--temperature", "9"], "temperature: Input should be less than or equal to 2"),
        (["a", "--url", "x", "--steer", "m/3-tiny/9:nan"], "strength: Input should be a finite number"),
        (["a", "--url", "x", "--steer", "m/3-tiny/9:1", "--mode", "shout"], "mode"),
    ],
)
def test_what_is_refused_before_anything_is_loaded(call: Call, args: list[str], words: str) -> None:  # noqa: F811
    said = call("generate", *args)
    assert said.status == 2
    assert words in said.err


def test_text_cannot_steer_a_terminal() -> None:
    """What a model writes is text: no escape, no direction, no markup."""
    from scopebase.cli.console import OUT

    sheet = Sheet("[bold]so\x1b[2J")
    sheet.texts[0] = "a\nb\u202ec[/bold]"
    with OUT.capture() as capture:
        OUT.print(sheet.panels())
    found = capture.get()
    assert "\x1b[2J" not in found
    assert "\u202e" not in found
    assert "[bold]so·[2J" in found
    assert "b·c[/bold]" in found


# The client


def test_the_client_completes_and_chats(client: Client) -> None:
    answer = client.complete("the cat", max_tokens=2, steering={"ops": [{"feature": FEATURE, "strength": 2.0}]})
    assert isinstance(answer, Completion)
    assert answer.choices[0].text == " warm0 warm1"
    assert answer.steering_applied is not None
    steering = Steering(ops=[OpSpec(feature=FEATURE, strength=2.0)], compare=True)
    spoken = client.chat([{"role": "user", "content": "hi"}], max_tokens=2, steering=steering, n=2)
    assert [choice.message.content for choice in spoken.choices] == [" warm0 warm1"] * 2
    assert spoken.unsteered is not None
    assert spoken.unsteered[1].message.content == " word0 word1"
    ids = client.complete([[5, 6], [7]], max_tokens=1)
    assert len(ids.choices) == 2


def test_the_client_sees_which_model_generates(client: Client) -> None:
    assert client.model("tiny-qwen3").loaded
    assert [model.loaded for model in client.models()] == [True]


def test_the_client_streams_typed_pieces(client: Client) -> None:
    steering = {"ops": [{"feature": FEATURE, "strength": 2.0}], "compare": True}
    chunks = list(client.complete("the cat", max_tokens=3, steering=steering, stream=True))
    texts = {marked: "".join(c.choices[0].text for c in chunks if c.unsteered is marked) for marked in (None, True)}
    assert texts == {None: " warm0 warm1 warm2", True: " word0 word1 word2"}
    assert chunks[-1].steering_applied is not None
    pieces = client.chat([{"role": "user", "content": "hi"}], max_tokens=2, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == " word0 word1"


def script(*events: Event) -> Callable[[Sequence[Choice], Callable[[Event], None]], None]:
    def told(_choices: Sequence[Choice], deliver: Callable[[Event], None]) -> None:
        for event in events:
            deliver(event)

    return told


def test_a_text_may_hold_what_frames_are_made_of(
    client: Client, generator: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = 'data: [DONE]\n\ndata: {"error": {}}\u2028\x85\r\n{"error":1, "status": 500}'
    monkeypatch.setattr(generator, "script", script(Piece(0, odd, (1,)), Ended(0, "stop", 1, None)))
    assert "".join(c.choices[0].text for c in client.complete("a", stream=True)) == odd


def test_the_client_raises_what_a_stream_tells(
    client: Client, generator: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = script(Piece(0, "part", (1,)), Failed(WorkFailed("cpu ran out of memory on this request")))
    monkeypatch.setattr(generator, "script", failed)
    with pytest.raises(WorkFailed, match="ran out of memory"):
        list(client.complete("a", stream=True))
    with pytest.raises(NotFound, match="no SAE named"):
        list(client.complete("a", stream=True, steering={"ops": [{"feature": "x/1"}]}))


def test_the_client_does_not_take_a_part_for_the_whole() -> None:
    def cut(_request: httpx.Request) -> httpx.Response:
        frame = {"id": "x", "created": 1, "model": "m", "system_fingerprint": "f", "object": "text_completion"}
        return httpx.Response(200, content=f"data: {json.dumps({**frame, 'choices': []})}\n\n".encode())

    with Client(transport=httpx.MockTransport(cut)) as client:
        stream = client.complete("a", stream=True)
        next(stream)
        with pytest.raises(WorkFailed, match="broke off before its end"):
            next(stream)


def test_the_client_waits_for_its_turn_in_a_full_queue(
    client: Client, generator: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("scopebase.client.transport.time.sleep", waited.append)
    monkeypatch.setattr(generator, "refusal", TooMany("64 requests wait for the model", 3))
    for stream in (True, False):
        with pytest.raises(TooMany, match="64 requests wait"):
            list(client.complete("a", stream=stream))
    assert waited == [3.0] * 8
