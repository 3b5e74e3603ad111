"""What the service needs of a sentence model: texts as directions, near where they mean alike. `scopebase` has the real one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt


class Meaning(Protocol):
    """A sentence model, loaded when it is first asked. Safe for several threads."""

    @property
    def name(self) -> str:
        """Which model it is, hash included: vectors of another one cannot be compared."""

    @property
    def dimension(self) -> int: ...

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(n, dimension) of unit length.

        Raises:
            InputError: the model cannot be loaded.
        """
