"""Which tokens an operation touches: `schema.wire.steering.Where` over one prompt and what is generated after it."""

from __future__ import annotations

from collections.abc import Sequence, Set

import numpy as np
import numpy.typing as npt

from schema.errors import InputError
from schema.wire.steering import Where


class Place:
    """The tokens of one choice that one operation touches.

    A token is touched where it is included and not excluded. Positions of the prompt and of what was generated are each counted from 0.
    """

    def __init__(self, where: Where, ids: Sequence[int], special: Set[int]) -> None:
        """
        Args:
            ids: the prompt.
            special: the tokenizer's special tokens.

        Raises:
            InputError: `where` contradicts itself, or counts what is generated from its end.
        """
        _check(where)
        self._only = None if where.tokens is None else frozenset(where.tokens)
        self._never = frozenset(where.exclude_tokens) | (special if where.skip_special else frozenset())
        self._included = _generated(where)
        self._excluded = frozenset(where.exclude_generation_positions)
        self.prompt = _prompt(where, len(ids)) & np.array([self._may(id_) for id_ in ids], dtype=bool)
        """(n_prompt,) True where touched."""
        if where.skip_special:
            self.prompt[:1] = False

    def generated(self, number: int, id_: int) -> bool:
        """Whether generated token `number`, counted from 0, is touched."""
        return self._at(number) and self._may(id_)

    def is_steady(self, special: Set[int]) -> bool:
        """Whether all generated tokens fare alike, but for the special ones."""
        return not (self._included or self._excluded) and self._only is None and self._never <= special

    def columns(self, ids: Sequence[int], first: int) -> list[int]:
        """Which of the tokens `ids`, the first of them at position `first` of the whole sequence, are touched."""
        n_prompt = len(self.prompt)
        if first >= n_prompt:
            return [column for column, id_ in enumerate(ids) if self.generated(first + column - n_prompt, id_)]
        inside = np.flatnonzero(self.prompt[first : first + len(ids)]).tolist()
        begun = range(n_prompt - first, len(ids))
        return [*inside, *(column for column in begun if self.generated(first + column - n_prompt, ids[column]))]

    def can_touch(self, max_tokens: int) -> bool:
        """Whether any token may be touched. The last token generated is never fed to the model, so that it cannot be."""
        return bool(self.prompt.any()) or self.can_touch_generated(max_tokens)

    def can_touch_generated(self, max_tokens: int) -> bool:
        reachable = self._only is None or not self._only <= self._never
        return reachable and any(self._at(number) for number in range(max_tokens - 1))

    def overlaps(self, other: Place, max_tokens: int) -> bool:
        """Whether both may touch one token of the same prompt or of what is generated after it."""
        if bool((self.prompt & other.prompt).any()):
            return True
        named = [only for only in (self._only, other._only) if only is not None]
        if named and frozenset.intersection(*named) <= self._never | other._never:
            return False
        return any(self._at(number) and other._at(number) for number in range(max_tokens - 1))

    def _may(self, id_: int) -> bool:
        return (self._only is None or id_ in self._only) and id_ not in self._never

    def _at(self, number: int) -> bool:
        included = self._included is None or any(number in part for part in self._included)
        return included and number not in self._excluded


def _check(where: Where) -> None:
    if where.prompt != "all" and (where.prompt_window is not None or where.prompt_positions is not None):
        raise InputError(f"where says prompt {where.prompt!r} and names positions of the prompt too; leave one out")
    if where.generation != "all" and (where.generation_window is not None or where.generation_positions is not None):
        raise InputError("where says generation 'none' and names positions of the generation too; leave one out")
    counted = [
        *(where.generation_window or ()),
        *(where.generation_positions or ()),
        *where.exclude_generation_positions,
    ]
    if min(counted, default=0) < 0:
        raise InputError(
            f"where names position {min(counted)} of what is generated, but its end is not known; count from 0"
        )


def _prompt(where: Where, n: int) -> npt.NDArray[np.bool_]:
    """(n,) what the positions say, before token ids have their say."""
    touched = np.zeros(n, dtype=bool)
    if where.prompt_window is not None or where.prompt_positions is not None:
        if where.prompt_window is not None:
            touched[slice(*where.prompt_window)] = True
        touched[_inside(where.prompt_positions or [], n)] = True
    elif where.prompt == "all":
        touched[:] = True
    elif where.prompt == "last":
        touched[-1:] = True
    touched[_inside(where.exclude_prompt_positions, n)] = False
    return touched


def _inside(positions: Sequence[int], n: int) -> list[int]:
    """Those that the prompt has, counted from its beginning."""
    return [position % n for position in positions if -n <= position < n]


def _generated(where: Where) -> tuple[Set[int] | range, ...] | None:
    """The numbers that are touched, in parts; None: all."""
    if where.generation == "none":
        return ()
    if where.generation_window is None and where.generation_positions is None:
        return None
    return range(*(where.generation_window or (0, 0))), frozenset(where.generation_positions or ())
