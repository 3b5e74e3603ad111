"""One choice's text on its way out: tokens become pieces, and what may yet become a stop string is held back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from schema.generation import Piece, TokenLogprob
from steering.sampler import Told
from steering.spelling import Speller
from steering.stops import Stops

Spells = Callable[[int], str]
"""A token as text by itself."""


class Writer:
    """The text of one choice as it grows."""

    def __init__(self, choice: int, speller: Speller, stops: Sequence[str], spells: Spells) -> None:
        self._choice = choice
        self._speller = speller
        self._stops = Stops(stops) if stops else None
        self._spells = spells
        self._text = ""
        """What was not said yet."""
        self._tokens: list[tuple[int, int, TokenLogprob | None]] = []
        """The tokens of it: id, where its text ends, log-probability."""
        self.stopped = False
        """A stop string was met; nothing follows."""

    def add(self, token: int, told: Told | None) -> Piece | None:
        """Takes the next token; what can be said now."""
        before = len(self._text)
        self._text += self._speller.feed(token)
        end = len(self._text) + self._speller.open
        self._tokens.append((token, end, self._logprob(token, told)))
        if self._stops is None:
            return self._say(len(self._text))
        cut = self._stops.find(self._text, before)
        if cut is not None:
            return self._stop(cut)
        return self._say(len(self._text) - self._stops.held(self._text))

    def finish(self) -> Piece | None:
        """What was held back, when no stop string can follow."""
        if self.stopped:
            return None
        before = len(self._text)
        self._text += self._speller.rest()
        cut = self._stops.find(self._text, before) if self._stops is not None else None
        if cut is not None:
            return self._stop(cut)
        self._tokens = [(id_, min(end, len(self._text)), told) for id_, end, told in self._tokens]
        return self._say(len(self._text))

    def _stop(self, cut: int) -> Piece | None:
        """Says what stands before a stop string, and the tokens that begin in it."""
        self.stopped = True
        ends = [0, *(end for _, end, _ in self._tokens)]
        said = [token for token, begin in zip(self._tokens, ends, strict=False) if begin < cut]
        return self._piece(self._text[:cut], said)

    def _say(self, n: int) -> Piece | None:
        said = 0
        while said < len(self._tokens) and self._tokens[said][1] <= n:
            said += 1
        if not n and not said:
            return None
        tokens, self._tokens = self._tokens[:said], [(t, end - n, told) for t, end, told in self._tokens[said:]]
        text, self._text = self._text[:n], self._text[n:]
        return self._piece(text, tokens)

    def _piece(self, text: str, tokens: Sequence[tuple[int, int, TokenLogprob | None]]) -> Piece | None:
        if not text and not tokens:
            return None
        told = tuple(logprob for _, _, logprob in tokens if logprob is not None)
        return Piece(self._choice, text, tuple(id_ for id_, _, _ in tokens), told)

    def _logprob(self, token: int, told: Told | None) -> TokenLogprob | None:
        if told is None:
            return None
        top = tuple((id_, self._spells(id_), value) for id_, value in told.top)
        return TokenLogprob(token, self._spells(token), told.logprob, top)
