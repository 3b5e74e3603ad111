"""A local sentence-transformers model for search by meaning, loaded when it is first asked."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schema.errors import InputError

BATCH = 64


class SentenceModel:
    """`schema.meaning.Meaning` by a sentence-transformers model: a directory, or a name that it can find."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._lock = threading.Lock()

    @cached_property
    def name(self) -> str:
        """The source's name and, of a directory, a hash of its weights and configuration."""
        folder = Path(self.source)
        if not folder.is_dir():
            return self.source
        digest = hashlib.sha256()
        for path in sorted(p for p in folder.rglob("*") if p.suffix in (".safetensors", ".bin", ".json", ".txt")):
            digest.update(path.relative_to(folder).as_posix().encode())
            digest.update(path.read_bytes())
        return f"{folder.name}@{digest.hexdigest()[:16]}"

    @property
    def dimension(self) -> int:
        return int(self._model.get_embedding_dimension())

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(n, dimension) of unit length; texts beyond the model's context are cut."""
        model = self._model
        with self._lock:
            found = model.encode(list(texts), batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(found, np.float32)

    @cached_property
    def _model(self) -> Any:
        with self._lock:
            return _load(self.source)


def _load(source: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise InputError("search by meaning needs another package: pip install 'scopebase[meaning]'") from None
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        return SentenceTransformer(source)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise InputError(f"--meaning {source!r} is no sentence model that can be loaded: {reason}") from None
