"""Token ids back to the text that they were, and where in it each token stands."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from indexer.tokens import Tokenizer, counting
from schema.errors import InputError
from schema.recipe import Recipe
from schema.records import Tokens

UNREADABLE = "\ufffd"
LONGEST = 8
"""Tokens that may share a character; more that give none are no text."""


class Speller:
    """Decodes samples; without a tokenizer, writes their ids as numbers."""

    def __init__(self, tokenizer: Tokenizer | None, recipe: Recipe) -> None:
        self.tokenizer, self.recipe = tokenizer, recipe
        self._pieces: dict[tuple[int, ...], str] = {}
        self._special = set() if tokenizer is None else set(tokenizer.special_ids.tolist())
        if tokenizer is None and "special" in recipe.mask:
            raise InputError(
                "which tokens are special cannot be told without the tokenizer; give the model with --model, or --mask none"
            )

    def spell(self, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
        """The text, and where in it each token begins and ends. Tokens that share a character share its place.

        Special tokens at either end (what a tokenizer puts around a text, and padding) are no text.
        """
        first, stop = self._bounds(ids)
        text, spans, at = [], [(0, 0)] * first, 0
        while first < stop:
            n, piece = self._next(ids[first:stop])
            text.append(piece)
            spans += [(at, at + len(piece))] * n
            first, at = first + n, at + len(piece)
        return "".join(text), spans + [(at, at)] * (len(ids) - stop)

    def tokens(self, ordinal: int, ids: npt.NDArray[np.int64]) -> Tokens:
        """The sample as the index stores it, with the mask applied."""
        spans = np.asarray(self.spell(ids.tolist())[1], np.int32).reshape(-1, 2)
        special = np.empty(0, np.int32) if self.tokenizer is None else self.tokenizer.special_ids
        narrow = ids.astype(np.int32)
        return Tokens(ordinal, narrow, spans[:, 0], spans[:, 1], counting(narrow, special, self.recipe.mask))

    def _bounds(self, ids: Sequence[int]) -> tuple[int, int]:
        first, stop = 0, len(ids)
        while first < stop and ids[first] in self._special:
            first += 1
        while stop > first and ids[stop - 1] in self._special:
            stop -= 1
        return first, stop

    def _next(self, ids: Sequence[int]) -> tuple[int, str]:
        """How many of these tokens stand for the next piece of text, and the piece."""
        alone = self._piece((ids[0],))
        if UNREADABLE not in alone:
            return 1, alone
        for n in range(2, min(LONGEST, len(ids)) + 1):
            together = self._piece(tuple(ids[:n]))
            if UNREADABLE not in together:
                return n, together
        return 1, alone

    def _piece(self, ids: tuple[int, ...]) -> str:
        if ids not in self._pieces:
            self._pieces[ids] = self._decoded(ids).replace("\0", UNREADABLE)
            if len(self._pieces) > 1 << 20:
                self._pieces.clear()
                return self._piece(ids)
        return self._pieces[ids]

    def _decoded(self, ids: tuple[int, ...]) -> str:
        if self.tokenizer is None:
            return "".join(f"{id_} " for id_ in ids)
        return self.tokenizer.pieces(ids)[0] if len(ids) == 1 else self.tokenizer.joined(ids)
