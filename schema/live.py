"""What the service needs of a loaded model: a text's tokens and what they fire. `indexer` has the real one; `scopebase` joins them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Fired:
    """The activations of one text in one SAE, by position, then feature."""

    position: npt.NDArray[np.int64]
    feature: npt.NDArray[np.int64]
    value: npt.NDArray[np.float32]


@dataclass(frozen=True)
class LiveText:
    """One text as a loaded model reads it."""

    text: str
    ids: npt.NDArray[np.int64]
    pieces: list[str]
    """Each token as text."""
    starts: npt.NDArray[np.int64]
    """(n_tokens,) characters of `text`."""
    ends: npt.NDArray[np.int64]
    counts: npt.NDArray[np.bool_]
    """(n_tokens,) False where the mask keeps the token from firing."""
    fired: dict[str, Fired]
    """SAE -> its activations."""
    truncated: bool = False


@dataclass(frozen=True)
class Means:
    """Mean residuals of some texts, over the tokens that count."""

    mean: dict[int, npt.NDArray[np.float64]]
    """Layer -> (d_model,), over all tokens alike, so that long texts weigh more; zeros where there is none."""
    n_texts: int
    """Those with a token that counts."""
    n_tokens: int
    """Tokens that were averaged."""


class LiveModel(Protocol):
    """A model and SAEs of the home, loaded. Safe for several threads; one call runs at a time."""

    @property
    def name(self) -> str:
        """The model's name in the home."""

    @property
    def tokenizer_sha256(self) -> str: ...

    def read(
        self, texts: Sequence[str | Sequence[int]], saes: Sequence[str], *, mask: str, max_tokens: int
    ) -> list[LiveText]:
        """Reads texts, or token ids as they are.

        Raises:
            NotFound: an SAE that the home does not have.
            Conflict: its file is not the one that was indexed, or it belongs to another model.
            InputError: no text, or token ids that the model does not have.
        """

    def means(
        self, texts: Sequence[str], layers: Sequence[int], *, mask: str, max_tokens: int, last: bool = False
    ) -> Means:
        """The mean of the residual stream after each of these blocks.

        Args:
            last: over each text's last token that counts, instead of all.

        Raises:
            InputError: no text, or a block that was not loaded.
        """
