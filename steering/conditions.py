"""When operations are let through: a rule's expression over what features fire in the very text, kept on the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor

from schema.errors import InputError
from schema.generation import Condition
from schema.names import parse_feature
from schema.wire.expressions import AllOf, AnyOf, Expression, FeatureAbove
from steering.reading import Encoders, Rows, activations, rows

Tree = Callable[[Tensor], Tensor]
"""(..., n_features) activations to (...) whether the expression holds."""


class Gates:
    """Which tokens of a pass operations are let through at: as of that token, as of the one before it, and where there is no condition."""

    def __init__(self, n_flat: int, device: torch.device) -> None:
        self.n_flat = n_flat
        self.open = torch.zeros(2 * n_flat + 2, dtype=torch.bool, device=device)
        self.open[2 * n_flat] = True
        self.nowhere = 2 * n_flat + 1
        """Where answers about padding go."""

    def place(self, gate: str | None, place: int) -> int:
        """Where the answer for one token of the flattened pass stands."""
        return {None: 2 * self.n_flat, "now": place, "before": self.n_flat + place}[gate]


@dataclass(frozen=True)
class Part:
    """The features of one SAE."""

    layer: int
    read: Rows
    columns: slice
    """Where their activations stand among all."""


class Watcher:
    """One condition and its state in every choice that has it. Choices take a place and give it back."""

    def __init__(self, condition: Condition, encoders: Encoders, n_layers: int, device: torch.device) -> None:
        """
        Raises:
            InputError: a feature that its SAE does not have, or an SAE of a layer that the model does not have.
        """
        self.scope = condition.scope
        names = sorted(set(features(condition.expression)))
        self.parts, column = _parts(names, encoders, n_layers, device)
        self.deepest = max(part.layer for part in self.parts)
        self.holds = _tree(condition.expression, column)
        self._device = device
        self._free: deque[int] = deque()
        self.lock = Lock()
        """Held while the state is moved: choices take places on the threads that ask."""
        self.most = torch.zeros(0, len(names), device=device)
        """(places, n_features) largest activation so far."""
        self.latched = torch.zeros(0, dtype=torch.bool, device=device)
        self.opened = torch.zeros(0, device=device)
        """Tokens that it let operations through at."""

    def take(self) -> int:
        with self.lock:
            if not self._free:
                self._grow()
            place = self._free.popleft()
        self.clear(place)
        return place

    def clear(self, place: int) -> None:
        """Nothing was read yet."""
        with self.lock:
            self.most[place], self.latched[place], self.opened[place] = 0, False, 0

    def free(self, places: Sequence[int]) -> None:
        """Takes places back. Safe from any thread."""
        self._free.extend(places)

    def copy(self, source: int, target: int) -> None:
        """The state of one choice for another that has read the same."""
        with self.lock:
            for state in (self.most, self.latched, self.opened):
                state[target] = state[source]

    def _grow(self) -> None:
        n = max(8, len(self.opened))
        self._free.extend(range(len(self.opened), len(self.opened) + n))
        self.most = torch.cat((self.most, self.most.new_zeros(n, self.most.shape[1])))
        self.latched = torch.cat((self.latched, self.latched.new_zeros(n)))
        self.opened = torch.cat((self.opened, self.opened.new_zeros(n)))


@dataclass(frozen=True)
class Watched:
    """One row of a pass under a condition."""

    slot: int
    places: list[int]
    """Of its tokens, in the flattened pass."""
    can_fire: list[bool]
    """False where a token is masked, so that no feature has an activation."""
    generated: list[bool]
    early: bool
    """Every operation lies before the condition's deepest block, and is let through one token later."""


