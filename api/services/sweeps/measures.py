"""What is measured of a text: pure functions of its characters or token ids. Definitions: docs/explanation/measures.md."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import regex

from schema.errors import InputError

NO_SPACES = r"\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}"
"""Scripts that put no space between words."""
_LETTERS = regex.compile(r"\p{L}")
_UNSPACED = regex.compile(f"[{NO_SPACES}]")


@lru_cache(64)
def script_pattern(script: str) -> regex.Pattern[str]:
    """One letter of a Unicode script.

    Raises:
        InputError: there is no such script.
    """
    try:
        if not regex.fullmatch(r"[A-Za-z_]+", script):
            raise regex.error("no name")
        return regex.compile(rf"[\p{{Script={script}}}&&\p{{L}}]", regex.V1)
    except regex.error:
        raise InputError(
            f"script {script!r}: not a Unicode script; its names are such as Han, Cyrillic, Arabic, Latin"
        ) from None


def script_share(text: str, script: str) -> float | None:
    """Letters of a script over all letters; None for a text without a letter."""
    letters = len(_LETTERS.findall(text))
    return len(script_pattern(script).findall(text)) / letters if letters else None


@lru_cache(64)
def words_pattern(words: tuple[str, ...]) -> regex.Pattern[str]:
    """Any of these, as whole words; a word of a script without spaces stands anywhere."""
    parts = []
    for word in sorted({unicodedata.normalize("NFC", word) for word in words}, key=lambda word: (-len(word), word)):
        plain = regex.escape(word)
        parts.append(plain if _UNSPACED.search(word) else rf"(?<!\w){plain}(?!\w)")
    return regex.compile("|".join(parts), regex.IGNORECASE)


def has_words(text: str, words: Sequence[str]) -> bool:
    return words_pattern(tuple(words)).search(unicodedata.normalize("NFC", text)) is not None


def repetition(ids: Sequence[int], n: int) -> float | None:
    """Share of n-grams that stood in the text before: 1 - different ones / all; None where there is none."""
    total = len(ids) - n + 1
    return 1 - len({tuple(ids[i : i + n]) for i in range(total)}) / total if total > 0 else None


def longest_repeat(ids: Sequence[int]) -> float | None:
    """Length of the longest run of tokens that occurs twice, overlaps allowed, over the text's length; None for an empty text."""
    if not ids:
        return None
    known, unknown = 0, len(ids)  # every run inside a repeated run repeats too, so the length can be halved for
    while unknown - known > 1:
        length = (known + unknown) // 2
        if (repetition(ids, length) or 0) > 0:
            known = length
        else:
            unknown = length
    return known / len(ids)


def is_endless(ids: Sequence[int], ended: bool, tail: int, times: int, period: int) -> bool:
    """Whether a text was cut off while its end repeats: a period of at most so many tokens, over `tail` tokens and `times` repeats."""
    if ended:
        return False
    for p in range(1, min(period, len(ids) // times) + 1):
        length = max(tail, times * p)
        if length <= len(ids) and all(ids[-i] == ids[-i - p] for i in range(1, length - p + 1)):
            return True
    return False
