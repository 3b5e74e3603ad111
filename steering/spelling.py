"""Tokens to text, one by one, so that what was said never changes: a character of several tokens is said when it is complete."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Collection
from typing import Any, Protocol

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_WINDOW = 8
"""Tokens of the prompt that are looked back on, for tokenizers whose spelling depends on what went before."""


class Speller(Protocol):
    """One text as it grows."""

    def feed(self, token: int) -> str:
        """The characters that a token completes."""

    def rest(self) -> str:
        """What is left of bytes that never became a character."""

    @property
    def open(self) -> bool:
        """A character is not complete."""


class Spelling:
    """How a tokenizer spells; makes a speller for each text."""

    def __init__(self, tokenizer: Any, special_ids: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(int(id_) for id_ in special_ids)
        self._bytes = _byte_rule(json.loads(tokenizer.backend_tokenizer.to_str())["decoder"])
        self._known: dict[int, bytes] = {}

    def speller(self, prompt: list[int]) -> Speller:
        """For the text after a prompt."""
        return _Bytes(self) if self._bytes is not None else _Windows(self, prompt[-_WINDOW:])

    def piece(self, token: int) -> bytes:
        """A token's bytes; none of a special token."""
        found = self._known.get(token)
        if found is None:
            assert self._bytes is not None
            raw = None if token in self._special else self._tokenizer.convert_ids_to_tokens(token)
            found = self._known[token] = self._bytes(raw) if raw else b""
        return found

    def decode(self, ids: list[int]) -> str:
        kept = [id_ for id_ in ids if id_ not in self._special]
        return str(self._tokenizer.decode(kept, clean_up_tokenization_spaces=False))


class _Bytes:
    """Tokens that are bytes: they are joined, and read as UTF-8."""

    def __init__(self, spelling: Spelling) -> None:
        self._spelling = spelling
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        return self._decoder.decode(self._spelling.piece(token))

    def rest(self) -> str:
        return self._decoder.decode(b"", final=True)

    @property
    def open(self) -> bool:
        return bool(self._decoder.getstate()[0])


class _Windows:
    """Any other tokenizer: the text of a few last tokens, with the newest against without it."""

    def __init__(self, spelling: Spelling, before: list[int]) -> None:
        self._spelling = spelling
        self._ids, self._said = before, spelling.decode(before)
        self.open = False

    def feed(self, token: int) -> str:
        self._ids.append(token)
        return self._settle(final=False)

    def rest(self) -> str:
        return self._settle(final=True)

    def _settle(self, *, final: bool) -> str:
        whole = self._spelling.decode(self._ids)
        self.open = whole.endswith("\N{REPLACEMENT CHARACTER}") and not final
        if self.open:
            return ""
        new = whole[len(self._said) :]
        self._ids = self._ids[-_WINDOW:]
        self._said = self._spelling.decode(self._ids)
        return new


def _byte_rule(decoder: Any) -> Any:
    """How a token becomes bytes, where a tokenizer's text is its tokens' bytes joined; None where it is not.

    A `Strip` at the start is left out: it takes the space before a whole text, and what is spelled here follows a prompt.
    """
    steps = [] if decoder is None else decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        table = _byte_level()
        return lambda token: bytes(table[c] for c in token) if all(c in table for c in token) else token.encode()
    fused = "Fuse" in kinds and set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip"}
    if not fused or any(step["type"] == "Strip" and step["stop"] for step in steps):
        return None
    swaps = [(step["pattern"].get("String"), step["content"]) for step in steps if step["type"] == "Replace"]
    if any(pattern is None for pattern, _ in swaps):
        return None
    return lambda token: _fallback(token, swaps, "ByteFallback" in kinds)


def _fallback(token: str, swaps: list[tuple[str, str]], bytes_too: bool) -> bytes:
    if bytes_too and (byte := _BYTE.fullmatch(token)):
        return bytes([int(byte[1], 16)])
    for pattern, content in swaps:
        token = token.replace(pattern, content)
    return token.encode("utf-8", "replace")


def _byte_level() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for characters from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}
