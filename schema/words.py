"""Words that stand for a closed choice, in SQL, JSON and the command line alike. Imports nothing heavy: the client reads them too."""

from __future__ import annotations

from typing import Literal

Pool = Literal["any", "last"]
Scope = Literal["read", "label", "write", "admin"]
"""What an API key may do: ask; label features; also make rules, vectors and imports; everything, keys included."""
Sort = Literal["rate_difference", "q_value", "max_activation"]
"""What the features of a difference are ranked by."""
JobState = Literal["queued", "running", "finished", "failed", "cancelled"]
"""Where a job stands; the last three are its ends."""
