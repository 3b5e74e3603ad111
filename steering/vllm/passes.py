"""Where the two meet: which tokens of a vLLM pass are whose, and hooks on the stream between its blocks.

vLLM's runner packs the tokens of its requests one after another, prompts in chunks and generated tokens one by one. Before each pass it is
asked who stands where; that is laid out for the steerer as rows, and checked against the tokens that it is about to feed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from schema.errors import InputError, ScopebaseError, WorkFailed
from steering.batch import Seat
from steering.hooks import Row
from steering.queue import Line
from steering.scoring import BLOCK_ELEMENTS

Steering = Callable[[Sequence[Row]], AbstractContextManager[object]]


@dataclass(eq=False)
class Asked:
    """One request as vLLM runs it: a choice, its unsteered shadow, or a text that is read or scored."""

    seat: Seat
    line: Line | None = None
    """Of a choice."""
    taps: Set[int] = frozenset()
    """Blocks after which the stream is kept."""
    scored: int | None = None
    """The first token whose log-probability is kept."""
    weighs: bool = False
    """Keeps the logits of the first token that it generates, for a divergence."""
    shadow: Asked | None = None
    """Of a choice: the other side of the divergence, until it is measured."""
    id: str = ""
    """As the runner knows it."""
    fed: int = 0
    """Tokens that the model has seen."""
    kept: dict[int, list[Tensor]] = field(default_factory=dict)
    scores: list[Tensor] = field(default_factory=list)
    logits: Tensor | None = None
    error: ScopebaseError | None = None
    done: bool = False

    def begin(self, first: int, n: int) -> None:
        """The pass feeds `n` tokens from place `first` on. vLLM may have thrown away what it had computed, and begins anew."""
        if first < self.fed:
            self.kept, self.scores = {}, []
            program = self.seat.program
            if program is not None:
                program.restart()
                if program.watcher is not None and first + n > self.seat.n_prompt:
                    self.error = WorkFailed(
                        "vLLM ran out of room and read this text anew, which its condition does not survive; "
                        "lower --max-rows, or serve with --engine torch"
                    )
        self.fed = first + n


@dataclass(frozen=True)
class Part:
    """The tokens of one request in one pass: columns `begin` to `end`, the first of them at place `first` of its text."""

    asked: Asked
    begin: int
    end: int
    first: int

    @property
    def ends_prompt(self) -> bool:
        return self.asked.fed == self.asked.seat.n_prompt

    def row(self) -> Row:
        seat, last = self.asked.seat, self.first + self.end - self.begin
        program = None if self.asked.error is not None else seat.program
        return Row(program, tuple(seat.ids[self.first : last]), self.first, seat.n_prompt)


class Passes:
    """The runner's passes, bracketed."""

    def __init__(self, runner: Any, n_layers: int) -> None:
        """
        Args:
            runner: vLLM's model runner, its model loaded and warmed up.

        Raises:
            InputError: its blocks were not found.
        """
        self._runner = runner
        model = runner.get_model()
        self.blocks = find_blocks(model, n_layers)
        self.asked: dict[str, Asked] = {}
        """Requests by the runner's ids."""
        self.parts: Sequence[Part] = ()
        """Of the pass that is running, or ran last."""
        self.broken: Tensor | None = None
        """(n_parts,) True where the logits after that pass are not finite."""
        self._tapped = self._unsampled = False
        self._forward, runner._model_forward = runner._model_forward, self._run
        self._logits, model.compute_logits = model.compute_logits, self._weigh
        self.steering: Steering | None = None

    def begin(self, steering: Steering) -> None:
        """From here on passes are steered. The steerer has set its hooks; those that read the stream come after them."""
        self.steering = steering
        for layer, block in enumerate(self.blocks):
            block.register_forward_hook(self._tap(layer))

    def forget(self) -> None:
        """Nothing ran yet."""
        self.parts, self.broken, self._unsampled = (), None, False

    def _run(self, **columns: Any) -> Any:
        """In place of the runner's own forward pass."""
        self.parts = self._find()
        rows = [part.row() for part in self.parts]
        self._tapped = any(part.asked.taps for part in self.parts)
        steered = any(row.program is not None for row in rows)
        with self.steering(rows) if steered and self.steering is not None else nullcontext():
            hidden = self._forward(**columns)
        self._tapped, self._unsampled = False, True
        for part in self.parts:
            if part.asked.scored is not None:
                part.asked.scores += self._score(part, part.asked.scored, hidden)
        return hidden

    def _find(self) -> list[Part]:
        """Who stands where in the pass that begins.

        Raises:
            WorkFailed: it feeds other tokens than were asked for, so that nobody knows what would be steered.
        """
        batch = self._runner.input_batch
        n = batch.num_reqs
        ends = self._runner.query_start_loc.np[: n + 1].tolist()
        places = batch.num_computed_tokens_cpu[:n].tolist()
        parts = []
        for number, (id_, first, (begin, end)) in enumerate(
            zip(batch.req_ids[:n], places, pairwise(ends), strict=True)
        ):
            asked = self.asked.get(id_)
            known = [] if asked is None else asked.seat.ids[first : first + end - begin]
            if asked is None or not np.array_equal(batch.token_ids_cpu[number, first : first + end - begin], known):
                raise WorkFailed(f"vLLM feeds tokens to request {id_} that it was not asked to; nothing was steered")
            asked.begin(first, end - begin)
            parts.append(Part(asked, begin, end, first))
        return parts

    def _weigh(self, hidden: Tensor, *rest: Any) -> Any:
        """In place of the model's own `compute_logits`: after a pass, one row for each of its requests."""
        logits = self._logits(hidden, *rest)
        if not self._unsampled:
            return logits
        self._unsampled = False
        if len(logits) != len(self.parts):
            raise WorkFailed(f"vLLM chooses {len(logits)} tokens for {len(self.parts)} requests; nothing was steered")
        self.broken = ~logits.amax(dim=1).isfinite()
        for row, part in enumerate(self.parts):
            if part.asked.weighs and part.ends_prompt:
                part.asked.logits = logits[row].float().clone()
        return logits

    def _score(self, part: Part, scored: int, hidden: Tensor) -> list[Tensor]:
        """(n,) log-probabilities of the tokens that follow those of this part, in pieces."""
        ids = part.asked.seat.ids
        first, stop = max(part.first, scored - 1), min(part.asked.fed, len(ids) - 1)
        found, step = [], max(1, BLOCK_ELEMENTS // int(self._runner.model_config.get_vocab_size()))
        for begin in range(first, stop, step):
            end = min(begin + step, stop)
            shift = part.begin - part.first
            logits = self._logits(hidden[begin + shift : end + shift]).float()
            following = torch.tensor(ids[begin + 1 : end + 1], device=logits.device)
            found.append(logits.log_softmax(dim=1).gather(1, following[:, None])[:, 0])
        return found

    def _tap(self, layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_block: nn.Module, _inputs: Any, output: Any) -> None:
            if not self._tapped:
                return
            stream = stream_of(output)
            for part in self.parts:
                if layer in part.asked.taps:
                    part.asked.kept.setdefault(layer, []).append(stream[part.begin : part.end].clone())

        return hook


def stream_of(output: Any) -> Tensor:
    """The residual stream (n_tokens, d_model) after a block of vLLM.

    Most return it in two parts, what the block adds and what it adds it to; the next block's norm joins them.

    Raises:
        WorkFailed: the block returns something else.
    """
    if isinstance(output, Tensor):  # of models that vLLM borrows from transformers, with a batch of one before it
        return output.reshape(-1, output.shape[-1])
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[0], Tensor):
        added, residual = output
        if residual is None:
            return added
        if isinstance(residual, Tensor) and residual.shape == added.shape:
            return added + residual
    raise WorkFailed(
        "a block of this model in vLLM returns no residual stream that Scopebase knows; use --engine torch"
    )


