"""The length control: what the number of tokens alone tells of the class."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from api.services.library import Library
from api.services.rules.expressions import Bools
from api.services.rules.metrics import measure
from api.services.rules.split import Split
from schema.layout import SAMPLE_BITS, sample_key
from schema.lookup import Source
from schema.wire.discovery import LengthControl

Ints = npt.NDArray[np.int64]


def length_control(library: Library, source: Source, split: Split, seed: int) -> LengthControl:
    """The threshold on the number of tokens with the best F1 on the discovery part, measured on the held-out part."""
    n_tokens = library.remembered(("n_tokens", source.pair), lambda: _n_tokens(library, source))
    known, positive = n_tokens[split.discovery], split.positive[split.discovery]
    longer, threshold = best_threshold(known, positive)
    predicted = (n_tokens > threshold) == longer
    held = split.held_out
    return LengthControl(
        mean_tokens={"positive": float(known[positive].mean()), "negative": float(known[~positive].mean())},
        rule=f"tokens > {threshold}" if longer else f"tokens <= {threshold}",
        metrics=measure(predicted[held], split.positive[held], seed),
    )


def best_threshold(known: Ints, positive: Bools) -> tuple[bool, int]:
    """(longer, t): `n > t` where longer, else `n <= t`, with the best F1; t is one of the lengths."""
    order = np.argsort(known, kind="stable")
    lengths, hits = known[order], np.cumsum(positive[order])
    last = np.flatnonzero(np.diff(lengths, append=lengths[-1] + 1))  # the last sample of each length
    n, n_positive = last + 1, int(hits[-1])
    shorter_f1 = 2 * hits[last] / (n + n_positive)
    longer_f1 = 2 * (n_positive - hits[last]) / (len(lengths) - n + n_positive)
    longer = bool(longer_f1.max() > shorter_f1.max())
    best = int((longer_f1 if longer else shorter_f1).argmax())
    return longer, int(lengths[last[best]])


def _n_tokens(library: Library, source: Source) -> Ints:
    """(n_samples,) tokens that count."""
    n_tokens = np.zeros(source.n_samples, np.int64)
    span = library.store.span(
        "forward", sample_key(source.pair), sample_key(source.pair + 1), ["key", "n_tokens"], settled=True
    )
    for batch in span:
        n_tokens[batch.column("key").to_numpy() & ((1 << SAMPLE_BITS) - 1)] = batch.column("n_tokens").to_numpy()
    return n_tokens
