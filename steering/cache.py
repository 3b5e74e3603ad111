"""What a model remembers of the tokens it has read, for a batch whose rows come and go.

All rows end in the same column: a shorter one is padded on the left. Attention layers keep keys and values in buffers that grow by
doubling, so that a step writes one column and copies nothing; recurrent layers (Qwen3.5) keep a state a row, which knows no columns.
A row's padding is zeroed when it joins: it is masked, but a NaN left there by an earlier row would outlive the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
)

from schema.errors import InputError

Moves = Sequence[tuple[int, int]]
"""(from, to): rows that take the place of rows that left, in this order."""
_FEWEST_COLUMNS = 64


class Columns(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one attention layer: (rows, heads, columns, width), columns `offset` to `length` of each row."""

    def __init__(self, window: int | None = None) -> None:
        super().__init__()
        self.is_sliding = window is not None
        self.window = window
        self.rows = 0
        self.length = 0
        self.offset = 0

    @property
    def stored(self) -> int:
        return self.length - self.offset

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.rows = len(key_states)
        shape = (key_states.shape[1], max(_FEWEST_COLUMNS, key_states.shape[2]))
        self.keys = key_states.new_empty(self.rows, *shape, key_states.shape[3])
        self.values = value_states.new_empty(self.rows, *shape, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes new columns, and answers all that are stored."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new = key_states.shape[2]
        if self.window is not None and self.stored >= 2 * self.window:
            self._lay(len(self.keys), self.window - 1 + new, self.window - 1 - self.stored)
        if self.stored + new > self.keys.shape[2]:
            self._lay(len(self.keys), max(self.stored + new, 2 * self.keys.shape[2]), 0)
        begin, end = self.stored, self.stored + new
        self.length += new
        self.keys[: self.rows, :, begin:end] = key_states
        self.values[: self.rows, :, begin:end] = value_states
        return self.keys[: self.rows, :, :end], self.values[: self.rows, :, :end]

    def _lay(self, rows: int, columns: int, shift: int) -> None:
        """New buffers with the stored columns moved right, or left where `shift` is negative: those beyond the edge are dropped."""
        kept = self.stored + min(shift, 0)
        for name in ("keys", "values"):
            old: Tensor = getattr(self, name)
            new = old.new_empty(rows, old.shape[1], max(columns, _FEWEST_COLUMNS), old.shape[3])
            new[: self.rows, :, : max(shift, 0)] = 0
            new[: self.rows, :, max(shift, 0) : max(shift, 0) + kept] = old[
                : self.rows, :, max(-shift, 0) : self.stored
            ]
            setattr(self, name, new)
        self.offset -= shift

    def pad(self, columns: int) -> None:
        """More padding before every row; fewer where negative."""
        if self.offset == 0 and self.is_initialized:
            self._lay(len(self.keys), self.stored + columns, columns)
            self.offset = 0
        elif self.offset + columns < 0:
            self._lay(len(self.keys), self.stored, self.offset + columns)
            self.offset = 0
        else:
            self.offset += columns
        self.length += columns

    def join(self, other: Columns) -> None:
        """Takes the rows of another layer that ends in the same column."""
        assert self.length == other.length
        rows, lead = self.rows + other.rows, max(self.offset - other.offset, 0)
        capacity = len(self.keys) if rows <= len(self.keys) else max(rows, 2 * len(self.keys))
        if lead or capacity > len(self.keys):
            self._lay(capacity, max(self.keys.shape[2], self.stored + lead), lead)
        begin = self.stored - other.stored
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            mine[self.rows : rows, :, :begin] = 0
            mine[self.rows : rows, :, begin : self.stored] = theirs[: other.rows, :, : other.stored]
        self.rows = rows

    def keep(self, moves: Moves, rows: int) -> None:
        """Fills the places of rows that left with the last ones."""
        for source, target in moves:
            self.keys[target, :, : self.stored] = self.keys[source, :, : self.stored]
            self.values[target, :, : self.stored] = self.values[source, :, : self.stored]
        self.rows = rows

    def spread(self, rows: Tensor) -> None:
        """Rows anew: each takes what the row (n,) of before held."""
        self.keys, self.values = self.keys[: self.rows][rows], self.values[: self.rows][rows]
        self.rows = len(rows)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        if self.window is not None and self.stored >= 2 * self.window:  # as `update` is about to drop them
            return self.window - 1 + query_length, self.length - self.window + 1
        return self.stored + query_length, self.offset

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1


class States(LinearAttentionLayer):  # type: ignore[misc]
    """The convolution's and the recurrence's state of one linear-attention layer, a row each."""

    def _each(self) -> list[tuple[dict[int, Tensor], int]]:
        kept = ((self.conv_states, i) for i, there in self.is_conv_states_initialized.items() if there)
        states = ((self.recurrent_states, i) for i, there in self.is_recurrent_states_initialized.items() if there)
        return [*kept, *states]

    def join(self, other: States) -> None:
        for (mine, i), (theirs, _) in zip(self._each(), other._each(), strict=True):
            mine[i] = torch.cat([mine[i], theirs[i]])

    def keep(self, moves: Moves, rows: int) -> None:
        for states, i in self._each():
            for source, target in moves:
                states[i][target] = states[i][source]
            states[i] = states[i][:rows].clone()

    def spread(self, rows: Tensor) -> None:
        for states, i in self._each():
            states[i] = states[i][rows]


class RowCache(Cache):  # type: ignore[misc]
    """The memory of a batch."""

    def __init__(self, config: Any) -> None:
        super().__init__(layers=[_layer(layer, config) for layer in DynamicCache(config=config).layers])
        self.columns = [layer for layer in self.layers if isinstance(layer, Columns)]

    @property
    def length(self) -> int:
        """Columns, padding included."""
        return self.columns[0].length

    def pad(self, columns: int) -> None:
        for layer in self.columns:
            layer.pad(columns)

    def join(self, other: RowCache) -> None:
        """Takes another batch's rows, below its own. Both must be of the same length."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine.join(theirs)

    def spread(self, rows: Tensor) -> None:
        """Rows anew: each takes what the row (n,) of before held."""
        for layer in self.layers:
            layer.spread(rows)

    def keep(self, moves: Moves, rows: int) -> None:
        """Leaves `rows` rows, after the moves."""
        for layer in self.layers:
            layer.keep(moves, rows)


def token_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes that one column of one row takes; sliding windows are counted in full."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * len(RowCache(config).columns) * heads * width * dtype.itemsize)


def _layer(layer: Any, config: Any) -> Columns | States:
    """Ours for one of transformers'.

    Raises:
        InputError: a kind of memory that cannot be batched here.
    """
    if type(layer) is DynamicSlidingWindowLayer:
        return Columns(layer.sliding_window)
    if type(layer) is DynamicLayer:
        return Columns()
    if type(layer) is LinearAttentionLayer:
        return States(number_of_states=layer.number_of_states)
    raise InputError(
        f"models of the family {config.model_type} keep {type(layer).__name__}, which the torch engine cannot batch; "
        "texts can be read with this model, but not generated"
    )
