"""One forward pass laid out: which operations touch which tokens, after which block and in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch

from schema.errors import WorkFailed
from steering.conditions import Gates, Watched, Watcher, Watching
from steering.groups import Group, Touched
from steering.measure import GENERATED, PROMPT
from steering.program import Program, Step


class Row(NamedTuple):
    """One row of a forward pass."""

    program: Program | None
    """None: unsteered."""
    ids: tuple[int, ...]
    """The tokens of this pass, oldest first: a prompt, a chunk of it, or one token that was generated."""
    first: int
    """Position of `ids[0]` in the choice's whole sequence, from 0."""
    n_prompt: int
    pad: int = 0
    """Columns of padding on the left: token j lies in column `pad + j`."""


@dataclass(frozen=True)
class Work:
    """What happens after one block, in this order."""

    watching: Sequence[Watching]
    """Conditions read the stream as it comes from the block."""
    groups: Sequence[Group]


@dataclass(frozen=True)
class Plan:
    """A pass of a batch."""

    shape: tuple[int, int]
    """Rows, and the columns that they take at least; of packed rows 1, and all their tokens."""
    work: Mapping[int, Work]
    watching: Sequence[Watching]


def lay_out(rows: Sequence[Row], device: torch.device, *, packed: bool = False) -> Plan:
    """The pass of these rows, whatever was before.

    Args:
        packed: their tokens stand one row after another, without padding.
    """
    shape, begins = _packed(rows) if packed else _padded(rows)
    gates = Gates(shape[0] * shape[1], device)
    found: dict[int, dict[tuple[int, str, int, bool], list[Touched]]] = {}
    for row, begin in zip(rows, begins, strict=True):
        for layer, steps in row.program.layers.items() if row.program is not None else ():
            for stage, step in enumerate(steps):
                touched = _touched(step, row, begin)
                if touched is not None:
                    found.setdefault(layer, {}).setdefault((stage, *step.kind), []).append(touched)
    watching = _watch(rows, begins, gates, device)
    work = {}
    for layer in sorted({*found, *(layer for each in watching for layer in each.layers)}):
        by_kind = found.get(layer, {})
        groups = [Group(by_kind[key], gates, device) for key in sorted(by_kind, key=lambda key: key[0])]
        work[layer] = Work([each for each in watching if layer in each.layers], groups)
    return Plan(shape, work, watching)


def _padded(rows: Sequence[Row]) -> tuple[tuple[int, int], list[int]]:
    """The shape of the pass, and where each row's first token stands once it is flattened."""
    width = max(
        (row.pad + len(row.ids) for row in rows if row.ids), default=1
    )  # of a prompt's chunk, a row may hold only padding
    return (len(rows), width), [number * width + row.pad for number, row in enumerate(rows)]


def _packed(rows: Sequence[Row]) -> tuple[tuple[int, int], list[int]]:
    ends = list(accumulate((len(row.ids) for row in rows), initial=0))
    return (1, ends[-1]), ends[:-1]


def _touched(step: Step, row: Row, begin: int) -> Touched | None:
    columns = step.place.columns(row.ids, row.first)
    if step.gate == "before" and row.first < row.n_prompt:
        columns = []
    if not columns:
        return None
    special = row.program.special if row.program is not None else ()
    can_fire = [row.first + column > 0 and row.ids[column] not in special for column in columns]
    phases = [GENERATED if row.first + column >= row.n_prompt else PROMPT for column in columns]
    return Touched(step, [begin + column for column in columns], phases, can_fire)


def _watch(rows: Sequence[Row], begins: Sequence[int], gates: Gates, device: torch.device) -> list[Watching]:
    """The conditions of the rows, those that are the same together."""
    watched: dict[Watcher, list[Watched]] = {}
    for row, begin in zip(rows, begins, strict=True):
        program = row.program
        if program is None or program.watcher is None or not row.ids:
            continue
        if row.first + len(row.ids) > row.n_prompt and len(row.ids) > 1:
            raise WorkFailed(
                "tokens that were generated were fed together to a choice under a condition; feed them one by one"
            )
        one = Watched(
            slot=program.slot,
            places=list(range(begin, begin + len(row.ids))),
            can_fire=[row.first + j > 0 and id_ not in program.special for j, id_ in enumerate(row.ids)],
            generated=[row.first + j >= row.n_prompt for j in range(len(row.ids))],
            early=program.early,
        )
        watched.setdefault(program.watcher, []).append(one)
    return [Watching(watcher, each, gates, device) for watcher, each in watched.items()]
