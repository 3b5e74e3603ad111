"""Prompts and conversations to token ids, from any thread."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from indexer.tokens import Tokenizer
from schema.errors import InputError


class PromptReader:
    """A model's tokenizer, for prompts.

    It keeps a copy that nobody truncates: the one that reads texts is told to for each call, and a prompt of another thread
    would be cut with them.
    """

    def __init__(self, tokenizer: Tokenizer, name: str) -> None:
        self._name = name
        self._fast = tokenizer.fast
        self._vocabulary = tokenizer.vocabulary
        self._own = copy.deepcopy(tokenizer.fast.backend_tokenizer)
        self._own.no_truncation()
        self._own.no_padding()

    def tokenize(self, prompt: str | Sequence[int]) -> list[int]:
        """See `schema.generation.Generator.tokenize`."""
        ids = self._encode(prompt, special=True) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise InputError("the prompt has no token; give at least one character")
        return self.checked(ids)

    def checked(self, ids: list[int]) -> list[int]:
        """The ids, all of them the model's.

        Raises:
            InputError: one is not.
        """
        unknown = next((id_ for id_ in ids if not 0 <= id_ < self._vocabulary), None)
        if unknown is not None:
            raise InputError(f"token id {unknown:,} is none of the model's, which are 0 to {self._vocabulary - 1:,}")
        return ids

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """See `schema.generation.Generator.chat`."""
        if not getattr(self._fast, "chat_template", None) and "chat_template" not in options:
            raise InputError(
                f"model {self._name} has no chat template, so it is no chat model; ask /v1/completions with a prompt instead"
            )
        try:
            text = self._fast.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, **{"add_generation_prompt": True, **options}
            )
        except (TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise InputError(f"the chat template of model {self._name} refuses these messages: {reason}") from error
        return self.tokenize_plain(str(text))

    def tokenize_plain(self, text: str) -> list[int]:
        """A text that brings its special tokens along."""
        ids = self._encode(text, special=False)
        if not ids:
            raise InputError("the conversation has no token; give at least one message with a character")
        return self.checked(ids)

    def _encode(self, text: str, *, special: bool) -> list[int]:
        try:
            return list(self._own.encode(text, add_special_tokens=special).ids)
        except (TypeError, UnicodeEncodeError):  # a lone surrogate is no text
            raise InputError("the prompt is no valid Unicode: it holds half of a surrogate pair") from None
