"""Choosing the next token of every row at once. A row's draw comes from its own generator, so that it never depends on its neighbours.

Drawing inverts the cumulative distribution in the order of token ids, with one number a token: a last bit that differs in some logit then
moves a border between two tokens by as little, where a sorted order would let tokens swap places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from schema.generation import Sampling

_AHEAD = 32
"""Numbers drawn at a time."""
_LIKELIEST = 256
"""Tokens looked at for top_p before the whole vocabulary is sorted."""


class Draw:
    """One choice's way of choosing, with its numbers and what its own tokens change."""

    def __init__(self, sampling: Sampling, vocabulary: int, device: torch.device) -> None:
        self.sampling = sampling
        self.greedy = sampling.temperature == 0
        self._generator = torch.Generator().manual_seed(sampling.seed % (1 << 63))
        self._ahead: list[float] = []
        self._seen: set[int] = set()
        self.adjustment: Tensor | None = None
        """(vocabulary,) float32, added to the logits: bias and penalties."""
        if sampling.logit_bias or sampling.presence_penalty or sampling.frequency_penalty:
            self.adjustment = torch.zeros(vocabulary, device=device)
        if self.adjustment is not None and sampling.logit_bias:
            places = torch.tensor(list(sampling.logit_bias), device=device)
            self.adjustment[places] = torch.tensor(list(sampling.logit_bias.values()), device=device).float()

    def number(self) -> float:
        """The next number, uniform in [0, 1)."""
        if not self._ahead:
            self._ahead = torch.rand(_AHEAD, generator=self._generator, dtype=torch.float64).tolist()[::-1]
        return self._ahead.pop()

    def saw(self, token: int) -> None:
        """A token was generated: it is penalised from now on."""
        if self.adjustment is None:
            return
        penalty = self.sampling.frequency_penalty
        if token not in self._seen:
            self._seen.add(token)
            penalty += self.sampling.presence_penalty
        if penalty:
            self.adjustment[token] -= penalty


class Told(NamedTuple):
    """Log-probabilities of one row's step."""

    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Chosen:
    """The next token of every row."""

    tokens: Tensor
    """(n_rows,) what is fed next."""
    ids: list[int]
    """The same; -1 where a row's logits are not finite."""
    told: dict[int, Told]
    """Row -> log-probabilities, where they are asked for."""


class Sampler:
    """How the rows of a batch choose, made anew when rows join or leave."""

    def __init__(self, draws: Sequence[Draw], device: torch.device) -> None:
        self._draws = draws
        self._adjusted = [(i, draw.adjustment) for i, draw in enumerate(draws) if draw.adjustment is not None]
        self._drawn = [i for i, draw in enumerate(draws) if not draw.greedy]
        self._telling = [i for i, draw in enumerate(draws) if draw.sampling.logprobs is not None]
        self._rows = torch.tensor(self._drawn, device=device)
        self._told = torch.tensor(self._telling, device=device)
        chosen = [draws[i].sampling for i in self._drawn]
        self._temperature = torch.tensor([s.temperature for s in chosen], device=device)[:, None]
        self._limits = _Limits([s.top_k for s in chosen], [s.top_p for s in chosen], device)

    @torch.inference_mode()
    def choose(self, logits: Tensor, broken: Tensor | None = None) -> Chosen:
        """
        Args:
            logits: (n_rows, vocabulary) float32.
            broken: (n_rows,) True where nothing can be chosen.
        """
        least, most = logits.aminmax(dim=1)
        finite = (least - most).isfinite()
        if broken is not None:
            finite &= ~broken
        adjusted = self._adjust(logits)
        tokens = adjusted.argmax(dim=1)  # the first of equal ones
        if self._drawn:
            rows = adjusted if len(self._drawn) == len(tokens) else adjusted[self._rows]
            tokens[self._rows] = self._draw(rows)
        tokens = tokens.where(finite, 0)
        ids = tokens.where(finite, -1).tolist()
        return Chosen(tokens, ids, self._tell(logits, tokens) if self._telling else {})

    def _adjust(self, logits: Tensor) -> Tensor:
        if not self._adjusted:
            return logits
        adjusted = logits.clone()
        for i, adjustment in self._adjusted:
            adjusted[i] += adjustment
        return adjusted

    def _draw(self, logits: Tensor) -> Tensor:
        """One token a row of (n, vocabulary)."""
        logits = (logits - logits.amax(dim=1, keepdim=True)) / self._temperature
        shares = self._limits.cut(logits.softmax(dim=1))
        heap = shares.cumsum(dim=1, dtype=torch.float64)
        numbers = torch.tensor([self._draws[i].number() for i in self._drawn], device=heap.device, dtype=torch.float64)
        total = heap[:, -1:]
        mark = torch.minimum(numbers[:, None] * total, total.nextafter(torch.zeros_like(total)))
        return torch.searchsorted(heap, mark, right=True)[:, 0].clamp(max=heap.shape[1] - 1)

    def _tell(self, logits: Tensor, tokens: Tensor) -> dict[int, Told]:
        rows = logits[self._told].log_softmax(dim=1)
        own = rows.gather(1, tokens[self._told][:, None])[:, 0].tolist()
        counts = [self._draws[i].sampling.logprobs or 0 for i in self._telling]
        best = rows.topk(min(max(counts), rows.shape[1]), dim=1)
        values, places = best.values.tolist(), best.indices.tolist()
        return {
            row: Told(own[k], list(zip(places[k][: counts[k]], values[k][: counts[k]], strict=True)))
            for k, row in enumerate(self._telling)
        }


class _Limits:
    """top_k, and then top_p of what it leaves; equal shares stay or go together."""

    def __init__(self, top_k: Sequence[int], top_p: Sequence[float], device: torch.device) -> None:
        self._most_k = max(top_k, default=0)
        self._any_p = any(p < 1 for p in top_p)
        self._k = torch.tensor(top_k, device=device)[:, None]
        self._p = torch.tensor(top_p, device=device)[:, None]

    def cut(self, shares: Tensor) -> Tensor:
        """Shares (n, vocabulary) with the unlikely ones made 0."""
        if not self._most_k and not self._any_p:
            return shares
        width = shares.shape[1]
        look = min(width, max(self._most_k, _LIKELIEST if self._any_p else 0))
        lowest, enough = self._lowest(shares.topk(look, dim=1).values)
        if look < width and not enough:
            lowest, _ = self._lowest(shares.sort(dim=1, descending=True).values)
        return shares.where(shares >= lowest, 0)

    def _lowest(self, best: Tensor) -> tuple[Tensor, bool]:
        """The smallest share that stays in each row (n, 1), of shares in falling order; False if the cut may lie beyond them."""
        place = torch.arange(best.shape[1], device=best.device)
        best = best.where((place < self._k) | (self._k == 0), 0)
        total = best.sum(dim=1, keepdim=True).where(self._k > 0, 1)
        heap = best.cumsum(dim=1)
        stays = ((heap - best < self._p * total) | (place == 0) | (self._p >= 1)) & (best > 0)
        lowest = best.where(stays, torch.inf).amin(dim=1, keepdim=True)
        open_ended = (self._k == 0) & (self._p >= 1)
        reached = (heap[:, -1:] >= self._p * total) | (self._k > 0) | open_ended
        return lowest.where(~open_ended, 0), bool(reached.all())
