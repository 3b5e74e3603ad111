"""How long tests with chance in them run: shortly in the suite, long in `make torture`, which sets HYPOTHESIS_PROFILE."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "torture"


def lengths(short: int, long: int, steps: tuple[int, int] | None = None) -> settings:
    """Settings for so many examples, and with `steps` for so many steps of a state machine.

    The suite tries the same examples every time; torture tries others with each `--hypothesis-seed`.
    """
    more: dict[str, Any] = {"stateful_step_count": steps[LONG]} if steps else {}
    return settings(
        max_examples=long if LONG else short,
        derandomize=not LONG,
        deadline=None,
        database=None,
        print_blob=LONG,
        suppress_health_check=list(HealthCheck),
        **more,
    )
