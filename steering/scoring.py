"""How likely the unsteered model finds texts: the log-probability of each token given those before it.

Short texts are read together, padded on the right, which no causal model looks at. A text whose logits are too many to hold at once is
read alone, piece by piece, with the model's own cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from schema.errors import InputError, WorkFailed

BATCH_TOKENS = 4_096
"""Tokens read together, padding included."""
BLOCK_ELEMENTS = 1 << 25
"""Logits held at a time: 128 MB."""

Floats = npt.NDArray[np.float32]


def check_texts(texts: Sequence[Sequence[int]], firsts: Sequence[int], vocabulary: int, context: int | None) -> None:
    """Raises InputError for what cannot be scored."""
    for place, (ids, first) in enumerate(zip(texts, firsts, strict=True), start=1):
        if not 1 <= first <= len(ids):
            raise InputError(
                f"text {place} of {len(ids):,} tokens is to be scored from token {first:,} on; from 1 on, for nothing "
                "stands before token 0"
            )
        if context is not None and len(ids) > context:
            raise InputError(f"text {place} has {len(ids):,} tokens, and the model reads {context:,} at most; cut it")
        if min(ids) < 0 or max(ids) >= vocabulary:
            raise InputError(
                f"text {place} has token ids that are none of the model's, which are 0 to {vocabulary - 1:,}"
            )


@torch.inference_mode()
def score_texts(
    model: Any, device: torch.device, texts: Sequence[Sequence[int]], firsts: Sequence[int], vocabulary: int
) -> list[Floats]:
    """See `schema.generation.Generator.score`. Called on the thread that owns the model, while no row is steered.

    Raises:
        WorkFailed: the device ran out of memory.
    """
    found: list[Floats] = [np.empty(0, np.float32)] * len(texts)
    wanted = [place for place, first in enumerate(firsts) if first < len(texts[place])]
    try:
        for group in _groups(texts, firsts, wanted, vocabulary):
            if len(group) == 1:
                place = group[0]
                found[place] = _alone(model, device, texts[place], firsts[place], vocabulary)
                continue
            for place, scores in zip(group, _together(model, device, texts, firsts, group), strict=True):
                found[place] = scores
    except torch.OutOfMemoryError as error:
        raise WorkFailed(f"{device} has too little memory to score texts; try fewer or shorter ones") from error
    return found


def _groups(
    texts: Sequence[Sequence[int]], firsts: Sequence[int], wanted: Sequence[int], vocabulary: int
) -> Iterator[list[int]]:
    """Texts of about one length, so many that neither their tokens nor their logits are too many."""
    group: list[int] = []
    for place in sorted(wanted, key=lambda place: -len(texts[place])):
        grown = [*group, place]
        longest = max(len(texts[each]) for each in grown)
        kept = longest - min(firsts[each] for each in grown) + 1
        if group and len(grown) * max(longest / BATCH_TOKENS, kept * vocabulary / BLOCK_ELEMENTS) > 1:
            yield group
            grown = [place]
        group = grown
    if group:
        yield group


def _together(
    model: Any, device: torch.device, texts: Sequence[Sequence[int]], firsts: Sequence[int], group: Sequence[int]
) -> list[Floats]:
    longest = max(len(texts[place]) for place in group)
    begin = min(firsts[place] for place in group) - 1
    ids = torch.zeros(len(group), longest, dtype=torch.long)
    for row, place in enumerate(group):
        ids[row, : len(texts[place])] = torch.tensor(texts[place])
    ids = ids.to(device)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=longest - begin).logits
    scores = _logprobs(logits[:, -(longest - begin) : -1], ids[:, begin + 1 :]).cpu().numpy()
    return [
        scores[row, firsts[place] - 1 - begin : len(texts[place]) - 1 - begin].copy() for row, place in enumerate(group)
    ]


def _alone(model: Any, device: torch.device, text: Sequence[int], first: int, vocabulary: int) -> Floats:
    """What stands before the first token in one pass, the rest in pieces."""
    ids = torch.tensor([list(text)], device=device)
    piece = max(1, BLOCK_ELEMENTS // vocabulary)
    cuts = [*([first - 1] if first > 1 else []), *range(first - 1 + piece, len(text) - 1, piece), len(text) - 1]
    found, begin, past = [], 0, None
    for end in cuts:
        keep = 1 if end < first else end - begin
        out = model(input_ids=ids[:, begin:end], past_key_values=past, use_cache=True, logits_to_keep=keep)
        past = out.past_key_values
        if end >= first:
            found.append(_logprobs(out.logits[:, -(end - begin) :], ids[:, begin + 1 : end + 1])[0])
        begin = end
    return np.asarray(torch.cat(found).cpu().numpy())


def _logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """(n, t, vocabulary) and (n, t) -> (n, t) float32."""
    return torch.log_softmax(logits.float(), dim=-1).gather(2, ids[..., None])[..., 0]
