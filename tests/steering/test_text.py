"""Tokens become text that never changes once it is said, and ends where a stop string begins."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from schema.generation import Piece, Sampling
from steering.sampler import Draw, Sampler
from steering.spelling import Spelling
from steering.stops import Stops
from steering.writing import Writer
from tests.making import make_tokenizer

TEXTS = [
    "Once upon a time, 3 cats.",
    "naïve Ωmega ☃ 汉字かな 👩‍👩‍👧 e\u0301",
    "  two  spaces\n\tand tabs ",
    "ب\u200f\u0000\x7f",
]


def byte_level() -> Any:
    return make_tokenizer()


def byte_fallback() -> Any:
    """As SentencePiece models are converted: pieces with ▁ for a space, and bytes for what they lack."""
    pieces = [
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *"▁abcdefghijklmnopqrstuvwxyzO.,3",
        "▁t",
        "at",
    ]
    vocabulary = {piece: id_ for id_, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "t"), ("a", "t")], byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def metaspace() -> Any:
    """A decoder that is none of the common ones, so that texts are decoded in windows."""
    vocabulary = {"<s>": 0, "</s>": 1} | {c: i + 2 for i, c in enumerate(sorted({*"▁", *"".join(TEXTS)}))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("make", [byte_level, byte_fallback, metaspace])
def test_pieces_joined_are_the_text(make: Any) -> None:
    """Nothing is lost, nothing said twice, and no half character is ever said; special tokens are not text."""
    tokenizer = make()
    spelling = Spelling(tokenizer, [0, 1])
    assert (spelling._bytes is None) == (make is metaspace)
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        prompt = tokenizer.encode("a cat", add_special_tokens=False)
        speller = spelling.speller(prompt)
        parts = [speller.feed(id_) for token in ids for id_ in (token, 0)]
        assert "".join(parts) + speller.rest() == text
        assert not any("\N{REPLACEMENT CHARACTER}" in part for part in parts)
        assert all(part == "" for part in parts[1::2])


def test_bytes_that_are_no_character_become_the_replacement() -> None:
    tokenizer = byte_level()
    euro = tokenizer.encode("€", add_special_tokens=False)
    assert len(euro) == 3
    speller = Spelling(tokenizer, [0, 1]).speller([])
    said = [speller.feed(id_) for id_ in (*euro[:2], *tokenizer.encode("a", add_special_tokens=False), euro[0])]
    assert said == ["", "", "\N{REPLACEMENT CHARACTER}a", ""]
    assert speller.open
    assert speller.rest() == "\N{REPLACEMENT CHARACTER}"


def written(text: str, cuts: list[int], stops: list[str]) -> tuple[str, bool, list[str], list[int]]:
    """A text in tokens of the test's own, through a writer: what it says, whether it stopped, in which parts, and its tokens."""
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    tokens = [text[a:b] for a, b in itertools.pairwise(edges)]

    class Given:
        open = False

        def feed(self, token: int) -> str:
            return tokens[token]

        def rest(self) -> str:
            return ""

    writer = Writer(0, Given(), stops, str)
    pieces: list[Piece | None] = []
    for token in range(len(tokens)):
        pieces.append(writer.add(token, None))
        if writer.stopped:
            break
    pieces.append(writer.finish())
    parts = [piece.text for piece in pieces if piece is not None]
    return "".join(parts), writer.stopped, parts, [id_ for piece in pieces if piece is not None for id_ in piece.ids]


@given(
    st.text("ab ", max_size=24),
    st.lists(st.integers(0, 100), max_size=12),
    st.lists(st.text("ab ", min_size=1, max_size=5), max_size=6),
)
@settings(max_examples=300, deadline=None)
def test_a_text_ends_before_the_first_stop_string(text: str, cuts: list[int], stops: list[str]) -> None:
    """However it is cut into tokens: the stop string that is complete first counts, the longest of those that end there."""
    ends = [(at + len(stop), -len(stop)) for stop in stops for at in range(len(text)) if text.startswith(stop, at)]
    expected = text if not ends else text[: min(ends)[0] + min(ends)[1]]
    said, stopped, parts, tokens = written(text, cuts, stops)
    assert (said, stopped) == (expected, bool(ends))
    assert tokens == list(range(len(tokens)))
    for i in range(1, len(parts)):
        before = "".join(parts[:i])
        assert expected.startswith(before)


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    said = written("abcabd", list(range(6)), ["abd", "zz"])
    assert said == ("abc", True, ["abc"], [0, 1, 2])
    assert written("abcx", list(range(4)), ["abd"])[2] == ["abc", "x"]


def test_ten_thousand_stop_strings_cost_little() -> None:
    """Less than a millisecond a token, where asking for each would take ten."""
    stops = [f"stop number {i} of many" for i in range(10_000)]
    found = Stops(stops)
    text = "this text speaks of stop number 9x and of stop number 77 of ma" * 5
    begin = time.perf_counter()
    for end in range(0, len(text), 4):
        assert found.find(text[: end + 4], end) is None
        found.held(text[: end + 4])
    assert (time.perf_counter() - begin) / (len(text) / 4) < 1e-3
    assert found.held("so: stop number 77 of m") == len("stop number 77 of m")
    assert found.find("so: stop number 77 of many", 25) == 4


def shares(sampling: Sampling, logits: torch.Tensor, n: int = 4000) -> torch.Tensor:
    """How often each token is drawn, beside a neighbour that changes."""
    draw = Draw(sampling, logits.shape[0], torch.device("cpu"))
    neighbour = Draw(Sampling(1, temperature=0.7, seed=9), logits.shape[0], torch.device("cpu"))
    sampler = Sampler([draw, neighbour], torch.device("cpu"))
    both = torch.stack([logits, torch.zeros_like(logits)])
    drawn = torch.tensor([sampler.choose(both).ids[0] for _ in range(n)])
    return torch.bincount(drawn, minlength=len(logits)) / n


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"temperature": 0.5}, [0, 1, 2, 3, 4, 5]),
        ({"top_k": 3}, [0, 2, 4]),
        ({"top_p": 0.6}, [0, 2]),
        ({"top_p": 0.0}, [0]),
        ({"top_k": 4, "top_p": 0.8}, [0, 2, 4]),
        ({"temperature": 1e-6}, [0]),
    ],
)
def test_tokens_are_drawn_as_often_as_they_should(changes: dict[str, Any], kept: list[int]) -> None:
    logits = torch.tensor([2.0, -1.0, 1.5, -0.5, 1.0, -2.0])
    sampling = Sampling(1, **{"seed": 5, **changes})
    expected = torch.zeros(6, dtype=torch.double)
    expected[kept] = (logits.double()[kept] / sampling.temperature).softmax(0)
    torch.testing.assert_close(shares(sampling, logits).double(), expected, atol=0.025, rtol=0)


def test_top_p_reaches_beyond_the_likeliest_tokens() -> None:
    """A flat distribution over 1,000 tokens: half of them are kept, more than are looked at first."""
    logits = torch.linspace(0.01, 0, 1000)
    drawn = shares(Sampling(1, top_p=0.5, seed=3), logits, 2000).nonzero()[:, 0]
    assert 400 < int(drawn.max()) <= 500


def test_greedy_takes_the_lower_of_equal_tokens() -> None:
    sampler = Sampler([Draw(Sampling(1, temperature=0), 5, torch.device("cpu"))], torch.device("cpu"))
    assert sampler.choose(torch.tensor([[0.0, 3.0, 3.0, 1.0, 3.0]])).ids == [1]
