"""The short form of a condition, `gsm8k >= 5% and not math[level>=4]`, as the JSON that `POST /v1/features/query` takes.

expression   = all { "or" all }
all          = one { "and" one }
one          = "not" one | "(" expression ")" | leaf
leaf         = part { bound }                               fires in a dataset or slice; without a bound: in 1 sample
             | "density" [ "(" name ")" ] bound { bound }   share of tokens
             | "max" [ "(" name ")" ] bound { bound }       largest activation
             | ( "lift" | "difference" | "q" ) "(" part "," part ")" bound { bound }
             | "label" "~" text | "labelled"
part         = name [ "[" field { "," field } "]" ]
field        = [ "not" ] name ( "=" value { "|" value } | "~" text | bound )
bound        = ( ">=" | "<=" ) number [ "%" ]
"""

from __future__ import annotations

import json
import re
from typing import Any

from schema.errors import InputError

_TOKEN = re.compile(
    r"""\s*(?: (?P<text>"(?:[^"\\]|\\.)*"|'[^']*')
             | (?P<symbol>>=|<=|[()\[\],~=|])
             | (?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?%?(?![\w@.-]))
             | (?P<word>[\w][\w.@+-]*) )""",
    re.X,
)
_WORDS = {"true": True, "false": False, "null": None}
_DEPTH = 60
COMPARISONS = {"lift": "lift", "difference": "rate_difference", "q": "q_value"}


def parse(text: str) -> dict[str, Any]:
    """The condition that an expression means.

    Raises:
        InputError: it means none; says where.
    """
    reader = _Reader(text)
    condition = reader.expression(0)
    reader.end()
    return condition


def parse_pair(text: str) -> list[dict[str, Any]]:
    """The two parts of `A, B`."""
    reader = _Reader(text)
    pair = [reader.part()]
    reader.take(",")
    pair.append(reader.part())
    reader.end()
    return pair


def parse_part(text: str) -> dict[str, Any]:
    """A dataset or a slice of one, `mmlu[subject=anatomy]`. Without brackets it is a name as it stands.

    Raises:
        InputError: no slice; says where.
    """
    if "[" not in text:
        return {"dataset": text}
    reader = _Reader(text)
    part = reader.part()
    reader.end("the end")
    return part


