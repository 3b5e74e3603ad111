"""Texts to token ids, where each token stands in the text, and which tokens count."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import AutoTokenizer

from schema.errors import InputError
from schema.recipe import Recipe
from schema.records import Tokens

FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")


class Tokenizer:
    """A model's own tokenizer with its default special tokens."""

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self.sha256 = _identity(tokenizer)
        self.special_ids = np.array(sorted(_special_ids(tokenizer)), dtype=np.int32)

    @property
    def fast(self) -> Any:
        """transformers' own, for what else it can do. Its calls set its truncation: let no two threads call it at once."""
        return self._tokenizer

    @property
    def vocabulary(self) -> int:
        """Token ids that the model knows."""
        return self._vocabulary

    def __len__(self) -> int:
        """Tokens that it can make; a model's vocabulary may be padded beyond."""
        return min(len(self._tokenizer), self._vocabulary)

    def encode(self, texts: Sequence[str], ordinals: Sequence[int], recipe: Recipe) -> list[Tokens]:
        """Each text's tokens, cut at `recipe.max_tokens`, with the mask applied.

        Raises:
            InputError: the model does not know a token.
        """
        encoded = self._tokenizer(
            list(texts), truncation=True, max_length=recipe.max_tokens, return_offsets_mapping=True
        )
        return [
            self._tokens(ordinal, ids, offsets, bool(encoding.overflowing), recipe.mask)
            for ordinal, ids, offsets, encoding in zip(
                ordinals, encoded["input_ids"], encoded["offset_mapping"], encoded.encodings, strict=True
            )
        ]

    def given(self, ids: Sequence[int], ordinal: int, recipe: Recipe) -> tuple[str, Tokens]:
        """Token ids as they are, and the text that they spell.

        Raises:
            InputError: the model does not know a token.
        """
        unknown = [id_ for id_ in ids if not 0 <= id_ < self._vocabulary]
        if unknown:
            raise InputError(f"token id {unknown[0]:,} is none of the model's, which are 0 to {self._vocabulary - 1:,}")
        kept = list(ids)[: recipe.max_tokens]
        pieces = self.pieces(kept)
        ends = np.cumsum([len(piece) for piece in pieces])
        spans = list(zip(np.concatenate([[0], ends[:-1]]), ends, strict=True)) if kept else []
        return "".join(pieces), self._tokens(ordinal, kept, spans, len(ids) > len(kept), recipe.mask)

    def pieces(self, ids: Sequence[int] | npt.NDArray[np.int32]) -> list[str]:
        """Each token as text by itself, with the space that it begins with."""
        return [self._piece(int(id_)) for id_ in ids]

    def _piece(self, id_: int) -> str:
        raw = self._tokenizer.convert_ids_to_tokens(id_)
        if isinstance(raw, str) and "\u2581" in raw:  # SentencePiece's space, which decoding a single token drops
            return raw.replace("\u2581", " ")
        return str(self._tokenizer.decode([id_], clean_up_tokenization_spaces=False))

    def _tokens(
        self, ordinal: int, ids: list[int], offsets: list[tuple[int, int]], truncated: bool, mask: str
    ) -> Tokens:
        id_array = np.asarray(ids, dtype=np.int32)
        if len(id_array) and id_array.max() >= self._vocabulary:
            raise InputError(
                f"the tokenizer makes token {id_array.max():,}, but the model knows {self._vocabulary:,}: "
                "it is another model's tokenizer"
            )
        spans = np.asarray(offsets, dtype=np.int32).reshape(-1, 2)
        return Tokens(
            ordinal, id_array, spans[:, 0], spans[:, 1], counting(id_array, self.special_ids, mask), truncated
        )


def counting(ids: npt.NDArray[np.int32], special_ids: npt.NDArray[np.int32], mask: str) -> npt.NDArray[np.bool_]:
    """(n_tokens,) True where a token may fire under a mask of `schema.recipe.MASKS`."""
    counts = np.ones(len(ids), dtype=bool)
    if "special" in mask:
        counts &= ~np.isin(ids, special_ids)
    if "first" in mask:
        counts[:1] = False
    return counts


def load_tokenizer(folder: Path, source: str, vocabulary: int) -> Tokenizer:
    """The tokenizer of a model's directory.

    Raises:
        InputError: there is none, or it cannot tell where its tokens stand.
    """
    if not any((folder / name).exists() for name in FILES):  # transformers would make an empty one and say nothing
        raise InputError(
            f"model {source} has no tokenizer; save one beside it (tokenizer.json and tokenizer_config.json)"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise InputError(f"the tokenizer of model {source} cannot be loaded: {reason}") from error
    if not tokenizer.is_fast:
        raise InputError(
            f"the tokenizer of model {source} has no fast form, which tells where tokens stand; convert it to a tokenizer.json"
        )
    return Tokenizer(tokenizer, vocabulary)


def _identity(tokenizer: Any) -> str:
    """SHA-256 of the whole tokenizer, but for the truncation and padding of the last call."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state.pop("truncation", None)
    state.pop("padding", None)
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _special_ids(tokenizer: Any) -> set[int]:
    added = {int(id_) for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | {int(id_) for id_ in tokenizer.all_special_ids}
