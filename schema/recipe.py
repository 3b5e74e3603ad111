"""The recipe of a run: how a row becomes a text, and which of its tokens count."""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from schema.errors import InputError

MASKS = ("none", "special", "first", "special,first")
DTYPES = ("float32", "bfloat16", "float16")
UNKNOWN = "unknown"
"""The arithmetic of activations that another tool made and does not tell."""
MAX_TOKENS = 65_535  # a position is stored in 16 bits
MAX_CHARS = 1_000_000  # a text this long or longer is refused


@dataclass(frozen=True)
class Recipe:
    """What decides, beside model and SAE, which features fire. Stored with the run and hashed into its identity."""

    text_field: str = "text"
    """The row's field that holds the text; unused where there is a template."""
    template: str | None = None
    """`{question}\\n{answer}`: fields of the row in braces."""
    max_tokens: int = 512
    """Longer texts are cut at this many tokens, special tokens included."""
    mask: str = "special,first"
    """Which tokens never fire: `none`, `special`, `first` (position 0) or `special,first`."""
    dtype: str = "float32"
    """The model's arithmetic. SAEs always encode and select in float32."""
    tokenizer_sha256: str = ""
    origin: str = ""
    """What made the activations where Scopebase did not: `delphi <SHA-256 of its cache>`."""

    def __post_init__(self) -> None:
        if self.mask not in MASKS:
            raise InputError(f"--mask {self.mask!r}: one of {', '.join(MASKS)}")
        if not 1 <= self.max_tokens <= MAX_TOKENS:
            raise InputError(f"--max-tokens {self.max_tokens}: from 1 to {MAX_TOKENS:,}")
        if self.template is not None:
            check_template(self.template)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()

    @property
    def comparable(self) -> tuple[str, int, str, str]:
        """What two runs must share for their counts to be compared."""
        return (self.mask, self.max_tokens, self.dtype, self.tokenizer_sha256)

    @property
    def text(self) -> tuple[str | None, str | None]:
        """How a row becomes a text: its template, or the field that holds it."""
        return (self.template, None if self.template is not None else self.text_field)

    def as_dict(self) -> dict[str, Any]:
        """As it is stored. A run of our own has no `origin`, nor had any before there was one."""
        return {name: value for name, value in asdict(self).items() if name != "origin" or value}

    def render(self, record: Mapping[str, Any]) -> str:
        """The text of one row.

        Raises:
            InputError: a field is missing or holds no text.
        """
        if self.template is None:
            return _text(record, self.text_field, plain=False)
        return "".join(
            literal + (_text(record, field, plain=True) if field is not None else "")
            for literal, field in _parsed(self.template)
        )


def unescape(template: str) -> str:
    """What a shell hands over as `\\n` and `\\t` becomes the character; `\\\\` a backslash."""
    out, rest = [], iter(template)
    for char in rest:
        if char != "\\":
            out.append(char)
            continue
        following = next(rest, "")
        out.append({"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}.get(following, "\\" + following))
    return "".join(out)


def check_template(template: str) -> list[str]:
    """The fields a template names.

    Raises:
        InputError: broken braces, or anything in them but a field's name.
    """
    fields = [field for _, field in _parsed(template) if field is not None]
    if not fields:
        raise InputError(f"template {template!r} names no field; write one in braces, like '{{question}}'")
    return fields


def _parsed(template: str) -> list[tuple[str, str | None]]:
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"template {template!r}: {error}; a literal brace is written twice, '{{{{'") from None
    for _, field, spec, conversion in pieces:
        if field is not None and (spec or conversion or not field or field.isdigit()):
            raise InputError(f"template {template!r}: braces hold a field's name and nothing else")
    return [(literal, field) for literal, field, _, _ in pieces]


def _text(record: Mapping[str, Any], field: str, *, plain: bool) -> str:
    """The field's text; in a template (`plain`) numbers and booleans count as text too."""
    if field not in record:
        there = ", ".join(sorted(record)) or "none"
        option = "--template" if plain else "--text-field"
        raise InputError(f"has no field {field!r} (its fields: {there[:200]}); name another with {option}")
    value = record[field]
    if isinstance(value, str):
        return value
    if plain and isinstance(value, (int, float)):
        return str(value)
    raise InputError(f"field {field!r} is {_kind(value)}, not text; mend the row, or make text of it with --template")


def _kind(value: object) -> str:
    """As JSON calls it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    return {int: "a number", float: "a number", list: "a list", dict: "an object"}.get(
        type(value), type(value).__name__
    )