def through(output: Any, after: Callable[[Tensor], Tensor]) -> Any:
    """`steering.hooks.Through`: the whole of a token that moved goes into the one part, and nothing stays in the other.

    Tokens that did not move are left in their parts, so that nobody's sums are taken in another order because of a neighbour.
    """
    stream = stream_of(output)
    moved = after(stream[None])[0]
    if isinstance(output, Tensor):
        return moved.view_as(output)
    added, residual = output
    if residual is None:
        return moved, None
    changed = (moved != stream).any(dim=1, keepdim=True)
    return torch.where(changed, moved.to(added.dtype), added), residual.masked_fill(changed, 0)


def find_blocks(model: nn.Module, n_layers: int) -> nn.ModuleList:
    """The decoder's blocks, wherever a family keeps them.

    Raises:
        InputError: there is no list of that many blocks, or more than one.
    """
    found: Mapping[str, nn.ModuleList] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == n_layers
        and not any(word in name for word in ("visual", "vision", "audio"))
    }
    outermost = [module for name, module in found.items() if not any(name.startswith(f"{o}.") for o in found)]
    if len(outermost) != 1:
        raise InputError(
            f"{type(model).__name__} of vLLM keeps its blocks where Scopebase does not look; use --engine torch"
        )
    return outermost[0]