class _Reader:
    """Reads an expression from the left, one token ahead."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str, int]] = []
        place = 0
        while text[place:].strip():
            match = _TOKEN.match(text, place)
            if match is None:
                rest = text[place:].lstrip()
                at = len(text) - len(rest) + 1
                raise InputError(f"expression: {rest[:20].rstrip()!r} (character {at}) is not understood")
            kind = str(match.lastgroup)
            self.tokens.append((kind, match[kind], match.start(kind)))
            place = match.end()
        self.at = 0

    def expression(self, depth: int) -> dict[str, Any]:
        return self._joined("or", depth, lambda: self._joined("and", depth, lambda: self._one(depth)))

    def _joined(self, word: str, depth: int, read: Any) -> dict[str, Any]:
        found = [read()]
        while self._is("word", word):
            self.at += 1
            found.append(read())
        return found[0] if len(found) == 1 else {word: found}

    def _one(self, depth: int) -> dict[str, Any]:
        if depth > _DEPTH:
            raise InputError(f"expression: nested more than {_DEPTH} deep; write it flatter")
        if self._skip("word", "not"):
            return {"not": self._one(depth + 1)}
        if self._skip("symbol", "("):
            found = self.expression(depth + 1)
            self.take(")")
            return found
        return self._leaf()

    def _leaf(self) -> dict[str, Any]:
        kind, word, _ = self._peek()
        following = self.tokens[self.at + 1][1] if self.at + 1 < len(self.tokens) else ""
        if kind == "word" and word == "labelled":
            self.at += 1
            return {"labelled": True}
        if kind == "word" and word == "label" and following == "~":
            self.at += 2
            return {"label": self._word("the text of a label")}
        if kind == "word" and word in ("density", "max") and following in ("(", ">=", "<="):
            return self._profile("density" if word == "density" else "max_activation")
        if kind == "word" and word in COMPARISONS and following == "(":
            return self._comparison(COMPARISONS[word])
        part = self.part()
        while self._is_bound():
            end, number, share = self._bound()
            key = f"{end}_{'rate' if share or number != int(number) or '.' in self._before() else 'count'}"
            part[key] = int(number) if key.endswith("count") else number
        return part

    def _profile(self, name: str) -> dict[str, Any]:
        self.at += 1
        found: dict[str, Any] = {}
        if self._skip("symbol", "("):
            found["dataset"] = self._word("a dataset")
            self.take(")")
        return found | {name: self._bounds()}

    def _comparison(self, name: str) -> dict[str, Any]:
        self.at += 2
        pair = [self.part()]
        self.take(",")
        pair.append(self.part())
        self.take(")")
        return {"compare": pair} | {f"{end}_{name}": number for end, number in self._bounds().items()}

    def part(self) -> dict[str, Any]:
        """A dataset, or a slice of one."""
        found: dict[str, Any] = {"dataset": self._word("a dataset, 'not' or '('")}
        if self._skip("symbol", "["):
            while True:
                key = "where_not" if self._skip("word", "not") else "where"
                name = self._word("a field")
                fields = found.setdefault(key, {})
                fields[name] = self._wanted(fields.get(name))
                if not self._skip("symbol", ","):
                    break
            self.take("]")
        return found

    def _wanted(self, before: Any) -> Any:
        """A field's condition; both ends of a range may be given one after the other."""
        if self._skip("symbol", "~"):
            return {"contains": self._word("a text")}
        if self._is_bound():
            ends = {end: int(number) if number == int(number) else number for end, number in self._bounds().items()}
            return {**(before if isinstance(before, dict) else {}), **ends}
        self.take("=")
        values = [self._value()]
        while self._skip("symbol", "|"):
            values.append(self._value())
        return values if len(values) > 1 else values[0]

    def _value(self) -> Any:
        kind, word, _ = self._peek()
        if kind == "number" and not word.endswith("%"):
            self.at += 1
            return json.loads(word) if not re.match(r"-?0\d", word) else word
        return _WORDS[self._word("a value")] if kind == "word" and word in _WORDS else self._word("a value")

    def _bounds(self) -> dict[str, float]:
        found: dict[str, float] = {}
        while not found or self._is_bound():
            end, number, _ = self._bound()
            found[end] = number
        return found

    def _bound(self) -> tuple[str, float, bool]:
        """Which end, the number, and whether it was a percentage."""
        if not self._is_bound():
            raise self._wrong("'>=' or '<='")
        end = "min" if self.tokens[self.at][1] == ">=" else "max"
        self.at += 1
        kind, word, _ = self._peek()
        if kind != "number":
            raise self._wrong("a number")
        self.at += 1
        share = word.endswith("%")
        return end, float(word.rstrip("%")) / (100 if share else 1), share

    def take(self, symbol: str) -> None:
        if not self._skip("symbol", symbol):
            raise self._wrong(repr(symbol))

    def end(self, wanted: str = "'and', 'or' or the end") -> None:
        if self.at < len(self.tokens):
            raise self._wrong(wanted)

    def _word(self, wanted: str) -> str:
        kind, word, _ = self._peek()
        if kind == "symbol" or not word or (kind == "word" and word in ("and", "or", "not")):
            raise self._wrong(wanted)
        self.at += 1
        if kind != "text":
            return word
        return word[1:-1] if word[0] == "'" else str(json.loads(word, strict=False))

    def _before(self) -> str:
        return self.tokens[self.at - 1][1]

    def _peek(self) -> tuple[str, str, int]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "", len(self.text))

    def _is(self, kind: str, word: str) -> bool:
        return self._peek()[:2] == (kind, word)

    def _is_bound(self) -> bool:
        return self._is("symbol", ">=") or self._is("symbol", "<=")

    def _skip(self, kind: str, word: str) -> bool:
        found = self._is(kind, word)
        self.at += found
        return found

    def _wrong(self, wanted: str) -> InputError:
        _, word, place = self._peek()
        return InputError(f"expression: {wanted} should come at character {place + 1}, not {word or 'the end'!r}")