class Watching:
    """One condition in one pass: reads its features as the layers come by, then opens or shuts the gates of all its rows."""

    def __init__(self, watcher: Watcher, rows: Sequence[Watched], gates: Gates, device: torch.device) -> None:
        self._watcher, self._gates = watcher, gates
        width = max(len(row.places) for row in rows)

        def table(lines: Sequence[Sequence[int]], filler: int) -> Tensor:
            return torch.tensor([[*line, *[filler] * (width - len(line))] for line in lines], device=device)

        places = [row.places for row in rows]
        self._shape = (len(rows), width)
        self._index = table(places, 0).flatten()
        self._now = table(places, gates.nowhere)
        self._before = table([[gates.n_flat + place for place in line] for line in places], gates.nowhere)
        self._real = table([[1] * len(line) for line in places], 0).bool()
        self._can_fire = table([[int(fires) for fires in row.can_fire] for row in rows], 0).bool()
        self._generated = table([[int(new) for new in row.generated] for row in rows], 0).bool()
        self._early = torch.tensor([row.early for row in rows], device=device)[:, None]
        self._slots = torch.tensor([row.slot for row in rows], device=device)
        self._values = torch.zeros(*self._shape, watcher.most.shape[1], device=device)
        needs_reading = watcher.scope != "prompt" or not all(all(row.generated) for row in rows)
        self.layers = frozenset(part.layer for part in watcher.parts) if needs_reading else frozenset[int]()

    @torch.inference_mode()
    def begin(self) -> None:
        """What is known before the pass: what was read up to the token before."""
        watcher = self._watcher
        with watcher.lock:
            if watcher.scope == "prompt":
                held = watcher.holds(watcher.most[self._slots])[:, None] & self._generated
                self._gates.open[self._before] = held
                watcher.opened.index_add_(0, self._slots, held.sum(1).float())
            elif watcher.scope == "after":
                self._gates.open[self._before] = watcher.latched[self._slots][:, None] & self._generated

    @torch.inference_mode()
    def read(self, layer: int, flat: Tensor) -> None:
        """Takes the stream (n_flat, d_model) as the block returned it."""
        for part in self._watcher.parts:
            if part.layer == layer:
                found = activations(part.read, flat[self._index])
                self._values[..., part.columns] = found.view(*self._shape, -1) * self._can_fire[..., None]
        if layer == self._watcher.deepest:
            with self._watcher.lock:
                self._settle()

    def _settle(self) -> None:
        watcher = self._watcher
        if watcher.scope == "token":
            now = watcher.holds(self._values) & self._real
        else:
            values = self._values if watcher.scope == "after" else self._values * ~self._generated[..., None]
            most = torch.maximum(values.cummax(1).values, watcher.most[self._slots][:, None])
            watcher.most[self._slots] = most[:, -1]
            if watcher.scope == "prompt":
                return
            before = watcher.latched[self._slots][:, None]
            now = before | ((watcher.holds(most) & self._real).cumsum(1) > 0)
            watcher.latched[self._slots] = now[:, -1]
            now = now & self._real
        self._gates.open[self._now] = now
        let = torch.where(self._early, self._gates.open[self._before] & self._generated, now)
        watcher.opened.index_add_(0, self._slots, let.sum(1).float())


def features(expression: Expression) -> list[str]:
    """The features that it names."""
    if isinstance(expression, FeatureAbove):
        return [expression.feature]
    if isinstance(expression, AnyOf):
        return [name for one in expression.any for name in features(one)]
    if isinstance(expression, AllOf):
        return [name for one in expression.all for name in features(one)]
    return features(expression.not_)


def _tree(expression: Expression, column: dict[str, int]) -> Tree:
    if isinstance(expression, FeatureAbove):
        place, above = column[expression.feature], expression.above
        return lambda values: values[..., place] > above
    if isinstance(expression, AnyOf):
        some = [_tree(one, column) for one in expression.any]
        return lambda values: torch.stack([one(values) for one in some]).any(0)
    if isinstance(expression, AllOf):
        every = [_tree(one, column) for one in expression.all]
        return lambda values: torch.stack([one(values) for one in every]).all(0)
    inner = _tree(expression.not_, column)
    return lambda values: ~inner(values)


def _parts(
    names: Sequence[str], encoders: Encoders, n_layers: int, device: torch.device
) -> tuple[list[Part], dict[str, int]]:
    """The SAEs that are read, and the column of each feature."""
    by_sae: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        sae, index = parse_feature(name)
        by_sae.setdefault(sae, []).append((index, name))
    parts: list[Part] = []
    column: dict[str, int] = {}
    for sae, named in by_sae.items():
        encoder = encoders(sae)
        if not 0 <= encoder.product.layer < n_layers:
            raise InputError(f"when: SAE {sae} reads layer {encoder.product.layer}, but the model has {n_layers}")
        for index, name in named:
            if not 0 <= index < encoder.d_sae:
                raise InputError(f"when: SAE {sae} has features 0 to {encoder.d_sae - 1}, no {index}")
            column[name] = len(column)
        indexes = torch.tensor([index for index, _ in named], device=device)
        parts.append(Part(encoder.product.layer, rows(encoder, indexes), slice(len(column) - len(named), len(column))))
    return parts, column
